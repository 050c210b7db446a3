"""Shows what the libraries in a wheel need, and fails where another torch or machine would lack it: WHEEL OLDEST.

OLDEST is a folder with the headers of the oldest torch that the wheel serves, as headers.py unpacks them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from zipfile import ZipFile

# Torch's own, and what every Linux has where torch runs.
LIBRARIES = r"libtorch\w*\.so|libc10\.so|(libstdc\+\+|libgcc_s|lib(c|m|dl|rt|pthread)|ld-linux-[\w-]+)\.so\.\d+"
SHIM = r"\b(?:aoti|torch)_\w+"  # the functions of torch's stable ABI, all of them in C
SHIM_OF_CUDA = r"\w+_cuda_\w+"  # those that are in libtorch_cuda.so, which a build with a CPU-only torch cannot link
PYTHON = r"_?Py\w+"
COMPILER = r"_ITM_\w+|__gmon_start__|__cxa_finalize"  # in every library, and nothing needs to define them


def run(*command: str | Path, given: str = "") -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, input=given, env=environment, check=True, capture_output=True, text=True).stdout


def strays(names: list[str], package: str) -> list[str]:
    """The files of a wheel that are neither the package's Python and libraries nor metadata."""
    kept = rf"{package}/(\w+/)*([\w.-]+\.(py|pyi|so)|py\.typed)|{package}-[^/]+\.dist-info/.+"
    return [name for name in names if not re.fullmatch(kept, name)]


def functions(headers: Path) -> set[str]:
    """The functions that a torch's headers declare in its stable ABI."""
    folders = ("stable/c", "inductor/aoti_torch/c", "inductor/aoti_torch/generated")
    files = [file for folder in folders for file in (headers / "torch/include/torch/csrc" / folder).glob("*.h")]
    return {name for file in files for name in re.findall(rf"{SHIM}(?=\()", file.read_text())}


def newest(kind: str, versions: list[str]) -> str:
    found = [version[1] for version in (re.fullmatch(rf"{kind}_(\d[\d.]*)", each) for each in versions) if version]
    return max(found, key=lambda version: [int(part) for part in version.split(".")], default="none")


def examine(library: Path, name: str, oldest: set[str]) -> list[str]:
    """Prints what a library needs; returns a sentence for everything that is wrong."""
    told = run("readelf", "--wide", "--dynamic", "--dyn-syms", library)
    links = re.findall(r"\(NEEDED\).*\[(.*)\]", told)
    paths = re.findall(r"\(R(?:UN)?PATH\).*\[(.*)\]", told)
    symbols = dict(re.findall(r" UND ([\w.$]+)@?([\w.]*)", told))
    shim = [symbol for symbol in symbols if re.fullmatch(SHIM, symbol)]
    python = [symbol for symbol in symbols if re.fullmatch(PYTHON, symbol)]
    # The system's libraries give their symbols versions; torch's and Python's do not.
    known = rf"{SHIM}|{PYTHON}|{COMPILER}"
    others = [symbol for symbol, version in symbols.items() if not version and not re.fullmatch(known, symbol)]
    rows = {
        "links": " ".join(links),
        "needs": ", ".join(f"{kind} {newest(kind, [*symbols.values()])}" for kind in ("GLIBC", "GLIBCXX", "CXXABI")),
        "of torch": f"{len(shim)} functions of the stable ABI",
        "of Python": f"{len(python)} symbols",
        "others": f"{len(others)} symbols",
    }
    print(f"\n{name}")
    for title, text in rows.items():
        print(textwrap.fill(f"  {title:<10}{text}", 80, subsequent_indent=" " * 12, break_on_hyphens=False))
    return [
        *(f"{name} links {link}, which not every machine has" for link in links if not re.fullmatch(LIBRARIES, link)),
        *(f"{name} looks for libraries in {path}, a folder of the machine that built it" for path in paths),
        *(
            f"{name} takes {symbol} from torch's libraries or from nowhere: the stable ABI does not have it"
            for symbol in run("c++filt", given="\n".join(others)).splitlines()
        ),
        *(f"{name} calls {each}, which the oldest torch does not have" for each in shim if each not in oldest),
        *(
            f"{name} calls {each} and does not link libtorch_cuda.so; build it with a torch that has CUDA"
            for each in shim
            if re.fullmatch(SHIM_OF_CUDA, each) and "libtorch_cuda.so" not in links
        ),
    ]


def check(wheel: Path, headers: Path) -> list[str]:
    oldest = functions(headers)
    if not oldest:
        return [f"{headers} has no headers of torch; .ci/headers.py unpacks them"]
    with ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        archive.extractall(folder)
        names = [name for name in archive.namelist() if not name.endswith("/")]
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(names)} files")
        libraries = [name for name in names if name.endswith(".so")]
        wrong = [f"{name} does not belong in a wheel" for name in strays(names, wheel.name.split("-")[0])]
        wrong += [] if libraries else [f"{wheel.name} has no compiled part"]
        for name in libraries:
            wrong += examine(Path(folder, name), name, oldest)
    return wrong


if __name__ == "__main__":
    sys.exit("\n".join(check(*map(Path, sys.argv[1:]))) or None)
