"""The operators' tests under AddressSanitizer and UndefinedBehaviorSanitizer, which end at the first fault."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
import pytest
import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parent.parent
FILES = "values ops gradients derivatives kan normalize_kernels fold numerics fuzz"

pytestmark = [pytest.mark.slow, pytest.mark.cpu("the sanitizers watch the host's code")]


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """A folder that holds the package, built with the sanitizers, and the tests."""
    folder = tmp_path_factory.mktemp("sanitized")
    for name in ("slaf_ext", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    # Calls of the address checks compile in a quarter of the time that checks in place take.
    options = (
        "g++ -std=c++20 -O1 -fPIC -fvisibility=hidden -Wno-psabi -fno-wrapv -fsanitize=address,undefined "
        "-fno-sanitize-recover=all --param asan-instrumentation-with-call-threshold=0 "
        "-DTORCH_TARGET_VERSION=0x020a000000000000 -DTORCH_EXTENSION_NAME=_C"
    )
    includes = [pybind11.get_include(), *include_paths(), sysconfig.get_path("include")]
    compiler = [*shlex.split(options), *(f"-isystem{path}" for path in includes)]

    def compile(source):
        built = folder / f"{source.stem}.o"
        subprocess.run([*compiler, "-c", source, "-o", built], check=True)
        return built

    # The units of the storage types take longest.
    sources = sorted(ROOT.glob("csrc/cpu/*.cpp"), reverse=True) + sorted(ROOT.glob("csrc/*.cpp"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile, sources))
    library = folder / "slaf_ext" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    torch_libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10"]
    subprocess.run([*compiler, "-shared", *objects, "-o", library, *torch_libraries], check=True)
    return folder


def run(folder, *arguments, **variables):
    """What Python prints there."""
    runtimes = [
        subprocess.check_output(["g++", f"-print-file-name=lib{name}.so"], text=True).strip()
        for name in ("asan", "ubsan")
    ]
    # Python itself leaks what it holds until it ends, and pytest would swallow a report on standard error.
    options = f"detect_leaks=0:log_path={folder}/fault"
    sanitizers = {"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": options, "UBSAN_OPTIONS": options}
    environment = os.environ | sanitizers | variables | {"PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    faults = "".join(report.read_text() for report in folder.glob("fault*"))
    assert not faults, faults[:5000]
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


def test_the_operators_tests(sanitized):
    assert str(sanitized) in run(sanitized, "-c", "import slaf_ext; print(slaf_ext.extension._C.__file__)")
    files = [f"tests/test_{name}.py" for name in FILES.split()]
    # The sanitizer cannot allocate in a limited address space either.
    without_limit = "not slow", "-k", "not no_memory_for_a_result"
    run(sanitized, "-m", "pytest", "-q", "-n", "auto", "-p", "no:cacheprovider", "-m", *without_limit, *files)


@pytest.mark.parametrize("isa", ["default", "avx2"])
def test_hostile_calls_of_other_instruction_sets(isa, sanitized):
    run(sanitized, "tests/fuzz.py", "--calls", "1000", "--seed", "20", ATEN_CPU_CAPABILITY=isa)
