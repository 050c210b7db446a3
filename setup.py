"""Builds the extension; everything else about the package stands in pyproject.toml."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pybind11
import torch
from setuptools import setup
from torch.utils import cpp_extension

root = Path(__file__).parent
headers = [str(path.relative_to(root)) for path in [*root.glob("csrc/**/*.h"), *root.glob("csrc/**/*.cuh")]]

# The stable ABI of torch 2.10: one binary serves every torch from there on.
common = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-O3"]
# Python's own flags hold -fwrapv, under which indices take twice the instructions, and -g, with which compiling takes
# a third longer.
cxx = [*common, "-fno-wrapv", "-g0", "-ffp-contract=fast", "-fno-trapping-math", "-fvisibility=hidden", "-Wno-psabi"]


def check_compiler(variable: str, otherwise: str) -> None:
    """Ends the build if the compiler that a variable names, or else `otherwise`, is missing or too old for C++20."""
    command = os.environ.get(variable, otherwise)
    try:
        told = [
            subprocess.check_output([*shlex.split(command), f"-{what}version"], text=True) for what in ("-", "dump")
        ]
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"slaf_ext: {command} does not run ({error}); set {variable} to g++ 11 or later.") from None
    if "clang" not in told[0] and int(told[1].split(".")[0]) < 11:
        version = told[1].strip()
        raise SystemExit(f"slaf_ext: {command} is version {version}; set {variable} to g++ 11 or later, for C++20.")


def cuda_home() -> Path | None:
    """Where CUDA is, if its kernels are built: if SLAF_EXT_CUDA is 1, or it is unset and torch and nvcc are there."""
    asked = os.environ.get("SLAF_EXT_CUDA", "1" if torch.version.cuda else "0")
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = Path(named, "bin/nvcc") if named else Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    if asked not in ("0", "1"):
        raise SystemExit(f"slaf_ext: SLAF_EXT_CUDA is {asked!r}; set it to 1 to build the CUDA kernels, or to 0.")
    if asked == "0":
        if "SLAF_EXT_CUDA" not in os.environ:
            print("slaf_ext: the CPU kernels alone are built, as torch has no CUDA; SLAF_EXT_CUDA=1 builds all.")
        return None
    if not nvcc.exists():
        advice = f"no nvcc at {nvcc}; install the CUDA toolkit {torch.version.cuda or ''} or set CUDA_HOME to it"
        if "SLAF_EXT_CUDA" in os.environ:
            raise SystemExit(f"slaf_ext: SLAF_EXT_CUDA={asked} asks for the CUDA kernels and there is {advice}.")
        print(f"slaf_ext: the CPU kernels alone are built: there is {advice} for the CUDA kernels.")
        return None
    release = re.search(r"release (\d+)\.(\d+)", subprocess.check_output([nvcc, "--version"], text=True))
    version = (int(release[1]), int(release[2])) if release else (0, 0)
    wanted = int(torch.version.cuda.split(".")[0]) if torch.version.cuda else max(version[0], 12)
    if version[0] != wanted or version < (12, 1):
        reason = (
            f"torch was built with CUDA {torch.version.cuda}" if torch.version.cuda else "C++20 takes 12.1 or later"
        )
        raise SystemExit(
            f"slaf_ext: {nvcc} is CUDA {version[0]}.{version[1]} and {reason}; set CUDA_HOME to a toolkit of CUDA "
            f"{wanted if wanted > 12 else '12.1 or later'}, or SLAF_EXT_CUDA=0 to do without."
        )
    check_compiler("CC", "g++")  # nvcc's own compiler: torch hands it CC, or nvcc finds g++
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0+PTX" if version >= (12, 8) else "8.0;9.0+PTX")
    # nvcc may be a script that calls the real one, which tells where it lives.
    told = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    home = re.search(r"TOP=(\S+)", told)
    return Path(home[1]).resolve() if home else nvcc.resolve().parent.parent


def extension(name: str, sources: list[str], **more) -> cpp_extension.CppExtension:
    return cpp_extension.CppExtension(f"slaf_ext.{name}", sources, depends=headers, **more)


check_compiler("CXX", "c++")  # as torch has it
sources = sorted(str(path.relative_to(root)) for path in [*root.glob("csrc/*.cpp"), *root.glob("csrc/cpu/*.cpp")])
modules = [extension("_C", sources, include_dirs=[pybind11.get_include()], extra_compile_args={"cxx": cxx})]
if home := cuda_home():
    cpp_extension.CUDA_HOME = str(home)  # which a CPU-only torch leaves unset
    # A library of its own, so that a CPU-only torch imports whatever was built.
    libraries = ["cudart_static", "rt", "dl", "pthread", *(["torch_cuda"] if torch.version.cuda else [])]
    flags = {"cxx": cxx, "nvcc": [*common, "--threads=4", "-Xcompiler=-fvisibility=hidden"]}
    where = {"library_dirs": [str(home / "lib64")], "libraries": libraries, "extra_compile_args": flags}
    modules.append(extension("_cuda", ["csrc/cuda/slaf.cu", "csrc/cuda/normalized.cu", "csrc/arguments.cpp"], **where))

setup(ext_modules=modules, cmdclass={"build_ext": cpp_extension.BuildExtension})
