"""The check of wheels refuses what another torch or another machine could not load."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / ".ci" / "wheel.py"
SHIM = 'extern "C" int torch_list_size(); extern "C" int size() { return torch_list_size(); }'
NEWER = 'extern "C" int torch_newer(); extern "C" int newer() { return torch_newer(); }'
CPLUSPLUS = 'namespace c10 { void check(int); } extern "C" void call() { c10::check(1); }'
STANDARD = 'namespace std { void __throw_bad_alloc(); } extern "C" void call() { std::__throw_bad_alloc(); }'
STREAM = 'extern "C" int torch_get_cuda_stream(); extern "C" int call() { return torch_get_cuda_stream(); }'
C_OF_TORCH = 'extern "C" int cpuinfo_initialize(); extern "C" int call() { return cpuinfo_initialize(); }'
FOREIGN = 'extern "C" int foreign(); extern "C" int call() { return foreign(); }'

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the check reads libraries of Linux")


def library(path, code, *flags):
    command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", path, *flags]
    subprocess.run(command, input=code, text=True, check=True)
    return path


def examined(folder, code, *flags, name="slaf_ext/_C.cpython-311-x86_64-linux-gnu.so"):
    """What the check says of a wheel with one library, beside an oldest torch that has one function."""
    headers = folder / "oldest/torch/include/torch/csrc/stable/c/shim.h"
    headers.parent.mkdir(parents=True)
    headers.write_text(
        "AOTITorchError torch_list_size(StableListHandle list_handle, size_t* size);\n"
        "AOTITorchError torch_get_cuda_stream(void** ret_stream);"
    )
    wheel = folder / "slaf_ext-0.1.0-cp311-cp311-linux_x86_64.whl"
    with ZipFile(wheel, "w") as archive:
        archive.write(library(folder / "library.so", code, *flags), name)
        for other in ("slaf_ext/py.typed", "slaf_ext/training/__init__.py", "slaf_ext-0.1.0.dist-info/RECORD"):
            archive.writestr(other, "")
    return run(wheel, folder / "oldest")


def run(wheel, headers):
    return subprocess.run([sys.executable, SCRIPT, wheel, headers], capture_output=True, text=True)


def test_what_every_torch_has_passes(tmp_path):
    done = examined(tmp_path, SHIM)
    assert done.returncode == 0, done.stderr
    assert "of torch  1 functions of the stable ABI" in done.stdout


@pytest.mark.parametrize(
    ("code", "flags", "sentence"),
    [
        (CPLUSPLUS, [], "takes c10::check(int) from torch's libraries or from nowhere"),
        (C_OF_TORCH, [], "takes cpuinfo_initialize from torch's libraries or from nowhere"),
        (NEWER, [], "calls torch_newer, which the oldest torch does not have"),
        (SHIM, ["-Wl,-rpath,/home/me/lib"], "looks for libraries in /home/me/lib"),
        (SHIM, ["-Wl,-rpath,/home/me/lib", "-Wl,--disable-new-dtags"], "looks for libraries in /home/me/lib"),
    ],
)
def test_what_others_lack_is_refused(code, flags, sentence, tmp_path):
    done = examined(tmp_path, code, *flags)
    assert done.returncode == 1
    assert f"linux-gnu.so {sentence}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_another_library_is_refused(tmp_path):
    library(tmp_path / "libforeign.so", 'extern "C" int foreign() { return 1; }')
    done = examined(tmp_path, FOREIGN, f"-L{tmp_path}", "-lforeign")
    assert done.returncode == 1
    assert "links libforeign.so, which not every machine has" in done.stderr


def test_cuda_kernels_of_a_build_without_cuda_are_refused(tmp_path):
    """A torch with CUDA could not load them, as torch keeps its symbols to the libraries that link it."""
    done = examined(tmp_path, STREAM)
    assert done.returncode == 1
    assert "calls torch_get_cuda_stream and does not link libtorch_cuda.so" in done.stderr
    (tmp_path / "with").mkdir()
    library(tmp_path / "libtorch_cuda.so", 'extern "C" int torch_get_cuda_stream() { return 1; }')
    done = examined(tmp_path / "with", STREAM, f"-L{tmp_path}", "-ltorch_cuda")
    assert done.returncode == 0, done.stderr


def test_torch_does_not_stand_in_for_libstdcxx(tmp_path):
    """Torch's libraries hold some of its functions, and the linker takes those that it meets first."""
    library(tmp_path / "libc10.so", "namespace std { void __throw_bad_alloc() {} }")
    done = examined(tmp_path, STANDARD, f"-L{tmp_path}", "-lc10")
    assert "takes std::__throw_bad_alloc() from torch's libraries" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    (tmp_path / "after").mkdir()
    done = examined(tmp_path / "after", STANDARD, f"-L{tmp_path}", "-lstdc++", "-lc10")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["tests/test_x.so", "csrc/ops.so", "slaf_ext/ops.o", "slaf_ext/csrc/ops.cpp"])
def test_a_stray_file_is_refused(name, tmp_path):
    assert f"{name} does not belong in a wheel" in examined(tmp_path, SHIM, name=name).stderr


def test_without_libraries_or_headers_nothing_is_checked(tmp_path):
    assert "has no compiled part" in examined(tmp_path, SHIM, name="slaf_ext/ops.py").stderr
    assert "has no headers of torch" in run(tmp_path / "any.whl", tmp_path).stderr


def test_versions_are_compared_as_numbers():
    newest = runpy.run_path(SCRIPT)["newest"]
    assert newest("GLIBC", ["GLIBC_2.14", "GLIBC_2.9", "GLIBC_PRIVATE", "GLIBCXX_3.4", ""]) == "2.14"
    assert newest("GLIBCXX", ["GLIBC_2.14"]) == "none"


@pytest.mark.slow
def test_the_wheel_passes(sdist, tmp_path):
    build = ["-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, sdist]
    environment = {**os.environ, "SLAF_EXT_CUDA": "0"}
    done = subprocess.run([sys.executable, *build], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    oldest = ROOT / ".venv/oldest"
    done = run(wheel, oldest if oldest.exists() else Path(torch.__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
