"""The benchmark harness on tiny inputs. No time is asserted anywhere."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import slaf_ext
from slaf_ext import bases

for package in ("matplotlib", "pandas", "tabulate", "tqdm"):
    pytest.importorskip(package, reason="the benchmarks need the extra 'bench'")

import benchmarks.__main__ as command  # noqa: E402, I001
from benchmarks import (  # noqa: E402
    analysis, bars, cases, compare, environment, figures, measure, memory, networks, report, results, variants,
)  # fmt: skip
from benchmarks.cases import Case, Entry, Unit  # noqa: E402

ROOT = Path(__file__).parent.parent
TINY = Case(shape=(64,), degree=3, threads=1)
IMAGE = replace(TINY, shape=(2, 16, 3, 3), sharing="channel")


@pytest.fixture(autouse=True)
def quickly(monkeypatch, tmp_path):
    """Short blocks and three rounds; the process is left as it was."""
    for name, value in (("BLOCK_SECONDS", 1e-5), ("MIN_ROUNDS", 3), ("MAX_ROUNDS", 3)):
        monkeypatch.setattr(measure, name, value)
    monkeypatch.setattr(results, "LOCAL", tmp_path / "local")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def measured(unit: Unit) -> dict[str, dict]:
    return {record["variant"]: record for record in command.KINDS[unit.kind](unit, lambda what: None)}


def timed(case: Case, *names: str) -> dict[str, dict]:
    return measured(cases.times("x", case, names, 0))


def network(name: str, *names: str, **case) -> dict[str, dict]:
    entries = tuple(Entry(v, Case(shape=(4,), degree=5, threads=1, **case), name) for v in names)
    return measured(Unit("networks", "network", entries, 0))


def made_up(preset: str, path: Path, *slower: str, factor: float = 1) -> results.Results:
    """A file as that preset writes it; a unit's i-th entry takes i times 100 us, or longer by `factor`."""
    facts, device = environment.facts("cpu"), "cuda" if preset.startswith("gpu") else "cpu"
    facts |= {"device": device, "gpu": "an invented card" if device == "cuda" else None}
    results.start(path, facts, {"preset": preset, "device": device, "wanted": {}})
    for unit in cases.select(preset):
        roofs = [Entry(name, unit.entries[0].case) for name in cases.ROOFS] if unit.kind == "times" else []
        copy, product = roofs[:1], roofs[1:] if device == "cpu" else []
        records = []
        for i, entry in enumerate([*copy, *unit.entries, *product], start=1):
            by = factor if {entry.variant, unit.kind} & set(slower) else 1
            blocks = [1e-4 * by * i * (1 + 0.01 * block) for block in (-1, 0, 1)]
            times = {"calls": 1, "seconds": blocks, "waited": [0.0] * 3, "errors": {"y": 1e-7}}
            size = {"peak_bytes": by * 2**20 * i, "saved_bytes": 2**20 * i}
            records.append({**entry.as_json(), **(size if unit.kind == "memory" else times)})
        results.append(path, unit, records)
    return results.load(path)


@pytest.mark.parametrize("sharing", cases.SHARINGS)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_every_eager_variant_is_right_and_timed(sharing, layout):
    names = ("relu", "gelu", "prelu", "fused", *cases.EAGER)
    found = timed(replace(IMAGE, sharing=sharing, layout=layout), *names)
    assert set(found) == {*cases.ROOFS, *names}
    if sharing in ("group", "feature"):
        assert "skipped" in found.pop("prelu")
    for record in found.values():
        assert len(record["seconds"]) == len(record["waited"]) == 3, record
        assert min(record["seconds"]) > 0


@pytest.mark.parametrize("basis", bases.names())
@pytest.mark.parametrize("degree", [0, 1, 2, 7])
def test_every_form_computes_the_same_polynomial_in_every_basis(basis, degree):
    found = timed(replace(TINY, basis=basis, degree=degree, dtype="fp64"), "fused", *cases.EAGER)
    assert all("seconds" in record for record in found.values()), found


@pytest.mark.parametrize("passes", cases.PASSES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_every_pass_and_dtype(passes, dtype):
    fused = timed(replace(TINY, passes=passes, dtype=dtype), "fused")["fused"]
    wanted = {"forward": {"y"}, "backward": {"dx", "dcoeffs"}, "both": {"y", "dx", "dcoeffs"}}[passes]
    assert set(fused["errors"]) == wanted
    assert "seconds" in fused


@pytest.mark.parametrize("afresh", [True, False])
def test_a_compiled_variant_has_its_own_cache_and_is_refused_where_it_ran_eagerly(monkeypatch, afresh):
    if not afresh:
        monkeypatch.setattr(variants, "compile_afresh", lambda form, mode: torch.compile(form, dynamic=False))
    monkeypatch.setitem(variants.POLYNOMIALS, "compiled again", variants.POLYNOMIALS["compiled horner"])
    with torch._dynamo.config.patch(recompile_limit=1):
        found = timed(TINY, "compiled horner", "compiled again")
    assert found["compiled horner"]["first_call_seconds"] > 0
    assert ("seconds" if afresh else "refused") in found["compiled again"], found


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_normalised_form_and_its_yardstick_are_right_and_timed(layout, dtype):
    found = timed(replace(IMAGE, degree=5, layout=layout, dtype=dtype), *cases.NORMALIZING)
    mine, yardstick = (found[name] for name in cases.NORMALIZING)
    assert all("seconds" in record for record in found.values()), found
    assert set(mine["errors"]) == {"y", "dx", "dcoeffs"}
    assert set(yardstick["errors"]) == {"y", "dx", "dparameter0", "dparameter1"}
    limit = {"fp32": 1e-5, "fp64": 1e-13}.get(dtype, 1)
    assert max(*mine["errors"].values(), *yardstick["errors"].values()) < limit


def test_a_wrong_normalised_form_is_refused(monkeypatch):
    right = variants._normalized(IMAGE)

    def constant_statistics(x, coeffs):
        _, mean, variance = slaf_ext.functional.normalized_slaf(x, coeffs, dim=1)
        return slaf_ext.slaf(x, slaf_ext.reference.fold(coeffs, mean, variance, variants.SLAF_EPS).float())

    wrong = {"dx is off by": constant_statistics, "y is off by": lambda x, coeffs: 1.001 * right.forward(x, coeffs)}
    for said, forward in wrong.items():
        monkeypatch.setitem(variants.OTHERS, "normalized", lambda case, f=forward: replace(right, forward=f))
        assert said in timed(IMAGE, "normalized")["normalized"]["refused"]


WRONG = {
    "y is off by 5.0e-04 of its largest value; the limit for fp32 is 1e-04": lambda y, x, coeffs: y * 1.0005,
    "y is off by inf": lambda y, x, coeffs: y * float("nan"),
    "dx is off by": lambda y, x, coeffs: y + 0.01 * (x - x.detach()),
    "dcoeffs is off by 1.0e+00": lambda y, x, coeffs: slaf_ext.slaf(x, coeffs.detach()) + 0 * coeffs.sum(),
    "y is torch.float64": lambda y, x, coeffs: y.double(),
    "ValueError: not this shape": None,
}


def replace_fused(monkeypatch, wrong) -> None:
    """Makes `fused` compute something else, or raise."""

    def form(case):
        if wrong is None:
            raise ValueError("not this shape\nand more of it")
        return lambda x, coeffs: wrong(slaf_ext.slaf(x, coeffs, case.basis), x, coeffs)

    monkeypatch.setitem(variants.POLYNOMIALS, "fused", (form, False))


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_variant_is_not_timed_and_does_not_end_the_run(monkeypatch, said):
    replace_fused(monkeypatch, WRONG[said])
    found = timed(replace(TINY, passes="forward" if "float64" in said else "both"), "fused", "relu")
    assert found["fused"]["refused" if WRONG[said] else "skipped"].startswith(said)
    assert "seconds" not in found["fused"]
    assert "seconds" in found["relu"]


@pytest.mark.parametrize("name", ["mlp", "resnet", "vit"])
def test_networks_step_with_every_activation(name):
    for variant, record in network(name, "relu", "fused", "naive").items():
        assert max(record["errors"].values()) < 1e-3, record
        assert len(record["seconds"]) == 3
        assert ("gradient in the coefficients" in record["errors"]) is (variant != "relu")


def test_a_wrong_network_is_refused_and_a_network_that_rounds_is_not(monkeypatch):
    monkeypatch.setitem(networks.LIMITS, "bf16", 1e-7)
    assert all(1e-7 < e < 0.1 for e in network("mlp block", "fused", dtype="bf16")["fused"]["errors"].values())
    for said, wrong in (
        ("the loss is off by inf", WRONG["y is off by inf"]),
        ("the gradient in the coefficients is off by 1.0e+00 of its largest value", WRONG["dcoeffs is off by 1.0e+00"]),
    ):
        replace_fused(monkeypatch, wrong)
        assert network("mlp block", "fused", dtype="bf16")["fused"]["refused"].startswith(said)


@pytest.mark.parametrize(("stance", "key"), [("default", "seconds"), ("force_eager", "refused")])
def test_a_whole_network_is_compiled_or_refused(stance, key):
    with torch.compiler.set_stance(stance):
        assert key in network("compiled mlp block", "fused", dtype="bf16")["fused"]


def test_rounds_interleave_the_variants_and_begin_with_another_each_time():
    calls = []

    class Clock:
        case, calls, by_host = TINY, 1, True

        def __init__(self, name):
            self.seconds = lambda: calls.append(name) or 1.0

    records = [{"variant": name} for name in "abc"]
    measure.interleave(records, [Clock("a"), None, Clock("c")], 0, lambda what: None)
    assert calls == ["a", "c", "c", "a", "a", "c"]
    assert records[0]["seconds"] == [1.0] * 3
    assert records[1] == {"variant": "b"}


@pytest.mark.parametrize(("waited", "quartiles"), [([0, 0, 0, 0.5, 0.5, 0.5], (1, 1, 1)), ([0.5] * 6, (1, 5, 9))])
def test_disturbed_blocks_do_not_count(waited, quartiles):
    record = {**Entry("fused", TINY).as_json(), "seconds": [1.0, 1.0, 1.0, 9.0, 9.0, 9.0], "waited": waited}
    blocks = results.row("x", "times", record)["blocks"]
    assert blocks.quartiles == quartiles
    assert blocks.disturbed is (waited[0] > 0)


def test_the_roofs_are_what_bytes_and_multiply_adds_take(tmp_path):
    (unit,) = analysis.units(analysis.frame([made_up("degrees", tmp_path / "degrees.jsonl")]), degree=8)
    fused, product = (analysis.pick(unit, name) for name in ("fused", "product"))
    roofs = analysis.roofs(unit, fused.entry)
    assert roofs["memory roof"].median == pytest.approx(1e-4 * 5 / 2)
    assert roofs["arithmetic roof"].median == pytest.approx(product["median"] * 3 * 8 * 2**20 / 512**3)
    assert analysis.roof(unit, fused.entry).median == pytest.approx(max(roof.median for roof in roofs.values()))
    assert set(analysis.roofs(unit, analysis.pick(unit, "relu").entry)) == {"memory roof"}
    moved = [Entry(name, TINY).moved_bytes / 256 for name in ("copy", "relu", "fused", "normalized")]
    assert moved == [2, 5, 5, 8]


@pytest.mark.skipif(not environment.IS_LINUX, reason="elsewhere a run is not restarted")
@pytest.mark.parametrize("own", [{}, {"OMP_PLACES": "threads"}])
def test_a_run_restarts_itself_with_what_steadies_it_and_counts_cores_before_it_is_bound(own):
    code = "from benchmarks import CORES, environment as e; e.restart_steadily()"
    code += "; print(CORES, e.facts('cpu')['settings'])"
    given = {name: value for name, value in os.environ.items() if name not in environment._STEADY} | own
    out = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT, env=given)
    cores, settings = out.strip().split(" ", 1)
    assert settings == str(environment._STEADY | own)
    assert own or int(cores) == len(os.sched_getaffinity(0))


def die(entry):
    os._exit(9)


def test_memory_is_measured_in_a_process_of_its_own(monkeypatch):
    unit = Unit("memory", "memory", (Entry("fused", replace(TINY, shape=(2**20,))), Entry("no", TINY)), 0)
    found = measured(unit)
    assert found["fused"]["saved_bytes"] == 4 * (2**20 + 4)  # x and the coefficients
    if environment.IS_LINUX:
        assert found["fused"]["peak_bytes"] == pytest.approx(2 * 4 * 2**20, rel=0.2)
    assert found["no"]["skipped"].startswith("KeyError")
    monkeypatch.setattr(memory, "peak", die)
    assert measured(unit)["fused"]["skipped"].startswith("BrokenProcessPool: A process")


def test_the_presets_expect_to_keep_to_their_time():
    for preset, seconds in {"quick": 150, "full": 1700, "gpu": 80, "gpu-networks": 45}.items():
        assert sum(unit.expected_seconds for unit in cases.select(preset)) < seconds


def test_an_interrupted_run_keeps_what_it_measured(monkeypatch, capsys):
    units = [cases.times("headline", replace(TINY, degree=n), ("relu", "fused", "naive"), 0) for n in (2, 3)]
    monkeypatch.setitem(cases.PRESETS, "quick", lambda: units)

    def interrupted(unit, tick):
        if unit.entries[0].case.degree == 3:
            raise KeyboardInterrupt
        tick("fused")
        return measure.times(unit, tick)

    monkeypatch.setitem(command.KINDS, "times", interrupted)
    assert command.main(["run", "--variant", "relu", "fused", "--numel", "64"]) == 130
    out, progress = capsys.readouterr()
    (path,) = results.LOCAL.glob("quick-*.jsonl")
    assert "Interrupted. To complete it" in out
    assert "### degree 2" in out
    assert "### degree 3" not in out
    assert "headline: fused" in progress
    assert "spent, about" in progress
    assert {row["variant"] for row in results.load(path).rows} == {*cases.ROOFS, "relu", "fused"}


@pytest.mark.parametrize(
    ("arguments", "content", "said"),
    [
        ("report a.jsonl", None, "a.jsonl cannot be read: No such file or directory."),
        ("report a.jsonl", "{]", "a.jsonl, line 1, is not a line of results"),
        ("compare a.jsonl a.jsonl", '{"format": 1, "environment": {}}', "a.jsonl, line 1, is not a line of results"),
        (
            "report a.jsonl",
            '{"format": 0, "environment": {"commit": "abc"}}',
            "format 0, not 1; read it with commit abc",
        ),
        ("run --output a.jsonl", "precious", "a.jsonl exists; give another --output"),
        ("run --output a", None, "a has no suffix"),
        ("run --numel 7", None, "quick has nothing with {'numel': [7]}"),
        ("run --output a.jsonl/b.jsonl", "a file", "a.jsonl cannot be used: File exists."),
    ],
)
def test_what_cannot_be_done_ends_in_a_sentence(monkeypatch, tmp_path, capsys, arguments, content, said):
    monkeypatch.chdir(tmp_path)
    made_up("threads", tmp_path / "full.jsonl")
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_text(content)
    assert command.main(arguments.split()) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert (path.read_text() if path.exists() else None) == content


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-100], lambda text: text.replace('"seconds":[', '"seconds":[-1,')]
)
def test_a_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "a.jsonl"
    made_up("threads", path)
    *kept, last = path.read_text().splitlines()
    path.write_text("\n".join([*kept, damage(last)]))
    with pytest.raises(results.ResultsError, match=f"a.jsonl, line {len(kept) + 1}, is not a line of results; delete"):
        results.load(path)


def test_a_full_run_gives_every_bar_table_and_figure_in_80_columns(monkeypatch, tmp_path, capsys):
    made = [made_up(preset, tmp_path / f"{preset}.jsonl") for preset in ("full", "gpu", "gpu-networks")]
    assert list(bars.verdicts(analysis.frame(made)).text) == [bar.text for bar in bars.BARS]
    quick = bars.verdicts(analysis.frame([made_up("quick", tmp_path / "quick.jsonl")]))
    assert list(quick.text) == [
        bar.text for bar in bars.BARS if bar.group == "CPU" and bar.suites not in (("networks",), ("kan",))
    ]
    monkeypatch.setattr(report, "ROOT", tmp_path)
    readme, folder = tmp_path / "README.md", tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert command.main(["report", *(str(r.path) for r in made), "--publish"]) == 0
    short, long = readme.read_text(), (folder / "REPORT.md").read_text()
    assert re.fullmatch(f"before\n{report.BEGIN}\n.*{report.END}\nafter\n", short, re.DOTALL)
    assert "old" not in short
    assert len(short.splitlines()) <= 45 + 2
    assert max(len(line) for line in long.splitlines() if "](" not in line) <= 80
    suites = [*list(cases.PRESETS)[2:-2], *report.OWN_HEADINGS]
    assert len(re.findall(r"^## ", long, re.MULTILINE)) == len(suites) + len({bar.group for bar in bars.BARS})
    for name in figures.FIGURES:
        assert f"figures/{name}.png" in long
        assert figures.origin(made).encode() in (folder / "figures" / f"{name}.png").read_bytes()
    assert "On a GPU: not measured." not in short
    assert "On a GPU: not measured." in report.block(made[:1])
    capsys.readouterr()
    for arguments in (["report", str(made[0].path)], ["compare", *[str(made[1].path)] * 2], ["list"]):
        command.main(arguments)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_committed_texts_and_figures_are_those_of_the_raw_files():
    readme, folder = ROOT / "README.md", ROOT / "benchmarks" / "results"
    (block,) = report.BLOCK.findall(readme.read_text(encoding="utf-8"))
    found = [results.load(ROOT / path) for path in re.findall(r"\S+\.jsonl", block)]
    assert report.block(found) == block
    assert report.page(found) == (folder / "REPORT.md").read_text(encoding="utf-8")
    drawn = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert set(drawn) == {f"{name}.png" for name in figures.FIGURES}
    assert all(figures.origin(found).encode() in data for data in drawn.values())


@pytest.mark.parametrize("name", ["gelu", "relu", "copy"])
def test_a_bar_is_met_or_missed_by_the_numbers_of_the_last_file(tmp_path, name):
    bar = {"gelu": "degree 8: fused / gelu", "relu": "2^24 elements: fused / relu", "copy": "degree 8: fused / roof"}
    made = [made_up("headline", tmp_path / f"{f}.jsonl", name, factor=f) for f in (1e3, 1e-3, 1e4)]
    for files, met in ((made[:2], False), (made, True)):
        found = bars.verdicts(analysis.frame(files))
        assert found.met[found.text == bar[name]].tolist() == [met]


@pytest.mark.parametrize(
    ("slower", "factor", "said"),
    [
        (["fused"], 1, "0 slower, 0 faster, 0 larger, 0 smaller"),
        (["times"], 2, "0 slower, 0 faster, 0 larger, 0 smaller"),  # a slower machine
        (["fused"], 2, "9 slower, 0 faster, 3 larger, 0 smaller"),
        (["normalized"], 2, "2 slower, 0 faster"),  # two layouts
        (["fused"], 0.5, "0 slower, 9 faster, 0 larger, 3 smaller"),
        (["naive", "horner", "clone", "copy"], 0.1, "0 slower, 0 faster, 0 larger, 0 smaller"),
        (["relu"], 0.5, "9 slower, 0 faster, 0 larger, 0 smaller"),  # the ratio to relu counts
    ],
)
def test_compare_names_what_became_slower_or_larger(tmp_path, slower, factor, said):
    old = made_up("quick", tmp_path / "old.jsonl")
    new = made_up("quick", tmp_path / "new.jsonl", *slower, factor=factor)
    assert said in " ".join(compare.text(old, new).split())
