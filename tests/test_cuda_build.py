"""What the compiler makes of the kernels: no spills and no stack frames, on every architecture of a default build."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest
import setuptools
import torch
from machine_code import ARCHITECTURES, compile_units, resources

ROOT = Path(__file__).parent.parent


def test_no_spills(cuda_objects, capsys):
    _, report = cuda_objects
    found = resources(report)
    assert {arch for arch, *_ in found} == set(ARCHITECTURES)
    assert len(found) == report.count("Compiling entry function")
    table = defaultdict(lambda: defaultdict(int))
    kinds = {"0": "general", "2": "uniform", "3": "powers"}

    def note(storage, access, direction, kind, arch, degree, registers):
        row = table[storage, ("runs", "columns")[int(access)], direction, kind]
        row[arch, int(degree)] = max(row[arch, int(degree)], registers)

    for arch, name, registers, _, _ in found:
        if form := re.match(
            r"void sweep<Form<\(Walk\)(\d), (\w+), (\w+), \(Access\)(\d), \d+>, Degrees<-?\d+, (\d+)>, (\w+)>", name
        ):
            walk, backward, edges, access, degree, storage = form.groups()
            kind = "edges" if edges == "true" else kinds[walk]
            direction = "backward" if backward == "true" else "forward"
            note(storage, access, direction, kind, arch, degree, registers)
        if form := re.match(
            r"void normalized_sweep<NormalizedForm<\(Pass\)(\d), \(Walk\)(\d), \(Access\)(\d), \d+>, "
            r"Degrees<-?\d+, (\d+)>, (\w+)>",
            name,
        ):
            number, walk, access, degree, storage = form.groups()
            step = ("moments", "centred", "in x")[int(number)]
            note(storage, access, step, kinds[walk], arch, degree, registers)
    degrees = sorted({degree for row in table.values() for _, degree in row})
    with capsys.disabled():
        print("\nregisters per thread, at most, of the kernels whose highest degree this is")
        for row in sorted(table):
            for arch in ARCHITECTURES:
                counts = " ".join(f"{table[row].get((arch, degree), ''):4}" for degree in degrees)
                print(f"{row[0]:9} {row[1]:8} {row[2]:10} {row[3]:8} sm_{arch:4} {counts}")
        print(f"{'degree':46} {' '.join(f'{degree:4}' for degree in degrees)}")
    spilled = [f"sm_{arch}: {name}" for arch, name, _, frame, spills in found if frame or spills]
    assert not spilled, "\n".join(spilled)


@pytest.mark.slow
def test_older_torch_builds_with_an_older_standard(nvcc, tmp_path):
    """torch 2.11 asks nvcc for C++17. These units include every header."""
    compile_units(nvcc, ROOT, tmp_path, ".*_double$|slaf$|normalized$|panel$", "c++17")


def test_check_sees_spills():
    """The check can fail: it reads a spill where there is one."""
    text = (
        "ptxas info    : Compiling entry function '_Z1fv' for 'sm_90'\n"
        "ptxas info    : Function properties for _Z1fv\n"
        "    24 bytes stack frame, 20 bytes spill stores, 28 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers\n"
    )
    assert resources(text) == [("90", "f()", 40, 24, 48)]


def configure(monkeypatch, tmp_path, torch_cuda=None, nvcc=None, cxx=None, asked=None, compilers=None) -> str | None:
    """What setup.py ends with where torch has this CUDA and nvcc and g++ tell these versions; None for a build."""
    (tmp_path / "bin").mkdir()
    for name, says in (("nvcc", nvcc and f"Cuda compilation tools, release {nvcc}"), ("g++", cxx)):
        if says:
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho '{says}'\n")
            (tmp_path / "bin" / name).chmod(0o755)
    for name, value in (("CUDA_HOME", str(tmp_path)), ("SLAF_EXT_CUDA", asked), ("TORCH_CUDA_ARCH_LIST", "9.0")):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    compiler = str(tmp_path / "bin/g++") if cxx else "g++"
    monkeypatch.setenv("PATH", os.environ["PATH"])  # to which setup.py adds
    for variable, command in {"CXX": compiler, "CC": compiler, **(compilers or {})}.items():
        monkeypatch.setenv(variable, command)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(torch.utils.cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    except SystemExit as end:
        return str(end)
    return None


@pytest.mark.parametrize(
    ("options", "ends", "sentence"),
    [
        ({}, False, "the CPU kernels alone are built, as torch has no CUDA; SLAF_EXT_CUDA=1 builds"),
        ({"torch_cuda": "13.0"}, False, "the CPU kernels alone are built: there is no nvcc at .*set CUDA_HOME to it"),
        ({"torch_cuda": "13.0", "asked": "0"}, False, "^$"),
        ({"asked": "1"}, True, "SLAF_EXT_CUDA=1 asks for the CUDA kernels and there is no nvcc at .*set CUDA_HOME"),
        ({"asked": "yes"}, True, "SLAF_EXT_CUDA is 'yes'; set it to 1"),
        (
            {"torch_cuda": "13.0", "nvcc": "12.8"},
            True,
            "is CUDA 12.8 and torch was built with CUDA 13.0; set CUDA_HOME to a toolkit of CUDA 13.0, or SLAF_",
        ),
        ({"asked": "1", "nvcc": "ask"}, True, "is CUDA of no release and C.*20 takes 12.1 or later; set CUDA_HOME"),
        ({"asked": "1", "nvcc": "11.8"}, True, "is CUDA 11.8 and C.*20 takes 12.1 or later; set CUDA_HOME to .* 12.1"),
        ({"asked": "1", "nvcc": "13.0", "cxx": "9.4.0"}, True, r"is version 9.4.0; set CXX to g\+\+ 11 or later"),
        ({"cxx": "9.4.0"}, True, r"is version 9.4.0; set CXX to g\+\+ 11 or later"),
        ({"cxx": "4.2.1 (Apple clang)", "asked": "0"}, False, "^$"),
        ({"compilers": {"CXX": "no-such-g++"}}, True, r"no-such-g\+\+ does not run \(.*; set CXX to g\+\+ 11 or later"),
        ({"compilers": {"CXX": "env g++"}, "asked": "0"}, False, "^$"),
        (
            {"asked": "1", "nvcc": "13.0", "compilers": {"CC": "no-such-gcc"}},
            True,
            r"no-such-gcc does not run .*; set CC to g\+\+ 11 or later",
        ),
        ({"torch_cuda": "13.0", "nvcc": "13.0", "cxx": "13.2.0"}, False, "^$"),
    ],
)
def test_configuration_ends_in_a_build_or_a_sentence(options, ends, sentence, tmp_path, monkeypatch, capsys):
    end = configure(monkeypatch, tmp_path, **options)
    assert (end is not None) == ends
    assert re.search(sentence, end or capsys.readouterr().out)


@pytest.mark.parametrize(
    ("found", "reasons", "advice"),
    [
        ({"setuptools": "65.5.0"}, "setuptools is 65.5.0;", "pip install 'setuptools>=77'"),
        ({"torch": "2.9.1+cpu"}, "torch is 2.9.1+cpu;", "pip install 'torch>=2.10'"),
        ({"pybind11": "2.12.0", "numpy": None}, "pybind11 is 2.12.0, numpy is missing;", "'pybind11>=2.13' numpy"),
        ({"ninja": None}, "ninja is missing;", "pip install ninja"),
    ],
)
def test_a_requirement_that_is_missing_or_too_old_is_named_with_the_rest(found, reasons, advice, tmp_path, monkeypatch):
    """As under pip install --no-build-isolation, where pip does not look."""

    def version(name):
        if found.get(name, "999") is None:
            raise metadata.PackageNotFoundError(name)
        return found.get(name, "999")

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(shutil, "which", lambda name: found.get(name, f"/usr/bin/{name}"))
    end = configure(monkeypatch, tmp_path, asked="0")
    assert end.startswith(f"slaf_ext: {reasons} the build needs setuptools>=77, torch>=2.10, pybind11>=2.13, ninja, ")
    assert end.endswith(advice)


def test_a_build_without_any_requirement_ends_in_a_sentence():
    """Without site-packages there is none; setup.py must say so before it imports one."""
    done = subprocess.run([sys.executable, "-S", "setup.py", "sdist"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("slaf_ext: setuptools is missing, torch is missing, pybind11 is missing, ")
    assert len(done.stderr.splitlines()) == 1


def test_ninja_is_found_beside_a_python_that_is_not_activated(tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "ninja").touch(0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert configure(monkeypatch, tmp_path, cxx="13.2.0", asked="0") is None
    assert shutil.which("ninja") == str(tmp_path / "scripts" / "ninja")
