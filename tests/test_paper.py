"""The experiments' data, loaders and fairness; the networks themselves are trained for a moment only."""

import gzip

import numpy as np
import pytest
import torch

pytest.importorskip("tqdm")
from benchmarks import paper


def write_idx(path, array):
    raw = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_files(tmp_path, suffix):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 5], np.uint8)
    write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", images)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", labels)
    x, y = paper.load_mnist(tmp_path)
    assert y.tolist() == [3, 1, 4, 1, 5]
    np.testing.assert_allclose(x[:, 0].numpy(), images / np.float32(255))


def test_files_that_are_wrong_get_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="lacks train-images"):
        paper.load_mnist(tmp_path)
    with pytest.raises(ValueError, match="no data_batch"):
        paper.load_cifar10(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3074))
    with pytest.raises(ValueError, match="3074 bytes; rows of CIFAR-10 have 3073"):
        paper.load_cifar10(tmp_path)
    (tmp_path / "bad").write_bytes(b"PNG!")
    with pytest.raises(ValueError, match="no IDX file"):
        paper.read_idx(tmp_path / "bad")
    write_idx(tmp_path / "short", np.zeros((2, 3), np.uint8))
    (tmp_path / "short").write_bytes((tmp_path / "short").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shape \(2, 3\) needs"):
        paper.read_idx(tmp_path / "short")


def test_cifar10_files(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (4, 3073), dtype=np.uint8)
    rows[:, 0] = [9, 0, 3, 2]
    rows[:2].tofile(tmp_path / "data_batch_1.bin")
    rows[2:].tofile(tmp_path / "data_batch_2.bin")
    x, y = paper.load_cifar10(tmp_path)
    assert y.tolist() == [9, 0, 3, 2]
    assert x.shape == (4, 3, 32, 32)
    assert x[3, 2, 31, 31].item() == pytest.approx(rows[3, -1] / 255)


def test_splits_are_disjoint_and_the_baseline_can_say_both_classes():
    data = paper.two_spiral(50)
    parts = paper.split((torch.arange(100), data[1]), seed=0)
    assert sorted(torch.cat([part[0] for part in parts]).tolist()) == list(range(100))
    task = paper.Task("spiral", data, (4, 4), 3, 2, 1, 20)
    for kind in paper.KINDS:
        assert isinstance(paper.network(task, kind)[-1], torch.nn.Linear)


def test_the_naive_network_is_the_fused_one():
    task = paper.Task("digits", (torch.randn(20, 1, 8, 8), torch.zeros(20).long()), (3, 4, 5), 3, 10, 1, 8)
    torch.manual_seed(0)
    naive = paper.network(task, "naive")
    torch.manual_seed(0)
    fused = paper.network(task, "slaf")
    torch.testing.assert_close(fused(task.data[0]), naive(task.data[0]), rtol=1e-3, atol=1e-3)


def test_a_run_and_its_table(tmp_path):
    paper.mpl.use("agg")
    task = paper.Task("sparse", paper.sparse_polynomial(4, 2, 200), (6, 6), 2, 1, 2, 32)
    with paper.tqdm(disable=True) as bar:
        rows = paper.experiment(task, 2, bar, tmp_path)
    assert (tmp_path / "sparse-activations.png").stat().st_size > 1000
    assert [row["network"] for row in rows] == list(paper.KINDS)
    assert all(len(row["scores"]) == 2 and np.isfinite(row["scores"]).all() for row in rows)
    text = paper.table(rows)
    assert text.count("±") == 4
    assert ("SLAF loses to ReLU on sparse: " in text) == (np.mean(rows[0]["scores"]) > np.mean(rows[2]["scores"]))
    assert {"measure", "parameters", "seconds"} <= set(rows[0])


def rows_with(slaf, relu, task="digits", measure="error %"):
    return [
        {"task": task, "network": name, "scores": scores, "parameters": 123456, "seconds": seconds, "measure": measure}
        for name, scores, seconds in (("slaf", slaf, 0.3), ("hybrid", slaf, 0.25), ("relu", relu, 0.2))
    ]


@pytest.mark.parametrize(
    ("slaf", "relu", "sentence"),
    [
        ([0.03, 0.031], [0.02, 0.021], "SLAF loses to ReLU on digits: 3.05 to 2.05 error %.\n"),
        ([0.03, 0.01], [0.02, 0.018], "SLAF loses to ReLU on digits: 2 to 1.9 error %, within the noise."),
        ([0.02, 0.02], [0.02, 0.02], "SLAF equals ReLU on digits"),
        ([0.01, 0.01], [0.02, 0.02], "SLAF loses to ReLU on no task."),
        ([float("nan"), 0.01], [0.02, 0.02], "SLAF loses to ReLU on digits: nan to 2"),
    ],
)
def test_the_table_says_where_slaf_loses(slaf, relu, sentence):
    text = paper.table(rows_with(slaf, relu))
    assert sentence in text
    assert "An epoch with SLAF takes 1.5 to 1.5 times as long" in text


def test_the_table_fits_80_columns_and_lines_up():
    long = rows_with([0.0123456, 0.02], [0.01, 0.02], "sparse poly 3", "MSE")
    lines = paper.table([*long, *rows_with([0.1, 0.2], [0.1, 0.2])]).splitlines()
    assert len({len(line) for line in lines[:8]}) == 1
    assert max(map(len, lines)) <= 80, lines[0]


def test_the_picture_of_decisions(tmp_path):
    paper.mpl.use("agg")
    task = paper.Task("spiral", paper.two_spiral(50), (4, 4), 3, 2, 1, 20)
    paper.draw(task, {kind: paper.network(task, kind) for kind in paper.KINDS}, tmp_path)
    assert (tmp_path / "spiral-decisions.png").stat().st_size > 1000
