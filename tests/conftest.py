"""`pytest --device cuda` runs the tests of the operators on a GPU: every tensor that they make is made there.

`pytest --device meta --collect-only` shows, without a GPU, what a test file mixes with the host when it is imported.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emulation import Emulator
from machine_code import compile_units

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser):
    where = "where the tests make their tensors: cpu (the default), cuda, or meta, with --collect-only"
    parser.addoption("--device", default="cpu", choices=["cpu", "cuda", "meta"], help=where)


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "slow: takes longer than the developer waits; `make test` leaves it to `make test-all`"
    )
    config.addinivalue_line("markers", "cpu(reason): of the CPU by nature, and skipped on another device")
    device = config.getoption("--device")
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(f"--device is {device} and this torch can use no GPU; leave the option out")
    if device == "meta" and not config.getoption("collectonly"):
        raise pytest.UsageError("--device is meta, where nothing is computed; add --collect-only")
    if device != "cpu":
        torch.set_default_device(device)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(config, items):
    for item in items:
        if "cuda_objects" in getattr(item, "fixturenames", ()):  # minutes of nvcc
            item.add_marker("slow")
    if config.getoption("--device") == "cpu":
        return
    for item in items:
        for marker in item.iter_markers("cpu"):
            item.add_marker(pytest.mark.skip(*marker.args))


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    """The source distribution of what git tracks, unpacked."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of git, which tells what a source distribution must hold")
    folder = tmp_path_factory.mktemp("sdist")
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "checkout" / name)
    build = "from setuptools import build_meta; print(build_meta.build_sdist('..'))"
    environment = {**os.environ, "SLAF_EXT_CUDA": "0"}
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=folder / "checkout", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    archive = done.stdout.splitlines()[-1]
    shutil.unpack_archive(folder / archive, folder)
    return folder / archive.removesuffix(".tar.gz")


@pytest.fixture(scope="session")
def nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    found = shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))
    return found or pytest.skip("there is no nvcc here, so no CUDA kernel is compiled")


@pytest.fixture(scope="session")
def cuda_objects(nvcc, request, tmp_path_factory):
    """The folder with the objects of csrc/cuda/*.cu, as the source distribution has them, and what nvcc said."""
    root = request.getfixturevalue("sdist") if (ROOT / ".git").exists() else ROOT
    folder = tmp_path_factory.mktemp("nvcc")
    return folder, compile_units(nvcc, root, folder, "")


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """The CUDA kernels compiled for the CPU, without a sanitizer."""
    return Emulator(tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="session", params=["address", "thread"])
def sanitized_emulator(request, tmp_path_factory):
    return Emulator(tmp_path_factory.mktemp("emulation"), request.param)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """Limits torch to one thread, since synchronising threads costs networks this small more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
