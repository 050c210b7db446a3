"""Builds the extension; everything else about the package stands in pyproject.toml."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

root = Path(__file__).parent
# Torch looks for ninja on PATH alone, where pip does not put it unless the environment is activated.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])


def check_requirements() -> None:
    """Ends the build where one of its requirements is missing or too old; without isolation, pip does not look."""
    listed = re.search(r"^requires = (\[.*\])", (root / "pyproject.toml").read_text(), re.MULTILINE)
    needed, unmet, reasons = ast.literal_eval(listed[1]), [], []
    for requirement in needed:
        name, _, least = requirement.partition(">=")
        try:
            found = metadata.version(name) if name != "ninja" else shutil.which(name)
        except metadata.PackageNotFoundError:
            found = None
        if not found or (least and numbers(found) < numbers(least)):
            unmet.append(requirement)
            reasons.append(f"{name} is {found or 'missing'}")
    if unmet:
        advice = f"the build needs {', '.join(needed)}: pip install {shlex.join(unmet)}"
        raise SystemExit(f"slaf_ext: {', '.join(reasons)}; {advice}")


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


check_requirements()

import pybind11
import torch
from setuptools import setup
from torch.utils import cpp_extension

headers = [str(path.relative_to(root)) for path in [*root.glob("csrc/**/*.h"), *root.glob("csrc/**/*.cuh")]]

# The stable ABI of torch 2.10: one binary serves every torch from there on.
common = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-O3"]
# Python's own flags hold -fwrapv, under which indices take twice the instructions, and -g, with which compiling takes
# a third longer.
cxx = [*common, "-fno-wrapv", "-g0", "-ffp-contract=fast", "-fno-trapping-math", "-fvisibility=hidden", "-Wno-psabi"]


def check_compiler(variable: str, otherwise: str) -> None:
    """Ends the build if the compiler that a variable names, or else `otherwise`, is missing or too old for C++20."""
    command, advice = os.environ.get(variable, otherwise), f"set {variable} to g++ 11 or later, for C++20."
    try:
        banner, version = (
            subprocess.check_output([*shlex.split(command), option], text=True).strip()
            for option in ("--version", "-dumpversion")
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"slaf_ext: {command} does not run ({error}); {advice}") from None
    if "clang" not in banner and numbers(version) < [11]:
        raise SystemExit(f"slaf_ext: {command} is version {version}; {advice}")


def cuda_home() -> Path | None:
    """Where CUDA is, if its kernels are built: if SLAF_EXT_CUDA is 1, or it is unset and torch and nvcc are there."""
    wanted, asked = torch.version.cuda, os.environ.get("SLAF_EXT_CUDA")
    if asked not in (None, "0", "1"):
        raise SystemExit(f"slaf_ext: SLAF_EXT_CUDA is {asked!r}; set it to 1 to build the CUDA kernels, or to 0.")
    if asked is None and not wanted:
        print("slaf_ext: the CPU kernels alone are built, as torch has no CUDA; SLAF_EXT_CUDA=1 builds all.")
    if not (int(asked) if asked else wanted):
        return None
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = Path(named, "bin/nvcc") if named else Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    if not nvcc.exists():
        advice = f"there is no nvcc at {nvcc}; install the CUDA toolkit {wanted or ''} or set CUDA_HOME to it"
        if asked:
            raise SystemExit(f"slaf_ext: SLAF_EXT_CUDA={asked} asks for the CUDA kernels and {advice}.")
        print(f"slaf_ext: the CPU kernels alone are built: {advice} for the CUDA kernels.")
        return None
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = (re.findall(r"release ([\d.]+)", told) or ["of no release"])[0]
    version = numbers(release)[:2]
    if version < [12, 1] or (wanted and version[0] != numbers(wanted)[0]):
        reason = f"torch was built with CUDA {wanted}" if wanted else "C++20 takes 12.1 or later"
        raise SystemExit(
            f"slaf_ext: {nvcc} is CUDA {release} and {reason}; set CUDA_HOME to a toolkit of CUDA "
            f"{wanted or '12.1 or later'}, or SLAF_EXT_CUDA=0 to do without."
        )
    check_compiler("CC", "g++")  # nvcc's own compiler: torch hands it CC, or nvcc finds g++
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0+PTX" if version >= [12, 8] else "8.0;9.0+PTX")
    # nvcc may be a script that calls the real one, which tells where it lives.
    told = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    home = re.search(r"TOP=(\S+)", told)
    return Path(home[1]).resolve() if home else nvcc.resolve().parent.parent


def extension(name: str, sources: list[str], libraries=(), **more) -> cpp_extension.CppExtension:
    # Torch's libraries follow, and hold some functions of libstdc++, not the same ones in every torch.
    libraries = [*(["stdc++"] if sys.platform == "linux" else []), *libraries]
    return cpp_extension.CppExtension(f"slaf_ext.{name}", sources, libraries=libraries, depends=headers, **more)


check_compiler("CXX", "c++")  # as torch has it
sources = sorted(str(path.relative_to(root)) for path in [*root.glob("csrc/*.cpp"), *root.glob("csrc/cpu/*.cpp")])
modules = [extension("_C", sources, include_dirs=[pybind11.get_include()], extra_compile_args={"cxx": cxx})]
if home := cuda_home():
    cpp_extension.CUDA_HOME = str(home)  # which a CPU-only torch leaves unset
    # A library of its own, so that a CPU-only torch imports whatever was built.
    libraries = ["cudart_static", "rt", "dl", "pthread", *(["torch_cuda"] if torch.version.cuda else [])]
    flags = {"cxx": cxx, "nvcc": [*common, "-Xcompiler=-fvisibility=hidden"]}
    where = {"library_dirs": [str(home / "lib64")], "libraries": libraries, "extra_compile_args": flags}
    units = sorted(str(path.relative_to(root)) for path in root.glob("csrc/cuda/*.cu"))
    modules.append(extension("_cuda", [*units, "csrc/arguments.cpp"], **where))

setup(ext_modules=modules, cmdclass={"build_ext": cpp_extension.BuildExtension})
