"""What the compiler makes of the kernels: no spills and no stack frames, on every architecture of a default build."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parent.parent
ARCHITECTURES = ("80", "90", "100")


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))


def demangle(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [re.sub(r"slaf_ext::|cuda::|cpu::", "", name) for name in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    """What `nvcc -Xptxas -v` says of csrc/cuda/*.cu."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc here, so the CUDA kernels are not compiled")
    target = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    flags = ["-std=c++20", "-O3", "-Xptxas", "-v", "--threads=0", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    # Warnings are errors in our own code; torch's headers, and nvcc's pragmas seen by g++, are not ours.
    host = ["-Xcompiler=-fPIC,-Wall,-Wextra,-Werror,-Wno-unknown-pragmas", "-Werror=all-warnings"]
    includes = [argument for path in include_paths() for argument in ("-isystem", path)]
    sources = [str(path) for path in sorted(ROOT.glob("csrc/cuda/*.cu"))]
    command = [nvcc, *flags, *target, *host, *includes, "-c", *sources]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path_factory.mktemp("nvcc"))
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def kernels(report: str) -> list[tuple[str, str, int, int, int]]:
    """(architecture, name, registers, bytes of stack frame, bytes of spills) for every kernel."""
    pattern = (
        r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    found = re.findall(pattern, report, re.DOTALL)
    names = demangle([name for name, *_ in found])
    return [
        (arch, name, int(registers), int(frame), int(stores) + int(loads))
        for name, (_, arch, frame, stores, loads, registers) in zip(names, found, strict=True)
    ]


def test_no_spills(report, capsys):
    found = kernels(report)
    assert {arch for arch, *_ in found} == set(ARCHITECTURES)
    assert len(found) == report.count("Compiling entry function")
    table = defaultdict(dict)
    for arch, name, registers, _, _ in found:
        if sweep := re.match(r"void sweep<\(Walk\)(\d), Degrees<-?\d+, (\d+)>, (\w+), (\w+)>", name):
            walk, degree, has_sums, storage = sweep.groups()
            row = (storage, "with sums" if has_sums == "true" else "no sums", "uniform" if walk == "2" else "general")
            table[row][arch, int(degree)] = registers
        if sweep := re.match(r"void normalized_sweep<\(Pass\)(\d), Degrees<-?\d+, (\d+)>, (\w+)>", name):
            number, degree, storage = sweep.groups()
            table[storage, "normalised", ("moments", "centred", "in x")[int(number)]][arch, int(degree)] = registers
    degrees = sorted({degree for row in table.values() for _, degree in row})
    with capsys.disabled():
        print("\nregisters per thread, by the highest degree that a kernel serves")
        for row in sorted(table):
            for arch in ARCHITECTURES:
                counts = " ".join(f"{table[row].get((arch, degree), ''):4}" for degree in degrees)
                print(f"{row[0]:9} {row[1]:10} {row[2]:8} sm_{arch:4} {counts}")
        print(f"{'degree':35} {' '.join(f'{degree:4}' for degree in degrees)}")
    spilled = [f"sm_{arch}: {name}" for arch, name, _, frame, spills in found if frame or spills]
    assert not spilled, "\n".join(spilled)


def test_check_sees_spills():
    """The check can fail: it reads a spill where there is one."""
    text = (
        "ptxas info    : Compiling entry function '_Z1fv' for 'sm_90'\n"
        "ptxas info    : Function properties for _Z1fv\n"
        "    24 bytes stack frame, 20 bytes spill stores, 28 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers\n"
    )
    assert kernels(text) == [("90", "f()", 40, 24, 48)]
