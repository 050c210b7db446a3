"""The harness itself, on tiny inputs. No time is asserted anywhere."""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

import slaf_ext
from slaf_ext import bases

pytest.importorskip("matplotlib", reason="the benchmarks need the extra 'bench'")
pytest.importorskip("tqdm", reason="the benchmarks need the extra 'bench'")

import benchmarks.__main__ as command
from benchmarks import (
    bars,
    cases,
    compare,
    environment,
    figures,
    measure,
    memory,
    networks,
    oracle,
    report,
    results,
    statistics,
    tables,
    variants,
)
from benchmarks.cases import Case, Entry, Unit

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "benchmarks" / "results" / "sample.jsonl"
TINY = Case(shape=(64,), degree=3, threads=1)
EAGER = ("clone", "relu", "gelu", "prelu", "fused", "naive", "stacked", "horner", "clenshaw")


@pytest.fixture(autouse=True)
def quickly(monkeypatch, tmp_path):
    """Short blocks, few rounds, the presets' folder out of the way, and the process left as it was."""
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 1e-5)
    monkeypatch.setattr(measure, "LEAST_ROUNDS", 3)
    monkeypatch.setattr(measure, "MOST_ROUNDS", 3)
    monkeypatch.setattr(results, "LOCAL", tmp_path / "local")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(monkeypatch):
    """A preset of two units."""

    def units(device):
        """Two units."""
        for degree in (2, 3):
            case = dataclasses.replace(TINY, degree=degree, device=device)
            yield cases.times("headline", case, ("relu", "fused", "naive"), 0.01)

    monkeypatch.setitem(cases.PRESETS, "quick", units)
    return units


def measured(*units: Unit) -> list[dict]:
    """The records of the units' variants, those of the roofs left out."""
    records = [record for unit in units for record in command.KINDS[unit.kind](unit, lambda what: None)]
    return [record for record in records if record["variant"] not in cases.ROOFS]


def made_up(preset: str, path: Path) -> results.Results:
    """A file as that preset writes it, of invented numbers: every entry of a unit is slower than the one before."""
    facts, device = environment.facts("cpu"), "cuda" if preset in cases.ON_GPU else "cpu"
    if device == "cuda":
        facts |= {"device": device, "gpu": "an invented card"}
    results.start(path, facts, {"preset": preset, "device": device, "wanted": {}})
    for unit in cases.PRESETS[preset](device):
        copy, product = ([Entry(name, unit.entries[0].case)] * (unit.kind == "times") for name in cases.ROOFS)
        records = []
        for i, entry in enumerate([*copy, *unit.entries, *product], start=1):
            blocks = [1e-4 * i * (1 + 0.01 * block) for block in range(7)]
            timed = {"calls": 1, "seconds": blocks, "waited": [0.0] * 7, "errors": {"y": 1e-7}, "launches": i}
            memory = {"peak_bytes": 2**20 * i, **({} if entry.network else {"saved_bytes": 2**20 * i})}
            if entry.variant in cases.PEERS:
                records.append({**entry.as_json(), "skipped": f"{entry.variant} is not installed"})
            else:
                records.append({**entry.as_json(), **(memory if unit.kind == "memory" else timed)})
        results.append(path, unit, records)
    return results.load(path)


def made_of(suite: str, kind: str, records: list[dict]) -> dict:
    """The line of a unit in a file."""
    return {"suite": suite, "kind": kind, "entries": records, "records": records}


# ------------------------------------------------------------------ variants


@pytest.mark.parametrize("sharing", cases.SHARINGS)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_every_eager_variant_is_right_and_timed(sharing, layout):
    case = dataclasses.replace(TINY, shape=(2, 16, 3, 3), sharing=sharing, layout=layout)
    for record in measured(cases.times("x", case, EAGER, 0)):
        if record["variant"] == "prelu" and sharing in ("group", "feature"):
            assert "skipped" in record
            continue
        assert len(record["seconds"]) == len(record["waited"]) == 3, record
        assert all(s > 0 for s in record["seconds"])


@pytest.mark.parametrize("basis", bases.names())
@pytest.mark.parametrize("degree", [0, 1, 2, 7])
def test_every_form_computes_the_same_polynomial_in_every_basis(basis, degree):
    case = dataclasses.replace(TINY, basis=basis, degree=degree, dtype="fp64")
    for record in measured(cases.times("x", case, ("fused", "naive", "stacked", "horner", "clenshaw"), 0)):
        assert "seconds" in record, record


@pytest.mark.parametrize("passes", cases.PASSES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_every_pass_and_dtype(passes, dtype):
    case = dataclasses.replace(TINY, passes=passes, dtype=dtype)
    wanted = {"forward": {"y"}, "backward": {"dx", "dcoeffs"}, "both": {"y", "dx", "dcoeffs"}}[passes]
    (fused,) = (r for r in measured(cases.times("x", case, ("fused",), 0)) if r["variant"] == "fused")
    assert set(fused["errors"]) == wanted
    assert "seconds" in fused


@pytest.mark.parametrize("afresh", [True, False])
def test_a_compiled_variant_has_a_cache_of_its_own_and_is_refused_where_it_ran_eagerly(monkeypatch, afresh):
    if not afresh:
        monkeypatch.setattr(variants, "compile_afresh", lambda form, mode: torch.compile(form, dynamic=False))
    entries = tuple(Entry("compiled horner", dataclasses.replace(TINY, dtype=dtype)) for dtype in ("fp32", "fp64"))
    with torch._dynamo.config.patch(recompile_limit=1):
        first, second = records = measured(Unit("x", "times", entries, 0))
    assert "seconds" in first, first
    assert first["first_call_seconds"] > 0
    assert ("seconds" in second) is afresh, second
    if not afresh:
        (group,) = statistics.groups([results.Results(Path("x"), {}, {}, [made_of("x", "times", records)])])
        said = "compiled horner fp64 refused: torch.compile compiled nothing, and fell back to the eager form"
        assert said in tables.times(group).notes


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_normalised_form_and_its_yardstick_are_right_and_timed(layout, dtype):
    case = dataclasses.replace(TINY, shape=(2, 16, 5, 5), sharing="channel", degree=5, layout=layout, dtype=dtype)
    found = {r["variant"]: r for r in measured(cases.times("x", case, cases.NORMALIZING, 0))}
    assert all("seconds" in found[name] for name in cases.NORMALIZING), found
    assert set(found["normalized"]["errors"]) == {"y", "dx", "dcoeffs"}
    assert set(found["batchnorm + relu"]["errors"]) == {"y", "dx", "dparameter0", "dparameter1"}
    if dtype in ("fp32", "fp64"):
        errors = [e for name in cases.NORMALIZING for e in found[name]["errors"].values()]
        assert max(errors) < (1e-5 if dtype == "fp32" else 1e-13)


def test_batchnorm_is_no_yardstick_without_channels():
    (record,) = measured(cases.times("x", TINY, ("batchnorm + relu",), 0))
    assert "needs images" in record["skipped"]


def constant_statistics(case):
    """The normalised form with statistics that let no gradient through."""
    prepared = variants._normalized(case)

    def forward(x, coeffs):
        _, mean, variance = slaf_ext.functional.normalized_slaf(x, coeffs, case.basis, dim=case.dim)
        folded = slaf_ext.reference.fold(coeffs, mean, variance, variants.SLAF_EPS).float()
        return slaf_ext.slaf(x, folded, case.basis, dim=case.dim)

    return dataclasses.replace(prepared, forward=forward)


def another_eps(case):
    where = {"domain": None, "outside": "extrapolate"}
    module = slaf_ext.SLAF(case.degree, case.groups, **where, normalize=True, eps=0.1)
    module.coeffs.data.copy_(torch.tensor(variants.coefficients(case)))
    return variants.Prepared(lambda x, _: module(x), (module.coeffs,), bases.get(case.basis), normalized=True)


@pytest.mark.parametrize(("make", "said"), [(constant_statistics, "dx is off by"), (another_eps, "y is off by")])
def test_a_wrong_normalised_form_is_refused(monkeypatch, make, said):
    monkeypatch.setitem(variants.OTHERS, "normalized", make)
    case = dataclasses.replace(TINY, shape=(2, 16, 5, 5), sharing="channel")
    (record,) = measured(cases.times("x", case, ("normalized",), 0))
    assert said in record["refused"]


def off_by_a_little(case):
    return lambda x, coeffs: slaf_ext.slaf(x, coeffs, case.basis) * 1.02


def off_by_less(case):
    return lambda x, coeffs: slaf_ext.slaf(x, coeffs, case.basis) * 1.0005


def wrong_gradient(case):
    return lambda x, coeffs: slaf_ext.slaf(x, coeffs.detach(), case.basis) + 0 * coeffs.sum()


def not_a_number(case):
    return lambda x, coeffs: slaf_ext.slaf(x, coeffs, case.basis) * float("nan")


def of_another_dtype(case):
    return lambda x, coeffs: slaf_ext.slaf(x, coeffs, case.basis).double()


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (off_by_a_little, "y is off by"),
        (off_by_less, "y is off by 5.0e-04 of its largest value; the limit for fp32 is 1e-04"),
        (wrong_gradient, "dcoeffs is off by"),
        (not_a_number, "y is off by inf"),
    ],
)
def test_a_wrong_variant_is_refused_before_it_is_timed(monkeypatch, form, said):
    monkeypatch.setitem(variants.POLYNOMIALS, "fused", (form, False))
    unit = cases.times("x", TINY, ("relu", "fused"), 0)
    (record,) = (r for r in measured(unit) if r["variant"] == "fused")
    assert said in record["refused"]
    assert "seconds" not in record


def test_an_output_of_another_dtype_is_refused(monkeypatch):
    monkeypatch.setitem(variants.POLYNOMIALS, "fused", (of_another_dtype, False))
    (record,) = measured(cases.times("x", dataclasses.replace(TINY, passes="forward"), ("fused",), 0))
    assert "float64" in record["refused"]


def test_powers_lose_digits_and_are_refused_where_none_is_left():
    case = dataclasses.replace(TINY, degree=32)
    found = {r["variant"]: r for r in measured(cases.times("x", case, ("fused", "horner"), 0))}
    assert "refused" in found["horner"]
    assert max(found["fused"]["errors"].values()) < 1e-5


def test_the_oracle_agrees_with_numpy():
    import numpy as np

    case = dataclasses.replace(TINY, degree=5)
    x, g = measure.inputs(case)
    coeffs = variants.coefficients(case)
    t = x.detach().double().numpy()
    chebyshev = np.polynomial.chebyshev
    outputs = {
        "y": torch.tensor(chebyshev.chebval(t, coeffs)),
        "dx": g.double() * torch.tensor(chebyshev.chebval(t, chebyshev.chebder(coeffs))),
        "dcoeffs": torch.tensor(g.double().numpy() @ chebyshev.chebvander(t, 5)),
    }
    basis = bases.get("chebyshev")
    found = oracle.errors(case, coeffs, basis, x.detach(), g, outputs, basis)
    assert max(found.values()) < 1e-13
    outputs["dx"] = outputs["dx"] * 1.001
    assert oracle.errors(case, coeffs, basis, x.detach(), g, outputs, basis)["dx"] == pytest.approx(1e-3)


def test_the_oracle_of_the_normalised_form_agrees_with_numpy():
    import numpy as np

    case = dataclasses.replace(TINY, shape=(6, 2, 5), sharing="channel", degree=4)
    x, g = (t.detach().double() for t in measure.inputs(case))
    coeffs, eps, basis = variants.coefficients(case), 0.01, bases.get("chebyshev")

    def zs(t):
        """The normalised basis functions of each channel, first the constant one: (channel, element, k)."""
        phi = np.polynomial.chebyshev.chebvander(np.moveaxis(t, 1, 0).reshape(2, -1), 4)
        z = (phi - phi.mean(1, keepdims=True)) / np.sqrt(phi.var(1, keepdims=True) + eps)
        z[..., 0] = 1
        return z

    def back(values):
        return torch.tensor(np.moveaxis(values.reshape(2, 6, 5), 0, 1))

    seed = np.moveaxis(g.numpy(), 1, 0).reshape(2, -1)
    dx = np.empty(x.shape)
    for index in np.ndindex(*x.shape):  # central differences
        step = np.zeros(x.shape)
        step[index] = 1e-5
        above, below = (np.sum(seed * np.einsum("cek,ck->ce", zs(x.numpy() + s), coeffs)) for s in (step, -step))
        dx[index] = (above - below) / 2e-5
    outputs = {
        "y": back(np.einsum("cek,ck->ce", zs(x.numpy()), coeffs)),
        "dx": torch.tensor(dx),
        "dcoeffs": torch.tensor(np.einsum("ce,cek->ck", seed, zs(x.numpy()))),
    }
    found = oracle.normalized_errors(case, coeffs, basis, x, g, outputs, eps)
    assert max(found["y"], found["dcoeffs"]) < 1e-13
    assert found["dx"] < 1e-8
    outputs["dcoeffs"] = outputs["dcoeffs"] * 1.001
    assert oracle.normalized_errors(case, coeffs, basis, x, g, outputs, eps)["dcoeffs"] == pytest.approx(1e-3)


def test_operators_are_counted_without_views_and_allocations():
    records = measured(cases.times("x", TINY, ("relu", "fused", "horner", "compiled horner"), 0))
    counted = {r["variant"]: r["launches"] for r in records}
    # horner of degree 3: 3 products and sums, for each two products and a sum of the gradients, and what adds them up.
    assert counted["relu"] == counted["fused"] == 2
    assert counted["horner"] > 12
    assert counted["compiled horner"] is None
    x = torch.ones(4)
    with measure.OperatorCount() as found:
        torch.empty_like(x).copy_(x.view(2, 2).t().reshape(4)).add_(1)
    assert found.count == 3  # the copy in reshape, copy_ and add_


def test_bytes_that_must_move():
    case = dataclasses.replace(TINY, shape=(100,))
    moved = {v: Entry(v, case).moved_bytes / 400 for v in ("clone", "relu", "fused", "normalized")}
    assert moved == {"clone": 2, "relu": 5, "fused": 5, "normalized": 8}


def test_saved_bytes_are_those_of_x_and_the_coefficients():
    records = {r["variant"]: r for r in measured(cases.times("x", TINY, ("fused", "relu", "naive"), 0))}
    assert records["fused"]["saved_bytes"] == 4 * (64 + 4)
    assert records["relu"]["saved_bytes"] == 4 * 64
    assert records["naive"]["saved_bytes"] > 4 * 64 * 3


def test_a_new_basis_joins_the_sweep_unasked(monkeypatch):
    monkeypatch.setattr(bases, "_REGISTRY", dict(bases._REGISTRY))
    bases.register(bases.Basis("newcomer", lambda k: (1.5, 0.1, 0.25)))
    units = list(cases.every_basis("cpu"))
    assert [u.entries[0].case.basis for u in units] == list(bases.names())
    newcomer = next(u for u in units if u.entries[0].case.basis == "newcomer")
    small = tuple(dataclasses.replace(e, case=dataclasses.replace(e.case, shape=(64,))) for e in newcomer.entries)
    assert all("seconds" in r for r in measured(dataclasses.replace(newcomer, entries=small, seconds=0)))


@pytest.mark.parametrize("name", cases.PEERS)
def test_an_absent_peer_is_skipped_with_a_word(monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (record,) = measured(cases.times("x", TINY, (name,), 0))
    assert record["skipped"] == f"{name} is not installed"


def present(monkeypatch, path: str, **names) -> None:
    """Puts a module of that path, and of these names, in place of a peer's."""
    find_spec, import_module = importlib.util.find_spec, importlib.import_module

    def top(name: str) -> str:
        return name.partition(".")[0]

    def found(name, package=None):
        return object() if top(name) in (top(path), *cases.PEERS) else find_spec(name, package)

    def imported(name, package=None):
        if name == path:
            return types.SimpleNamespace(**names)
        return 1 / 0 if top(name) in cases.PEERS else import_module(name, package)

    monkeypatch.setattr("importlib.util.find_spec", found)
    monkeypatch.setattr("importlib.import_module", imported)


def test_a_peer_that_needs_a_gpu_or_does_not_import_is_skipped_with_a_word(monkeypatch):
    present(monkeypatch, "nothing")
    liger, other = measured(cases.times("x", TINY, ("liger_kernel", "torch_activation"), 0))
    assert liger["skipped"] == "Liger's PolyNorm is a Triton kernel, which needs a GPU"
    assert other["skipped"] == "torch_activation does not import here: ZeroDivisionError: division by zero"


@pytest.mark.parametrize("wrong", [False, True])
def test_peers_are_held_to_what_they_compute(monkeypatch, wrong):
    class Rational(torch.nn.Module):
        """rational_activations' version A; wrong: without the absolute values."""

        def __init__(self, cuda):
            super().__init__()
            self.numerator = torch.nn.Parameter(torch.tensor([0.1, 1.0, 1.2, 0.3, 0.2, 0.1]))
            self.denominator = torch.nn.Parameter(torch.tensor([0.1, -1.2, 0.3, -0.4]))

        def activation_function(self, x, a, b, training):
            terms = [b[i] * x ** (i + 1) for i in range(4)]
            return sum(a[i] * x**i for i in range(6)) / (1 + sum(terms if wrong else map(torch.abs, terms)))

    present(monkeypatch, "rational.torch", Rational=Rational)
    (record,) = measured(cases.times("x", TINY, ("rational_activations",), 0))
    assert "y is off by" in record["refused"] if wrong else set(record["errors"]) > {"y", "dx"}
    assert ("seconds" in record) is not wrong


# ------------------------------------------------------------ memory, networks


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_resident_growth_sees_what_is_alive_at_once():
    """Run as memory.unit_records does, in a fresh process: two arrays of 32 MiB, one by one, then both."""
    code = """
import torch
from benchmarks import environment, memory
environment.return_freed_memory()
n = 2**23
def apart():
    torch.ones(n); torch.ones(n)
def together():
    a, b = torch.ones(n), torch.ones(n)
print(memory.resident_growth(apart) / 2**20, memory.resident_growth(together) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    apart, together = map(float, done.stdout.split())
    assert apart == pytest.approx(32, rel=0.1)
    assert together == pytest.approx(64, rel=0.1)


@pytest.mark.skipif(not environment.IS_LINUX, reason="elsewhere a run is not started anew")
def test_a_run_starts_itself_with_what_steadies_it_and_leaves_the_rest_alone():
    code = """
from benchmarks import environment
environment.restart_steadily()
print(*environment.facts("cpu")["settings"].values())
"""
    given = {name: value for name, value in os.environ.items() if name not in environment._STEADY}
    for own in ({}, {"OMP_PLACES": "threads"}):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True,
                              env={**given, **own})  # fmt: skip
        assert done.stdout.split() == ["glibc.malloc.tcache_count=0", own.get("OMP_PLACES", "cores"), "true"]


def test_cores_are_counted_before_a_thread_is_bound_to_one():
    code = "from benchmarks import cases; print(cases.CORES)"
    bound = {**os.environ, "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, env=bound)
    assert int(done.stdout) == len(os.sched_getaffinity(0))


def test_memory_unit_measures_in_a_process_of_its_own():
    unit = Unit("memory", "memory", (Entry("fused", dataclasses.replace(TINY, shape=(2**20,))),), 0)
    (record,) = measured(unit)
    assert record["saved_bytes"] == 4 * (2**20 + 4)
    if sys.platform.startswith("linux"):
        assert record["peak_bytes"] == pytest.approx(2 * 4 * 2**20, rel=0.2)


def test_a_measuring_process_that_fails_says_so():
    unit = Unit("memory", "memory", (Entry("no such variant", TINY),), 0)
    (record,) = measured(unit)
    assert record["skipped"].startswith("the measuring process ended with: KeyError")


def die(entry, sender):
    os._exit(9)


def test_a_measuring_process_that_is_killed_ends_neither_the_run_nor_its_patience(monkeypatch):
    monkeypatch.setattr(memory, "_send_peak", die)
    (record,) = measured(Unit("memory", "memory", (Entry("fused", TINY),), 0))
    assert "killed" in record["skipped"]


@pytest.mark.parametrize("network", cases.NETWORKS)
def test_networks_step_with_every_activation(network, monkeypatch):
    case = Case(shape=(4,), degree=5, threads=1)  # a batch_norm over two samples magnifies what was rounded
    entries = tuple(Entry(v, case, network) for v in ("relu", "fused", "naive"))
    records = measured(Unit("networks", "network", entries, 0))
    assert all(max(r["errors"].values()) < 1e-3 and len(r["seconds"]) == 3 for r in records), records
    assert ["gradient in the coefficients" in r["errors"] for r in records] == [False, True, True]


@pytest.mark.parametrize("eagerly", [True, False])
def test_a_whole_network_is_compiled_or_refused(eagerly):
    unit = Unit(
        "networks", "network", (Entry("fused", Case(shape=(4,), degree=5, dtype="bf16"), "compiled mlp block"),), 0
    )
    with torch.compiler.set_stance("force_eager" if eagerly else "default"):
        (record,) = measured(unit)
    assert record["refused"].startswith("torch.compile compiled nothing") if eagerly else "seconds" in record, record


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (not_a_number, "the loss is off by nan"),
        (wrong_gradient, "the gradient in the coefficients is off by 1.0e+00 of its largest value"),
    ],
)
def test_a_wrong_network_is_refused(monkeypatch, form, said):
    monkeypatch.setitem(variants.POLYNOMIALS, "fused", (form, False))
    entry = Entry("fused", Case(shape=(8,), degree=5, threads=1), "mlp")
    (record,) = measured(Unit("networks", "network", (entry,), 0))
    assert said in record["refused"]


@pytest.mark.parametrize("wrong", [False, True])
def test_what_the_networks_own_rounding_loses_is_not_the_kernels(monkeypatch, wrong):
    monkeypatch.setitem(networks.LIMITS, "bf16", 1e-7)
    if wrong:
        monkeypatch.setitem(variants.POLYNOMIALS, "fused", (wrong_gradient, False))
    entry = Entry("fused", Case(shape=(8,), degree=5, dtype="bf16"), "mlp block")
    (record,) = measured(Unit("networks", "network", (entry,), 0))
    if wrong:
        assert re.search(r"coefficients is off by 1.0e\+00 .* in plain PyTorch it is off by", record["refused"])
    else:
        assert all(1e-7 < error < 0.1 for error in record["errors"].values())


# ------------------------------------------------------------------ the command


def test_without_arguments_it_measures_prints_and_keeps(tiny, capsys):
    assert command.main([]) == 0
    out, progress = capsys.readouterr()
    (path,) = results.LOCAL.glob("quick-*.jsonl")
    assert "fused" in out
    assert "MISSED" in out or "met" in out or "degree 2" in out
    assert str(path) in out
    assert path.with_suffix("").joinpath("headline.png") not in path.parent.iterdir()
    assert "100%" in progress
    found = results.load(path)
    assert len(found.units) == 2
    assert {"commit", "cpu", "torch", "date", "slaf_ext"} <= found.environment.keys()


def test_every_line_fits_80_columns(tiny, capsys, tmp_path):
    command.main(["run", "--output", str(results.LOCAL / "a.jsonl")])
    made_up("full", tmp_path / "full.jsonl")
    command.main(["report", str(tmp_path / "full.jsonl")])
    command.main(["report", str(SAMPLE)])
    command.main(["compare", str(SAMPLE), str(SAMPLE)])
    command.main(["list"])
    out = capsys.readouterr().out
    wide = [line for line in out.splitlines() if len(line) > 79 and str(results.LOCAL) not in line]
    assert not wide


def test_filters(tiny, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    assert command.main(["run", "--degree", "3", "--variant", "fused", "--output", str(path)]) == 0
    (unit,) = results.load(path).units
    assert [(e["variant"], e["case"]["degree"]) for e in unit["entries"]] == [("fused", 3)]
    assert command.main(["run", "--size", "2^6", "--degree", "2", "--output", str(tmp_path / "b.jsonl")]) == 0
    assert len(results.load(tmp_path / "b.jsonl").units) == 1


def test_filters_that_leave_nothing_make_no_file_and_say_what_there_is(tiny, monkeypatch, tmp_path, capsys):
    asked = ["run", "--size", "7", "--degree", "3", "--basis", "hermite", "--output", str(tmp_path / "a.jsonl")]
    assert command.main(asked) == 1
    said = capsys.readouterr().err
    assert "The filters leave nothing of quick." in said
    assert "--basis chebyshev; --degree 2 3; --size 2^6." in said
    monkeypatch.setattr(command, "usable_device", str)
    assert command.main(["run", "threads", "--device", "cuda", "--output", str(tmp_path / "a.jsonl")]) == 1
    assert "threads has nothing to measure on cuda; choose another preset." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_list_says_what_the_filters_can_choose(capsys):
    assert command.main(["list"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "dtype fp32; degree 0 1 2 3 4 6 8 12 16 20 24 28 32; sharing layer; layout contiguous; size 2^20" in said
    assert "degree 3 5 8 16; sharing layer channel feature; layout contiguous channels_last; size 2^12 2^20" in said
    assert "pass both forward backward" in said


@pytest.mark.parametrize("wrong", ["2^", "2^63", "-4", "many"])
def test_a_size_that_is_none_is_refused(capsys, wrong):
    with pytest.raises(SystemExit) as stop:
        command.main(["run", f"--size={wrong}"])
    assert stop.value.code == 2
    assert f"'{wrong}' is no number of elements; give it as 4096 or 2^12" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--device", "banana"], "'banana' is no device to measure on; give cpu, cuda"),
        (["run", "--device", "meta"], "'meta' is no device to measure on; give cpu, cuda"),
        (["run", "--device", "cuda:99"], "there is no cuda:99 here"),
        (["run", "quick", "--resume", "x.jsonl"], "leave out a preset, or"),
        (["run", "--degree", "3", "--device", "cpu", "--resume"], "leave out --device and --degree, or"),
        (["run", "--resume", "--output", "y.jsonl"], "leave out --output, or"),
        (["report", str(SAMPLE), "--details", "all.md"], "give that too"),
    ],
)
def test_options_that_cannot_be_followed_end_in_a_sentence(monkeypatch, tmp_path, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_of_a_device_that_is_not_here_is_not_gone_on_with(tiny, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    results.start(path, environment.facts("cpu"), {"preset": "quick", "device": "banana", "wanted": {}})
    assert command.main(["run", "--resume", str(path)]) == 1
    assert f"{path} cannot be gone on with: 'banana' is no device" in capsys.readouterr().err


def lay_out(folder: Path) -> None:
    """Places of which some take a file, and some do not."""
    (folder / "file").write_text("precious")
    (folder / "folder").mkdir()
    (folder / "README.md").write_text(f"{report.BEGIN}\n{report.END}\n")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("x", "x has no suffix, and its figures need a folder of that name; call it x.jsonl."),
        ("folder", "folder has no suffix"),
        ("folder/.", "folder has no suffix"),
        ("file.jsonl", "file cannot hold the figures, since file is a file; give another name."),
        ("file/a.jsonl", "file/a cannot hold the figures"),
        ("long" * 100 + ".jsonl", "cannot be written: File name too long."),
        ("a.folder", "a.folder is a folder; give --output a file in it, such as a.folder/run.jsonl."),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_measuring(
    tiny, monkeypatch, tmp_path, capsys, output, said
):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)
    Path("a.folder").mkdir()
    monkeypatch.setattr(command, "measure_all", None)
    before = sorted(tmp_path.rglob("*"))
    assert command.main(["run", "--output", output]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_ends_the_run_with_a_sentence(tiny, monkeypatch, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    append = results._append

    def fills_up(there, line):
        append(there if "format" in line else Path("/dev/full"), line)

    monkeypatch.setattr(results, "_append", fills_up)
    assert command.main(["run", "--output", str(path)]) == 1
    assert capsys.readouterr().err.endswith("/dev/full cannot be written: No space left on device.\n")
    assert results.load(path).units == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--figures", "file"], "file cannot hold the figures, since file is a file"),
        (["--figures", "file/in/it"], "file/in/it cannot hold the figures"),
        (["--readme", "README.md", "--figures", "file"], "file cannot hold the figures"),
        (["--readme", "README.md", "--details", "no/a.md"], "no/a.md cannot be written: there is no folder no"),
        (["--readme", "README.md", "--details", "folder"], "folder is a folder; give a file in it."),
        (["--readme", "README.md", "--figures", "figures", "--details", "no/a.md"], "there is no folder no"),
    ],
)
def test_a_report_writes_nothing_if_something_has_no_place(monkeypatch, tmp_path, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)
    before = {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}
    assert command.main(["report", str(SAMPLE), *options]) == 1
    out, err = capsys.readouterr()
    assert said in err
    assert (out, err.count("\n")) == ("", 1)
    assert {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")} == before


@pytest.mark.skipif(not environment.IS_LINUX, reason="needs /bin/sh and a pipe that breaks")
@pytest.mark.parametrize("arguments", ["list", f"report '{SAMPLE}'"])
def test_a_reader_that_has_enough_ends_the_command_quietly(arguments):
    line = f"'{sys.executable}' -m benchmarks {arguments} | true"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("kind", ["times", "network"])
def test_a_variant_that_raises_is_skipped_with_the_first_line(monkeypatch, kind):
    def raising(case):
        raise ValueError("not this shape\nand more of it")

    monkeypatch.setitem(variants.POLYNOMIALS, "fused", (raising, False))
    case = dataclasses.replace(TINY, shape=(8,))
    entries = tuple(Entry(v, case, "mlp" if kind == "network" else None) for v in ("fused", "relu"))
    fused, relu = measured(Unit("x", kind, entries, 0))
    assert fused["skipped"] == "ValueError: not this shape"
    assert "seconds" in relu


@pytest.mark.parametrize("preset", cases.PRESETS)
def test_every_preset_can_be_filtered_to_something(preset):
    units = list(cases.PRESETS[preset]("cpu"))
    assert len({u.key for u in units}) == len(units)
    assert cases.select(units, {"variant": ["fused"]})
    assert all(e.variant in variants.names() for u in units for e in u.entries)


def test_an_interrupted_run_keeps_what_was_measured_and_resumes(tiny, monkeypatch, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    times, seen = measure.times, []

    def interrupted(unit, tick):
        seen.append(unit)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return times(unit, tick)

    monkeypatch.setitem(command.KINDS, "times", interrupted)
    assert command.main(["run", "--output", str(path)]) == 130
    assert f"--resume {path}" in capsys.readouterr().out
    first = path.read_text().splitlines()
    assert len(first) == 2
    assert command.main(["run", "--resume", str(path)]) == 0
    assert path.read_text().splitlines()[:2] == first
    assert [u.entries[0].case.degree for u in seen] == [2, 3, 3]
    assert command.main(["run", "--resume", str(path)]) == 0
    assert len(seen) == 3


def test_resume_without_a_file_takes_the_newest(tiny, capsys):
    assert command.main(["run", "--resume"]) == 1
    assert "no run to go on with" in capsys.readouterr().err
    for name in ("a", "b"):
        command.main(["run", "--output", str(results.LOCAL / f"{name}.jsonl")])
        os.utime(results.LOCAL / f"{name}.jsonl", (0, 0) if name == "a" else None)
    assert command.main(["run", "--resume"]) == 0
    assert "b.jsonl" in capsys.readouterr().out.splitlines()[-1]


def test_resume_refuses_another_environment(tiny, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    command.main(["run", "--output", str(path)])
    text = path.read_text()
    path.write_text(text.replace(f'"torch":"{torch.__version__}"', '"torch":"1.0"'))
    assert command.main(["run", "--resume", str(path)]) == 1
    assert "measured with torch '1.0'" in capsys.readouterr().err


def test_ctrl_c_in_a_real_process(tmp_path):
    for attempt in range(3):
        path = tmp_path / f"{attempt}.jsonl"
        run = subprocess.Popen(
            [sys.executable, "-m", "benchmarks", "run", "headline", "--variant", "relu", "--output", path],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (path.exists() and path.read_text().count("\n") >= 1) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
        # CPython drops an interrupt that comes while it runs a destructor or a callback of a weak reference.
        if "Exception ignored" not in err:
            break
    # An interrupt inside exec("…"), of which imports are full, makes CPython exit by the signal even if it was handled.
    assert run.returncode in (130, -signal.SIGINT), err
    assert "Traceback" not in err
    assert "Interrupted. Go on with" in out
    assert results.load(path).environment["device"] == "cpu"


def test_an_existing_file_is_not_overwritten(tiny, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text("precious")
    assert command.main(["run", "--output", str(path)]) == 1
    assert "exists" in capsys.readouterr().err
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        ("", "is no results file"),
        ("{]", "is no results file"),
        ("[1, 2]\n", "is no results file"),
        ('{"format": 0, "environment": {"commit": "abc"}}\n', "has format 0, and this version reads format 1"),
    ],
)
@pytest.mark.parametrize("arguments", [["report"], ["compare", str(SAMPLE)], ["run", "--resume"]])
def test_a_file_that_is_none_or_older_ends_in_a_sentence(tmp_path, capsys, arguments, content, said):
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_text(content)
    assert command.main([*arguments, str(path)]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert content is None or path.read_text() == content


def test_a_torn_line_costs_itself_alone(tiny, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    command.main(["run", "--output", str(path)])
    text = path.read_text()
    path.write_text(text[:-200])
    found = results.load(path)
    assert len(found.units) == 1
    assert found.remarks == [f"{path}, line 3: damaged, left out."]
    assert command.main(["report", str(path)]) == 0
    assert "damaged" in capsys.readouterr().err
    assert command.main(["run", "--resume", str(path)]) == 0
    assert path.read_text().startswith(text[:-200] + "\n")
    assert len(results.load(path).units) == 2


def broken(*path, **fields):
    """Changes a line of a file: at the end of the path some fields, which are taken out if they are `...`."""

    def change(line):
        place = line
        for step in path:
            place = place[step]
        place.update(fields)
        for name in [name for name, value in fields.items() if value is ...]:
            del place[name]
        return json.dumps(line)

    return change


UNITS_THAT_ARE_NONE = [
    lambda line: "[" * 100_000,
    lambda line: "[" + "1" * 5000 + "]",
    broken(records=[]),
    broken(records=None),
    broken(records=[{}]),
    broken(entries=[]),
    broken(kind="time"),
    broken(suite=3),
    broken(suite="channels"),
    broken("entries", 0, case=3),
    broken("records", 1, "case", colour="red"),
    broken("records", 1, "case", dtype="fp8"),
    broken("records", 1, "case", shape=[0]),
    broken("records", 1, "case", shape="64"),
    broken("records", 1, "case", sharing="channel"),
    broken("records", 1, "case", degree=True),
    broken("records", 1, variant=["fused"]),
    broken("records", 2, waited=...),
    broken("records", 2, errors=...),
    broken("records", 2, errors=[1]),
    broken("records", 2, seconds=[1.0, 1.0]),
    broken("records", 2, seconds=[1.0, 1.0], waited=[0, 0]),
    broken("records", 2, seconds=[1.0, 1.0, float("nan")]),
    broken("records", 2, seconds=[1.0, 1.0, 10**400]),
    broken("records", 2, seconds=...),
    broken("records", 2, saved_bytes="many"),
]


@pytest.mark.parametrize("change", UNITS_THAT_ARE_NONE)
def test_a_line_whose_fields_are_not_a_units_costs_itself_alone(tiny, tmp_path, capsys, change):
    path = tmp_path / "a.jsonl"
    command.main(["run", "--output", str(path)])
    head, first, second = path.read_text().splitlines()
    path.write_text("\n".join([head, change(json.loads(first)), second]) + "\n")
    remark = f"{path}, line 2: damaged, left out.\n"
    for arguments, times in ((["report"], 1), (["compare", str(path)], 2), (["run", "--resume"], 1)):
        capsys.readouterr()
        assert command.main([*arguments, str(path)]) == 0
        out, err = capsys.readouterr()
        assert err.count(remark) == times
        assert "degree 3" in out
    assert [u["entries"][0]["case"]["degree"] for u in results.load(path).units] == [3, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (broken(request=...), "without request"),
        (broken(request=None), "whose request is null"),
        (broken("request", preset="none of these"), 'whose request is {"preset": "none of these"'),
        (broken("request", wanted={"colour": ["red"]}), "whose request is"),
        (broken("environment", kernels=...), "without environment.kernels"),
        (broken("environment", cores="two"), 'whose environment.cores is "two"'),
    ],
)
@pytest.mark.parametrize("arguments", [["report"], ["compare", str(SAMPLE)], ["run", "--resume"]])
def test_a_damaged_first_line_ends_in_a_sentence(tmp_path, capsys, arguments, change, said):
    path = tmp_path / "a.jsonl"
    head, *units = SAMPLE.read_text().splitlines()
    path.write_text("\n".join([change(json.loads(head)), *units]))
    assert command.main([*arguments, str(path)]) == 1
    err = capsys.readouterr().err
    assert f"{path} has a damaged first line, {said}" in err
    assert err.count("\n") == 1


def test_every_table_says_what_was_skipped_refused_or_disturbed(tmp_path):
    full = made_up("full", tmp_path / "full.jsonl")
    plain = tables.sweep([full], "degrees")
    assert plain.notes == []
    for unit in full.units:
        for record in unit["records"] if unit["kind"] != "memory" else ():
            if record["variant"] == "fused":
                record["waited"] = [0.5] * 7
            if record["variant"] == "horner" and record["case"]["degree"] == 3:
                for name in ("seconds", "waited"):
                    del record[name]
                record["skipped"] = "it is not there"
    notes = tables.sweep([full], "degrees").notes
    assert notes[0] == "3: horner skipped: it is not there"
    assert notes[1].startswith("Disturbed by other processes: 0: fused; 1: fused; 2: fused; ")
    assert tables.summary([full]).notes[1].startswith("Disturbed by other processes: degree 3, 2^20 elements; ")
    assert tables.network_summary([full]).notes[1] == "Disturbed by other processes: mlp; resnet; vit."


def test_a_suite_of_which_all_was_skipped_says_why(tmp_path):
    full = made_up("degrees", tmp_path / "degrees.jsonl")
    for record in (r for unit in full.units for r in unit["records"] if r["variant"] not in cases.ROOFS):
        del record["seconds"]
        record["skipped"] = "it is not there"
    assert "0: relu skipped: it is not there" in tables.sweep([full], "degrees").notes


@pytest.mark.parametrize("subcommand", [[], ["run"], ["report"], ["compare"], ["list"]])
def test_help_teaches(subcommand, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([*subcommand, "--help"])
    assert stop.value.code == 0
    assert "usage: python -m benchmarks" in capsys.readouterr().out


# ------------------------------------------------------------ report, compare


def test_report_on_the_stored_sample(capsys, tmp_path):
    assert command.main(["report", str(SAMPLE), "--figures", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "bars met" in out
    for name in ("headline", "networks"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()


def test_the_same_numbers_draw_the_same_figure(tmp_path):
    drawn = [figures.draw_all([results.load(SAMPLE)], tmp_path / name) for name in ("a", "b")]
    assert drawn[0]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*drawn, strict=True))


def chosen_from(full: results.Results, wanted: dict) -> results.Results:
    """What a run with these filters would have in its file."""
    units = []
    for unit in full.units:
        records = [
            r for r in unit["records"] if all(cases.FILTERS[n](Entry.from_json(r)) in v for n, v in wanted.items())
        ]
        units += [{**unit, "records": records}] * bool(records)
    return dataclasses.replace(full, units=units)


def test_a_headline_of_bf16_says_so_and_is_drawn(tmp_path):
    full = made_up("headline", tmp_path / "headline.jsonl")
    bf16 = chosen_from(full, {"dtype": ["bf16"], "degree": [3]})
    made = tables.summary([bf16])
    assert made.title == ["Forward + backward: chebyshev, bf16, 2 threads"]
    assert made.rows[0][0] == "degree 3, 2^20 elements"
    drawn = figures._headline(figures._headline_groups([bf16]), "a machine of a rather long name @ 2.70GHz")
    (panel,) = drawn.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["relu", "fused"]
    assert ", bf16," in " ".join(drawn.get_suptitle().split())
    drawn.canvas.draw()
    assert drawn._suptitle.get_window_extent().width < drawn.bbox.width
    both = [bf16, chosen_from(full, {"dtype": ["fp32"], "degree": [3]})]
    made = tables.summary(both)
    assert made.title == ["Forward + backward: chebyshev, bf16 and fp32, 2 threads"]
    assert [row[0] for row in made.rows] == ["degree 3, 2^20 elements, bf16", "degree 3, 2^20 elements, fp32"]
    assert len(figures._headline(figures._headline_groups(both), "here").axes) == 2


def test_the_block_is_written_between_the_markers_and_nowhere_else(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert command.main(["report", str(SAMPLE), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "| degree 8, 2^20 elements |" in text
    assert report.regenerated(readme) == {readme: text}
    readme.write_text(text.replace("| degree 8, 2^20 elements |", "| degree 8, 2^20 elements | 0"))
    assert report.regenerated(readme)[readme] == text


def test_a_full_run_gives_every_bar_table_and_figure(tmp_path, capsys):
    made = [made_up(preset, tmp_path / f"{preset}.jsonl") for preset in ("full", *cases.ON_GPU)]
    assert [v.bar for v in bars.verdicts(made)] == list(bars.BARS)
    readme, details = tmp_path / "README.md", tmp_path / "results" / "REPORT.md"
    details.parent.mkdir()
    readme.write_text(f"before\n{report.BEGIN}\n{report.END}\nafter\n")
    written = ["--readme", str(readme), "--details", str(details), "--figures", str(tmp_path / "results" / "figures")]
    assert command.main(["report", *(str(found.path) for found in made), *written]) == 0
    short, long = readme.read_text(), details.read_text()
    assert report.regenerated(readme) == {readme: short, details: long}
    assert len(short.splitlines()) < 180
    assert all(len(line) < 120 for line in short.splitlines())
    for page, text, names in ((readme, short, ("headline", "gpu", "scaling")), (details, long, figures.FIGURES)):
        linked = {(page.parent / name).resolve() for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)}
        assert linked == {(details.parent / "figures" / f"{name}.png").resolve() for name in names}
        assert all(path.exists() for path in linked)
    for heading in report.HEADINGS.values():
        assert f"\n## {heading}\n\n" in long
    for name in figures.FIGURES:
        assert figures.origin(made) in (details.parent / "figures" / f"{name}.svg").read_text()
    details.write_text(long.replace("1.00", "1.01"))
    assert report.regenerated(readme)[details] == long


def test_the_quick_preset_has_every_bar_but_the_networks_and_a_gpus(tmp_path):
    found = [v.bar for v in bars.verdicts([made_up("quick", tmp_path / "quick.jsonl")])]
    assert found == [bar for bar in bars.BARS if bar.kind in ("times", "peak_bytes", "saved_bytes")]


@pytest.mark.parametrize(
    ("preset", "device", "seconds"),  # of 180, 1800, 100 and 60, without what comes before and after
    [("quick", "cpu", 150), ("full", "cpu", 1700), ("gpu", "cuda", 80), ("gpu-networks", "cuda", 45)],
)
def test_the_presets_say_that_they_keep_to_their_time(preset, device, seconds):
    assert sum(u.expected_seconds for u in cases.PRESETS[preset](device)) < seconds


def test_of_two_results_with_the_same_case_the_later_counts(tmp_path):
    first, second = results.load(SAMPLE), results.load(scaled(tmp_path, "fused", 3))
    both, later = (list(statistics.groups(found)) for found in ([first, second], [second]))
    assert both == later
    assert list(statistics.groups([second, first])) == list(statistics.groups([first]))


def test_the_roofs_are_what_bytes_and_multiply_adds_take(tmp_path):
    """In the invented results the copy takes 103 us, and the product, last of 8 or 9, as many times that."""
    drawn = figures.FIGURES["scaling"].chosen([made_up("degrees", tmp_path / "degrees.jsonl")])
    for (group,) in ([g for g in groups if g.case.degree == 8] for _, groups in drawn):
        moved, multiply_adds = 5 * 4 * 2**20, 3 * 8 * 2**20
        assert tables.roof(group) == pytest.approx(1.03e-4 * moved / (2 * 4 * 2**20))
        assert tables.arithmetic_roof(group) == pytest.approx(1.03e-4 * len(group) * multiply_adds / 512**3)
    labels = figures._scaling(drawn, "here").legends[0].get_texts()
    assert {"memory roof", "arithmetic roof"} < {label.get_text() for label in labels}


def test_a_summary_row_says_what_was_measured(tmp_path):
    """In the invented results of quick, variants take 1, 2, 3, … times what the copy takes, in their order."""
    full = made_up("quick", tmp_path / "quick.jsonl")
    rows = {row[0]: row[1:] for row in tables.summary([full]).rows}
    # copy, clone, relu, gelu, prelu, fused, compiled horner, compiled clenshaw, naive, horner, clenshaw
    assert rows["degree 8, 2^20 elements"] == ["618 us", "2.00", "1.17", "1.67", "1.50"]
    # copy, clone, relu, normalized, batchnorm + relu
    assert rows["normalised, degree 5, per channel"] == ["412 us", "0.80", "-", "-", "-"]


def test_a_readme_without_markers_ends_in_a_sentence(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    assert command.main(["report", str(SAMPLE), "--readme", str(readme)]) == 1
    assert "0 pairs of markers" in capsys.readouterr().err
    assert readme.read_text() == "nothing"


@pytest.mark.parametrize("readme", ["README.md", "benchmarks/README.md"])
def test_the_numbers_in_the_text_are_those_of_the_raw_files(readme):
    path = ROOT / readme
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text.partition(report.BEGIN)[2].partition(report.END)[0].strip():
        pytest.skip(f"{readme} shows no numbers")
    for written, text in report.regenerated(path).items():
        assert written.read_text(encoding="utf-8") == text
    found, pictures, _ = report.sources(path)
    drawn = list(pictures.glob("*.svg"))
    assert drawn
    assert all(figures.origin(found) in picture.read_text(encoding="utf-8") for picture in drawn)


def scaled(tmp_path: Path, variant: str, factor: float) -> Path:
    """The sample with one variant's times multiplied."""
    lines = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    for record in (r for line in lines[1:] for r in line["records"]):
        if record["variant"] == variant and "seconds" in record:
            record["seconds"] = [factor * s for s in record["seconds"]]
    path = tmp_path / f"{variant}-{factor}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_compare_names_what_became_slower(tmp_path):
    same = compare.text(results.load(SAMPLE), results.load(SAMPLE))
    assert "0 slower, 0 faster" in same
    slower = compare.text(results.load(SAMPLE), results.load(scaled(tmp_path, "fused", 10)))
    _, *regressions = re.split(r"regression\??: ", " ".join(slower.removesuffix(tables.QUESTIONABLE).split()))
    assert regressions
    assert all(
        r.startswith(("fused / relu", "mlp: fused / relu")) and r.rstrip().endswith("x 10.000") for r in regressions
    )
    faster = compare.text(results.load(SAMPLE), results.load(scaled(tmp_path, "fused", 0.1)))
    assert "regression" not in faster
    assert "faster" in faster


def test_compare_judges_fused_by_its_ratio_to_relu(tmp_path):
    """Of a machine that is half as fast, and of a relu alone that is twice as fast."""
    old = made_up("headline", tmp_path / "old.jsonl")
    wanted = {"degree": [8], "size": [2**20], "variant": ["copy", "relu", "fused"], "dtype": ["fp32"]}

    def said(name, factors):
        new = chosen_from(made_up("headline", tmp_path / f"{name}.jsonl"), wanted)
        for record in (r for unit in new.units for r in unit["records"]):
            record["seconds"] = [factors[record["variant"]] * s for s in record["seconds"]]
            record["waited"] = [0.5] * 7 if record["variant"] == "relu" else record["waited"]
        return compare.text(old, new)

    half = said("half", {"copy": 2, "relu": 2, "fused": 2})
    assert re.search(r"fused +618 us +1\.24 ms +2\.000 +[\d.]+-[\d.]+\n", half)
    assert re.search(r"fused / relu +2\.000 +2\.000 +1\.000[\d. -]*\?\n", half)
    for name in ("copy", "relu"):
        assert re.search(rf"\n{name} .* +2\.000 +[\d.]+-[\d.]+ machine slower\??\n", half)
    assert compare.MACHINE in " ".join(half.split())
    assert "0 slower, 0 faster" in half
    assert "regression" not in half
    assert tables.QUESTIONABLE in " ".join(half.split())
    faster = said("faster", {"copy": 1, "relu": 0.5, "fused": 1})
    assert "regression?: fused / relu (" in faster


@pytest.mark.parametrize("factor", [0.1, 10])
@pytest.mark.parametrize("variant", ["copy", "clone", "gelu", "prelu", "naive", "compiled horner", "batchnorm + relu"])
def test_only_what_is_ours_regresses(tmp_path, variant, factor):
    """Time and memory of everything else are the machine's, or torch's."""
    old, new = (made_up("full", tmp_path / f"{name}.jsonl") for name in ("old", "new"))
    for record in (r for unit in new.units for r in unit["records"] if r["variant"] == variant):
        record |= {"seconds": [factor * s for s in record["seconds"]]} if "seconds" in record else {}
        record |= {"peak_bytes": factor * record["peak_bytes"]} if "peak_bytes" in record else {}
    said = compare.text(old, new)
    word = "faster" if factor < 1 else "slower"
    assert re.search(rf"\n{re.escape(variant)} .* machine {word}\n", said)
    regressions = re.findall(r"regression: (.*) \(|regression: (.*) x", said)
    # A yardstick that alone became faster leaves the ratio to it larger.
    assert {name for names in regressions for name in names if name} == (
        {"normalized / batchnorm + relu"} if (variant, factor) == ("batchnorm + relu", 0.1) else set()
    )


def test_the_normalised_form_is_judged_by_its_ratio_to_its_yardstick(tmp_path):
    old, new = (made_up("headline", tmp_path / f"{name}.jsonl") for name in ("old", "new"))
    for record in (r for unit in new.units for r in unit["records"] if "seconds" in r):
        record["seconds"] = [2 * s for s in record["seconds"]]
    assert "0 slower, 0 faster" in compare.text(old, new)
    for record in (r for unit in new.units for r in unit["records"] if r["variant"] == "normalized"):
        record["seconds"] = [2 * s for s in record["seconds"]]
    said = compare.text(old, new)
    assert "2 slower, 0 faster" in said  # two layouts
    assert "regression: normalized / batchnorm + relu (" in said


def test_a_bar_is_met_or_missed_by_the_numbers(tmp_path):
    def missed(factor):
        found = bars.verdicts([results.load(scaled(tmp_path, "relu", factor))])
        return {v.bar.text for v in found if not v.met}

    assert "degree 8: fused / relu" in missed(1e-3)
    assert "degree 8: fused / relu" not in missed(1e3)


def test_memory_that_grew_is_named_and_misses_its_bar(tmp_path):
    full = made_up("full", tmp_path / "full.jsonl")
    lines = [json.loads(line) for line in full.path.read_text().splitlines()]
    for record in (r for line in lines[1:] if line["kind"] == "memory" for r in line["records"]):
        if record["variant"] == "fused":  # relu's, and twice that at degree 16
            at_16 = record["case"]["degree"] == 16
            record["peak_bytes"] = 2**21 if at_16 else 2**20
            record["saved_bytes"] = 0
    path = tmp_path / "grown.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    grown = results.load(path)
    missed = {v.bar.text for v in bars.verdicts([grown]) if "peak memory" in v.bar.text and not v.met}
    assert missed == {"degree 16: peak memory, fused / relu"}
    said = " ".join(compare.text(grown, full).split())
    assert "5 larger, 0 smaller" in said  # two degrees, three networks
    assert "regression: fused peak (chebyshev, degree 3, one polynomial: 2^24 elements;" in said
    assert "regression: mlp: fused peak x 3.000" in said
    assert "fused peak 2 MiB 2 MiB 1.000" in said


def test_sizes_leave_out_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(cases, "MEMORY", 2**30)
    assert max(u.entries[0].case.numel for u in cases.sizes("cpu")) == 2**22
    monkeypatch.setattr(cases, "MEMORY", 2**34)
    assert max(u.entries[0].case.numel for u in cases.sizes("cpu")) == 2**26


def test_disturbed_blocks_do_not_count():
    record = {
        **Entry("fused", TINY).as_json(),
        "seconds": [1.0, 1.0, 1.0, 9.0, 9.0, 9.0],
        "waited": [0, 0, 0, 0.5, 0.5, 0.5],
    }
    unit = {"suite": "x", "kind": "times", "entries": [], "records": [record]}
    (group,) = statistics.groups([results.Results(Path("x"), {}, {}, [unit])])
    assert group[0].time.high == 1.0
    assert not group[0].disturbed
    record["waited"] = [0.5] * 6
    assert group[0].disturbed
    assert group[0].time.high == 9.0


def test_memory_and_network_modules_are_what_the_kinds_name():
    assert command.KINDS["memory"] is memory.unit_records
    assert command.KINDS["network"] is networks.times


# ------------------------------------------------------------------ a GPU, without one


class OnHost:
    """What measure uses of torch.cuda, by the host: a graph notes the calls that it captured, and repeats them."""

    L2_cache_size = 300  # of which a turn of TINY's 256 bytes leaves 44
    capturing = None

    def __init__(self, *args, **kwargs):
        self.replayed = 0

    def get_device_properties(self, device):
        return self

    def replay(self):
        self.replayed += 1

    def record(self):
        OnHost.replays = 0

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 5.0

    @staticmethod
    @contextlib.contextmanager
    def within(*args, stream=None):
        yield


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(Case, "on_gpu", True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", OnHost().get_device_properties)
    for name in ("CUDAGraph", "Event", "Stream"):
        monkeypatch.setattr(torch.cuda, name, OnHost)
    for name in ("graph", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, OnHost.within)


@pytest.mark.parametrize("passes", cases.PASSES)
def test_kernels_are_timed_by_replays_over_tensors_that_take_turns(gpu, monkeypatch, passes):
    """Four of x and four of grad_output, so that three others, of more than twice L2, are read before its next turn."""
    read = []
    slaf = slaf_ext.slaf
    monkeypatch.setattr(
        slaf_ext, "slaf", lambda x, *rest, **more: (read.append(x.data_ptr()), slaf(x, *rest, **more))[1]
    )
    monkeypatch.setattr(measure, "waiting_seconds", itertools.count().__next__)  # the cores are never free
    case = dataclasses.replace(TINY, passes=passes)
    copy, fused = command.KINDS["times"](cases.times("gpu", case, ("fused",), 0), lambda what: None)
    assert (copy["variant"], fused["variant"]) == ("copy", "fused")
    assert len(set(read)) == 4
    for record in (copy, fused):
        assert record["calls"] % 4 == 0
        assert record["seconds"] == [5e-3 / record["calls"]] * 3
        assert record["waited"] == [0, 0, 0]


def test_calls_are_timed_with_the_host_on_a_gpu_too(gpu):
    rival, fused = measured(cases.times("calls", TINY, ("python function", "fused"), 0))
    assert 5e-3 / fused["calls"] not in fused["seconds"]
    assert set(rival["errors"]) == {"y", "dx", "dcoeffs"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which it would measure")
def test_a_preset_for_a_gpu_says_where_there_is_none(capsys):
    assert command.main(["run", "gpu"]) == 1
    assert capsys.readouterr().err == "gpu cannot be measured: there is no cuda here: torch finds 0 GPUs; give cpu.\n"


def test_the_cases_of_a_gpu_are_measured_reported_and_profiled(monkeypatch, tmp_path, capsys):
    """On the CPU, and small."""

    def shrunk(case):
        return dataclasses.replace(case, shape=(2, 8, 3, 3) if len(case.shape) == 4 else (8, 8)[: len(case.shape)])

    small = {name: (shrunk(case), degrees) for name, (case, degrees) in cases.FLOOR.items()}
    monkeypatch.setattr(cases, "FLOOR", small)
    monkeypatch.setattr(cases, "times", lambda *args, times=cases.times: dataclasses.replace(times(*args), seconds=0))
    asked = ["run", "gpu", "--device", "cpu", "--size", "8", "64", "144", "4096", "--pass", "backward", "both"]
    asked += ["--dtype", "fp32", "bf16", "--variant", "fused", "normalized", "python function"]
    assert command.main([*asked, "--profile"]) == 0
    assert capsys.readouterr().out == ""
    assert not results.LOCAL.exists()
    assert command.main(asked) == 0
    (path,) = results.LOCAL.glob("gpu-*.jsonl")
    found = results.load(path)
    assert {r["variant"] for u in found.units for r in u["records"]} == {"copy", "product", *asked[-3:]}
    assert all("seconds" in r for u in found.units for r in u["records"])
    assert len(found.units) == 2 * (9 + 2) + 1  # of both dtypes, and the call
    assert "bar" not in capsys.readouterr().out  # the bars are a GPU's
    rows = [row[0] for row in tables.sweep([found], "gpu").rows]
    assert rows[0] == "chebyshev 8, 2^3 elements, fp32, backward, one polynomial, contiguous"


def test_a_gpus_bars_are_shares_of_a_copys_bandwidth(tmp_path):
    """In the invented results fused takes twice as long as the copy beside it, and normalized, beside both, thrice."""
    gpu = made_up("gpu", tmp_path / "gpu.jsonl")
    shares = {(v.bar.case["passes"], v.bar.under[0], round(v.measured.median, 9)) for v in bars.floor([gpu])}
    assert shares == {
        ("forward", "fused", 2 / 2 / 2),
        ("backward", "fused", 3 / 2 / 2),
        ("forward", "normalized", 3 / 2 / 3),
        ("backward", "normalized", round(5 / 2 / 3, 9)),
    }
    made = tables.floor([gpu])
    rows = {row[0]: row[1:] for row in made.rows}
    assert rows["degree 8, per feature, forward"] == ["50.0!", "50.0!", "50.0!", "93, 86"]
    assert rows["degree 16, one row, backward"] == ["75.0!", "75.0!", "75.0!", "95, 76"]
    assert rows["degree 5, normalised, channels last, backward"] == ["83.3!", "83.3", "-", "87, 74"]
    assert "2 of 74 bars met, 0 not measured." in made.notes[0]
    for record in (r for unit in gpu.units for r in unit["records"] if r["variant"] == "copy"):
        record["seconds"] = [1.5 * s for s in record["seconds"]]
    del gpu.units[0]
    made = tables.floor([gpu])
    rows = {row[0]: row[1:] for row in made.rows}
    assert rows["degree 8, one row, forward"] == ["-", "75.0!", "75.0!", "94"]
    assert rows["degree 8, one row, backward"] == ["112.5", "112.5", "112.5", "96, 95"]
    assert "1 not measured." in made.notes[0]
    (call,) = (v for v in bars.verdicts([gpu]) if v.bar.kind == "calls")
    assert (call.measured.median, call.met) == (pytest.approx(5 / 4), True)
    assert tables.floor([made_up("quick", tmp_path / "quick.jsonl")]) is None


@pytest.mark.parametrize("presets", [["quick"], ["quick", "gpu"], ["gpu", "gpu-networks"]])
def test_the_block_says_whether_a_gpu_was_measured(tmp_path, presets):
    found = [made_up(preset, tmp_path / f"{preset}.jsonl") for preset in presets]
    block = report.block(tmp_path / "README.md", found, tmp_path / "figures", None)
    block = " ".join(block.split())  # where its lines break depends on what they say of this machine
    has_gpu = "gpu" in presets
    assert ("On a GPU: not measured." in block) is not has_gpu
    for said in (
        "figures/gpu.png",
        "Kernels on a GPU",
        "a call of 4096 elements: fused / python function",
        "an invented card",
    ):
        assert (said in block) is has_gpu
