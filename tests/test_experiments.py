"""The experiments' data, loaders and fairness; the networks themselves are trained for a moment only."""

import dataclasses
import gzip
import itertools
import json
from concurrent.futures import Future

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="the experiments need the extra 'bench'")
pytest.importorskip("tqdm")
from examples.experiments import __main__ as experiments
from examples.experiments import defaults, lessons, report, tasks, train
from slaf_ext import SLAF


def write_idx(path, array):
    raw = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_files(tmp_path, suffix):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 5], np.uint8)
    write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", images)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", labels)
    x, y = tasks.load_mnist(tmp_path)
    assert y.tolist() == [3, 1, 4, 1, 5]
    np.testing.assert_allclose(x[:, 0].numpy(), images / np.float32(255))


def test_files_that_are_wrong_get_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="lacks train-images"):
        tasks.load_mnist(tmp_path)
    with pytest.raises(ValueError, match="no data_batch"):
        tasks.load_cifar10(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3074))
    with pytest.raises(ValueError, match="3074 bytes; rows of CIFAR-10 have 3073"):
        tasks.load_cifar10(tmp_path)
    (tmp_path / "bad").write_bytes(b"PNG!")
    with pytest.raises(ValueError, match="no IDX file"):
        tasks.read_idx(tmp_path / "bad")
    write_idx(tmp_path / "short", np.zeros((2, 3), np.uint8))
    (tmp_path / "short").write_bytes((tmp_path / "short").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shape \(2, 3\) needs"):
        tasks.read_idx(tmp_path / "short")


def test_cifar10_files(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (4, 3073), dtype=np.uint8)
    rows[:, 0] = [9, 0, 3, 2]
    rows[:2].tofile(tmp_path / "data_batch_1.bin")
    rows[2:].tofile(tmp_path / "data_batch_2.bin")
    x, y = tasks.load_cifar10(tmp_path)
    assert y.tolist() == [9, 0, 3, 2]
    assert x.shape == (4, 3, 32, 32)
    assert x[3, 2, 31, 31].item() == pytest.approx(rows[3, -1] / 255)


def test_splits_are_disjoint():
    data = tasks.two_spiral(50)
    parts = tasks.split((torch.arange(100), data[1]), seed=0)
    assert sorted(torch.cat([part[0] for part in parts]).tolist()) == list(range(100))


@pytest.mark.parametrize("name", tasks.SMALL)
@pytest.mark.parametrize("kind", [*train.OURS, *train.RIVALS])
def test_networks_differ_in_their_activations_alone(name, kind):
    task = tasks.SMALL[name]()
    x = task.data[0][:8]
    for batch_norm in (False, task.may_normalize):
        model = train.network(task, kind, batch_norm)
        assert model(x).shape == (8, task.outputs)
        assert isinstance(model[-1], torch.nn.Linear)  # so that a rival can say every class
        slafs = sum(isinstance(module, SLAF) for module in model.modules())
        assert slafs == {"slaf": len(task.widths), "default": len(task.widths), "hybrid": 1}.get(kind, 0)


def test_a_widened_rival_has_the_parameters_of_slaf_or_just_fewer():
    task = tasks.SMALL["two-spiral"]()
    scale = train.widened(task, "relu", True)
    budget = train.parameters(train.network(task, "slaf"))
    assert 1 < scale < 2
    assert 0.95 * budget < train.parameters(train.network(task, "relu", True, scale)) <= budget


def test_the_solution_solves_the_equation():
    """The loss of the physics-informed task vanishes for its solution, and for nothing near it."""
    task = tasks.SMALL["poisson"]()
    x, y = task.data
    assert task.loss(tasks.Poisson.solution, x.double(), y) < 1e-10
    assert task.loss(lambda x: 1.01 * tasks.Poisson.solution(x), x.double(), y) > 1e-4
    torch.testing.assert_close(y, tasks.Poisson.solution(x))


def test_targets_of_regressions_have_unit_variance():
    for name in ("sparse 3", "sparse 4", "friedman1", "sines"):
        y = tasks.SMALL[name]().data[1]
        assert y.mean().item() == pytest.approx(0, abs=1e-5)
        assert y.std().item() == pytest.approx(1, abs=1e-3)


class AtOnce:
    """A pool whose work is done when it is submitted."""

    def submit(self, f, *arguments):
        future = Future()
        future.set_result(f(*arguments))
        return future


def test_a_run(monkeypatch):
    task = dataclasses.replace(tasks.SMALL["sparse 3"](), data=tasks.sparse_polynomial(4, 2, 400), widths=(6, 6))
    monkeypatch.setitem(tasks.SMALL, "sparse 3", lambda: task)
    experiments.load.cache_clear()
    load = experiments.functools.partial(experiments.load, "sparse 3", "small", None, 1)
    with experiments.tqdm(disable=True) as bar:
        rows = experiments.experiment(load, ("slaf", "hybrid", "relu"), (1e-2, 1e-3), 2, AtOnce(), bar)
    experiments.load.cache_clear()
    assert [row["network"] for row in rows][:3] == ["slaf", "hybrid", "relu"]
    for row in rows:
        assert len(row["scores"]) == 2
        assert np.isfinite(row["scores"]).all()
        assert row["seconds"] > 0
        assert row["rate"] in (1e-2, 1e-3)
    again, _ = train.train(load(), "slaf", train.Choice(rows[0]["rate"]), 0)
    assert load().score(again, tasks.split(load().data, 0)[2]) == rows[0]["scores"][0]


def test_a_task_without_a_full_size_gets_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["experiments", "--full", "--task", "digits"])
    with pytest.raises(SystemExit):
        experiments.main()
    assert "digits has no full size; those that have one are two-spiral, sparse 3" in capsys.readouterr().err


def rows_with(task, measure="MSE", parameters=100, **scores):
    """A row for each kind with the mean of its scores, and a deviation of a tenth."""
    return [
        {
            "task": task,
            "network": kind,
            "scores": [0.9 * mean, mean, 1.1 * mean],
            "parameters": parameters if kind == "slaf" else 100,
            "seconds": 0.001,
            "measure": measure,
            "batch_norm": kind == "relu",
        }
        for kind, mean in scores.items()
    ]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (rows_with("sparse 3", slaf=0.004, default=1, hybrid=0.1, relu=0.1), "kept: sparse 3, at most 0.05: 0.04 of"),
        (rows_with("sparse 3", slaf=0.006, default=1, hybrid=0.1, relu=0.1), "missed: sparse 3, at most 0.05: 0.06 of"),
        (
            rows_with("two-spiral", "error %", 151, slaf=0.01, default=1, hybrid=0.1, relu=0.1),
            "missed: two-spiral, at most 0.6: 0.1 of relu's error, with 1.5 of its parameters",
        ),
        (rows_with("digits", "error %", slaf=0.105, default=1, hybrid=0.1, relu=0.1), "kept: digits, no worse than"),
        (rows_with("digits", "error %", slaf=0.2, default=1, hybrid=0.1, relu=0.1), "missed: digits, no worse than"),
        (rows_with("digits", "error %", slaf=0.1, default=1, hybrid=0.3, relu=0.1), "deviation: worse on digits"),
        (rows_with("digits", "error %", slaf=0.1, default=1, hybrid=0.1, relu=0.1), "twice: nowhere"),
    ],
)
def test_bars_are_kept_or_missed(rows, sentence):
    assert sum(sentence in line for line in report.bars(rows)) == 1


def test_the_best_rival_counts_and_a_run_that_broke_down_loses():
    rows = rows_with("sparse 3", slaf=0.004, default=1, hybrid=0.1, relu=0.1, gelu=0.05)
    rows[0]["scores"][0] = float("inf")
    assert report.best_rival(rows)["network"] == "gelu"
    assert "missed: sparse 3, at most 0.05: inf of gelu's error" in report.bars(rows)[0]


def test_the_table_fits_80_columns_and_lines_up():
    names = {"slaf": 0.0123456, "default": 1, "hybrid": 0.1, "relu": 0.1234, "prelu": 0.01}
    rows = rows_with("two-spiral", "error %", 123456, **names)
    lines = report.table([*rows, *rows_with("sparse 3", **names)]).splitlines()
    assert len({len(line) for line in lines[:12]}) == 1
    assert max(map(len, lines[:12])) <= 80, lines[0]


def test_the_committed_tables_are_those_of_their_raw_files():
    folder = experiments.HERE / "results"
    page = (experiments.HERE.parent.parent / "docs" / "training.md").read_text()
    tables = {
        "table.md": report.table(json.loads((folder / "raw.json").read_text())["rows"]),
        "defaults.md": defaults.table(json.loads((folder / "defaults.json").read_text())),
    }
    assert all(part in page for part in (folder / "lessons.md").read_text().strip().split("\n\n"))
    for raw in folder.glob("full-*/raw.json"):
        tables[f"{raw.parent.name}/table.md"] = report.table(json.loads(raw.read_text())["rows"])
    for name, table in tables.items():
        assert (folder / name).read_text() == table
        assert table in page or name.startswith("full-")


def test_candidates_for_the_defaults():
    rows = [
        {"task": task, "candidate": candidate, "error": error}
        for task, candidate, error in itertools.product(defaults.TASKS, defaults.CANDIDATES, (0.25, 0.25, float("nan")))
    ]
    lines = defaults.table(rows).splitlines()
    assert len(lines) == 2 + len(defaults.CANDIDATES)
    assert lines[4] == "| SLAF(5) | 0.250 | 0.250 | 0.250 | 0.250 | 4 of 12 |"
    assert isinstance(defaults.load("digits"), tasks.Task)
    assert defaults.load("digits").data[0].shape[1:] == (64,)


def test_signals_cross_a_deep_network_of_the_recipe():
    torch.manual_seed(0)
    forward, backward = lessons.signals(lessons.mlp(lessons.DEEP["drop-in"], 20))
    assert len(forward) == len(backward) == 21
    assert 0.03 < min(forward) < max(forward) < 3
    assert max(backward) / min(backward) < 1e5


def test_a_mistake_differs_from_its_recipe():
    for _, name, mistaken in lessons.LESSONS:
        usual = lessons.TASKS[name]().recipe
        assert mistaken.name == usual.name
        assert mistaken.options != usual.options or type(mistaken) is not type(usual)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), SLAF(2))
    assert lessons.Decayed(**vars(usual)).optimizer(net, 1, 1)[0].param_groups[1]["weight_decay"] == 1


def test_the_range_penalty_is_in_the_loss_and_the_largest_input_is_seen():
    task = lessons.digits_task("encrypted")
    (x, y), _, _ = tasks.split(task.data, 0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 10), SLAF(2))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.copy_(torch.tensor([-9.0, *[1.0] * 9]))
    watch = lessons.range_penalty(net, 0.5)
    plain = task.loss(net, x[:8], y[:8])
    _ = watch.penalty()
    watched = dataclasses.replace(task, watch=watch).loss(net, x[:8], y[:8])
    # One of ten inputs is 5 outside (-4, 4).
    torch.testing.assert_close(watched - plain, torch.tensor(0.5 * 25 / 10))
    assert lessons.largest_input(net, x[:8]) == 9


def test_polynomial_networks_hold_polynomials_and_the_recipe_differs_by_its_penalty():
    task = dataclasses.replace(lessons.digits_task("encrypted"), epochs=1)
    networks = lessons.polynomial_networks(task, 0)
    degrees = {name: {m.degree for m in net.modules() if isinstance(m, SLAF)} for name, (net, _) in networks.items()}
    converted = {"converted, degree 2": {2}, "converted, degree 8": {8}}
    assert degrees == {"ReLU": set(), **converted, "no range penalty": {2}, "the recipe": {2}}
    weights = [next(networks[name][0].parameters()) for name in ("no range penalty", "the recipe")]
    assert not torch.equal(*weights)


def test_networks_can_be_chosen(monkeypatch, capsys):
    rows = rows_with("sparse 3", slaf=0.004, relu=0.1)
    assert report.bars(rows) == ["- kept: sparse 3, at most 0.05: 0.04 of relu's error, with 1 of its parameters."]
    assert [line.split("|")[2].strip() for line in report.table(rows).splitlines()[2:4]] == [
        "SLAF, recipe",
        "relu + BatchNorm",
    ]
    monkeypatch.setattr("sys.argv", ["experiments", "--network", "slaf", "hybrid"])
    with pytest.raises(SystemExit):
        experiments.main()
    assert "--network is slaf hybrid; a comparison needs slaf and a rival" in capsys.readouterr().err
