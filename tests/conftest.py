"""`pytest --device cuda` runs the tests of the operators on a GPU: every tensor that they make is made there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the tests make their tensors: cpu (the default) or cuda")


def pytest_configure(config):
    device = config.getoption("--device")
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise pytest.UsageError(f"--device is {device} and this torch can use no GPU; leave the option out")
    torch.set_default_device(device)


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


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
