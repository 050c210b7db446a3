"""What can be known of `make gpu` without a GPU: what its script does, and that its programs run on the CPU."""

import contextlib
import dataclasses
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sanitize
import torch

import slaf_ext
from benchmarks import __main__ as command
from benchmarks import cases, measure, results

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
OPERATORS = ["values", "ops", "tracing", "nn", "normalize", "normalize_kernels", "fold", "kan"]
FILES = [*OPERATORS, "properties", "numerics", "default_device"]
GRADIENTS = {
    "gradcheck": "test_gradcheck[ and (monomial or chebyshev or legendre)",
    "gradients": "not test_gradcheck[",
}
TESTS = ["cuda", *FILES, *GRADIENTS]
STEPS = ["build", "facts", "device", *TESTS, "memcheck", "racecheck", "benchmark", "networks", "profile"]
TOOLS = ["python3", "nvidia-smi", "compute-sanitizer", "ncu"]
TOOL = """#!/bin/sh
echo "$(basename "$0") $*"
case "$(basename "$0") $*" in
  $BROKEN) seq 40; echo "the reason"; exit 3;;
  $SLOW) exec sleep 60;;
esac
"""
# A limit of a second in place of each step's own.
TIMEOUT = """#!/bin/sh
echo "$3" >>"$LIMITS"
shift 3
exec {timeout} 1 "$@"
"""


TINY = cases.Case(shape=(64,), degree=3, threads=1)


@pytest.fixture
def gpu_script(tmp_path):
    """Runs the script with tools that print how they were called, of which some fail, or never end."""

    def run(broken="-", slow="-", without=()):
        for name in TOOLS:
            (tmp_path / name).unlink(missing_ok=True)
            if name not in without:
                (tmp_path / name).write_text(TOOL.replace("$BROKEN", broken).replace("$SLOW", slow))
                (tmp_path / name).chmod(0o755)
        environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LIMITS": str(tmp_path / "limits")}
        done = subprocess.run([SCRIPT, tmp_path / "out"], capture_output=True, text=True, env=environ)
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    return run


def outputs(tmp_path):
    return {path.stem: path.read_text() for path in (tmp_path / "out").iterdir()}


def test_every_step_runs_and_keeps_its_output(gpu_script, tmp_path):
    status, lines = gpu_script()
    assert status == 0
    assert sorted(re.sub(r"ok, \d+ s$", "ok", line) for line in lines) == sorted(f"{step}: ok" for step in STEPS)
    printed = outputs(tmp_path)
    assert sorted(printed) == sorted([*STEPS, "steps"])
    for file in FILES:
        assert printed[file] == f"python3 -m pytest --device cuda -rs tests/test_{file}.py\n"
    for step, chosen in GRADIENTS.items():
        assert printed[step] == f"python3 -m pytest --device cuda -rs tests/test_gradients.py -k {chosen}\n"
    for tool in ("memcheck", "racecheck"):
        sanitizer = f"compute-sanitizer --tool {tool} --error-exitcode 1 python3 tests/sanitize.py --device cuda\n"
        assert printed[tool] == sanitizer
    for mentioned in re.findall(r"tests/\w+\.py", " ".join(printed.values())):
        assert (ROOT / mentioned).is_file()
    for step, preset in (("benchmark", "gpu"), ("networks", "gpu-networks"), ("profile", "gpu")):
        arguments = printed[step].split(" -m benchmarks ")[1].split()
        options = command.parser().parse_args(arguments)  # exits, if it cannot be followed
        assert (options.preset, options.profile) == (preset, step == "profile")


def test_the_limits_are_under_six_minutes():
    """Steps between which there is a wait run side by side, and take as long as the slowest of them."""
    text = SCRIPT.read_text()
    before, beside, after = (
        re.findall(r"^ *step [\w$\"]+ (\d+)", part, re.MULTILINE) for part in text.split("\nwait\n")
    )
    assert len(before + beside + after) == len(re.findall(r"^ *step ", text, re.MULTILINE))
    facts, *beside = map(int, beside)
    assert max(map(int, before)) + facts + max(beside) + sum(map(int, after)) < 360


@pytest.mark.parametrize("step", ["nn", "cuda", "memcheck", "device", "facts"])
def test_a_step_that_fails_is_named_at_the_end(gpu_script, tmp_path, step):
    call = {"memcheck": "*memcheck*", "device": "nvidia-smi*", "facts": "*slaf_ext"}.get(step, f"*test_{step}.py")
    status, lines = gpu_script(broken=call)
    assert status == 1
    assert lines[-1] == f"failed: {step}"
    assert lines[-2] == "the reason"
    assert lines[-17] == f"--- {step}: failed, exit status 3; the end of {tmp_path}/out/{step}.txt:"
    assert sum(": ok, " in line for line in lines) == len(STEPS) - 1
    assert gpu_script()[0] == 0  # of an earlier run nothing is left


def test_several_steps_that_fail_are_named_at_the_end(gpu_script):
    status, lines = gpu_script(broken="*sanitize*")
    assert status == 1
    assert sorted(lines[-1].split()) == ["failed:", "memcheck", "racecheck"]
    assert lines.count("the reason") == 2


def test_a_step_that_takes_too_long_is_named_so(gpu_script, tmp_path):
    timeout = subprocess.check_output(["bash", "-c", "command -v timeout"], text=True).strip()
    (tmp_path / "timeout").write_text(TIMEOUT.format(timeout=timeout))
    (tmp_path / "timeout").chmod(0o755)
    status, lines = gpu_script(slow="*racecheck*")
    assert status == 1
    assert lines[-1] == "failed: racecheck"
    (limit,) = set(re.findall(r"--- racecheck: timed out, its limit is (\d+) s", "\n".join(lines)))
    assert limit in (tmp_path / "limits").read_text().split()


def test_without_a_build_nothing_else_is_tried(gpu_script, tmp_path):
    status, lines = gpu_script(broken="*install*")
    assert status == 1
    assert lines[-1] == "failed: build"
    assert sorted(outputs(tmp_path)) == ["build", "device", "failed", "steps"]


def test_the_sanitizers_program(monkeypatch, capsys):
    """On the CPU, where it is right; and that it sees a result that is not."""
    monkeypatch.setattr(sys, "argv", ["sanitize.py", "--device", "cpu"])
    assert sanitize.main() == 0
    assert re.search(r"^\d+ cases on cpu, 0 wrong results$", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.setattr(sanitize, "DEGREES", [4])
    monkeypatch.setattr(sanitize, "slaf", lambda x, *rest, **options: slaf_ext.slaf(x, *rest, **options) * 1.001)
    assert sanitize.main() == 1
    sentence = r"channels last, degree 4, clamp, torch.float32, offset=1: y is off by 0\.\d+"
    assert re.search(sentence, capsys.readouterr().out)


def collected(*options, **environ):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environ})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_no_test_is_bound_to_the_host_when_it_is_imported():
    """So `pytest --device cuda` can collect them all."""
    collected("--device", "meta", "tests")


def test_a_warning_of_pytest_benchmark_is_no_error(tmp_path):
    """Beside xdist it warns that it does nothing, before a test can say that it expects the warning."""
    (tmp_path / "benchmark.py").write_text("import warnings\ndef pytest_configure(config): warnings.warn('disabled')\n")
    about = tmp_path / "benchmark-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: benchmark\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[pytest11]\nbenchmark = benchmark\n")
    collected("tests/test_nn.py", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which the tests would run")
def test_a_device_that_is_not_there_gets_a_sentence():
    for device, sentence in (("cuda", "can use no GPU"), ("meta", "where nothing is computed")):
        command = [sys.executable, "-m", "pytest", "--device", device, "tests/test_nn.py"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == pytest.ExitCode.USAGE_ERROR
        assert sentence in done.stderr


# ------------------------------------------------------------------ the benchmarks of a GPU, on the CPU


class OnHost:
    """What measure uses of torch.cuda, on the host."""

    L2_cache_size = 300  # bytes, of which x of TINY takes 256

    def __init__(self, *args, **kwargs):
        pass

    def get_device_properties(self, device):
        return self

    replay = record = synchronize = __init__

    def elapsed_time(self, end):
        return 5.0

    @staticmethod
    @contextlib.contextmanager
    def within(*args, stream=None):
        yield


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(cases.Case, "on_gpu", True)
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 1e-5)
    monkeypatch.setattr(measure, "MAX_ROUNDS", 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", OnHost().get_device_properties)
    for name in ("CUDAGraph", "Event", "Stream"):
        monkeypatch.setattr(torch.cuda, name, OnHost)
    for name in ("graph", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, OnHost.within)


@pytest.mark.parametrize("passes", cases.PASSES)
def test_kernels_are_timed_by_replays_over_tensors_that_take_turns(gpu, monkeypatch, passes):
    """Four pairs of x and grad_output, so that more than twice the L2 is read before a pair's next turn."""
    read, slaf = [], slaf_ext.slaf
    counted = lambda x, *rest, **more: (read.append(x.data_ptr()), slaf(x, *rest, **more))[1]  # noqa: E731
    monkeypatch.setattr(slaf_ext, "slaf", counted)
    monkeypatch.setattr(measure, "waiting_seconds", itertools.count().__next__)  # the cores are never free
    unit = cases.times("gpu", dataclasses.replace(TINY, passes=passes), ("fused",), 0)
    copy, fused = measure.times(unit, lambda what: None)
    assert (copy["variant"], fused["variant"]) == ("copy", "fused")
    assert len(set(read)) == 4
    for record in (copy, fused):
        assert record["calls"] % 4 == 0
        assert record["seconds"] == [5e-3 / record["calls"]] * 3
        assert record["waited"] == [0, 0, 0]


def test_calls_are_timed_with_the_host_on_a_gpu_too(gpu):
    _, function, fused = measure.times(cases.times("calls", TINY, ("python function", "fused"), 0), lambda what: None)
    assert 5e-3 / fused["calls"] not in fused["seconds"]
    assert set(function["errors"]) == {"y", "dx", "dcoeffs"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which it would measure")
def test_a_preset_for_a_gpu_says_where_there_is_none(capsys):
    assert command.main(["run", "gpu"]) == 1
    assert capsys.readouterr().err == "there is no cuda here: torch finds 0 GPUs; give cpu\n"


def test_the_cases_of_a_gpu_are_measured_and_profiled(monkeypatch, tmp_path, capsys):
    """On the CPU, and small."""

    def shrunk(case):
        return dataclasses.replace(case, shape=(2, 8, 3, 3) if len(case.shape) == 4 else (8, 8)[: len(case.shape)])

    small = [(name, shrunk(case), *rest) for name, case, *rest in cases._FLOOR]
    monkeypatch.setattr(cases, "_FLOOR", small)
    monkeypatch.setattr(measure, "MAX_ROUNDS", 3)
    asked = ["run", "gpu", "--device", "cpu", "--numel", "8", "64", "144", "4096", "--passes", "backward", "both"]
    asked += ["--dtype", "fp32", "bf16", "--variant", "fused", "normalized", "python function"]
    assert command.main([*asked, "--profile"]) == 0
    assert capsys.readouterr().out == ""
    path = tmp_path / "gpu.jsonl"
    assert command.main([*asked, "--output", str(path)]) == 0
    found = results.load(path)
    assert {row["variant"] for row in found.rows} == {"copy", "product", *asked[-3:]}
    assert all(row["blocks"] for row in found.rows)
    assert len({row["line"] for row in found.rows}) == 2 * (9 + 2) + 1  # of both dtypes, and the call


def test_a_run_needs_no_pandas(tmp_path):
    """A machine with a GPU may have torch alone, and no network; the raw file is what counts there."""
    run = ["run", "headline", "--variant", "relu", "--numel", "4096", "--output", str(tmp_path / "raw.jsonl")]
    code = f"import sys; sys.modules['pandas'] = None; from benchmarks.__main__ import main; sys.exit(main({run}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pandas is not installed; elsewhere: python -m benchmarks report" in done.stdout
    assert len((tmp_path / "raw.jsonl").read_text().splitlines()) == 2
