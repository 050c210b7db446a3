"""What nvcc made of the kernels, read without a GPU: their registers, and their main loops in machine code (SASS)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path

from torch.utils.cpp_extension import include_paths

# What an instruction counts as: the first whose pattern its mnemonic starts with, or else "other".
KINDS = {
    "load": "LDG|LDGSTS|LD",
    "store": "STG|ST",
    "convert": r"F2FP?|F2I|I2FP?|FRND|PRMT|HADD2\.F32",
    "fp": "[FHD](FMA|ADD|MUL|MNMX|SEL|SETP?)2?|FCHK|MUFU",
    "int": "[UV]?(I?ADD3?|IMAD|LEA|ISETP|SHF|LOP3|MOV|SEL|I?MNMX|IADDMNMX|IABS|PLOP3)|CS2R|S2U?R|R2UR|R2P|P2R",
    "shared": "LDSM?|STS|ATOMS",
    "constant": "U?LDCU?",
    "local": "LDL|STL",
    "shuffle": "SHFL",
    "branch": "BRA|BRX|BSSY|BSYNC|BREAK|WARPSYNC|EXIT",
    "call": "CALL|RET",
}
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
THREADS = 256  # of a block
SUMS_ALONE = r"NormalizedForm<\(Pass\)[01]"  # kernels that write no result of an element
ARCHITECTURES = ("80", "90", "100")  # those of a default build


def compile_units(nvcc: str, root: Path, folder: Path, units: str, standard: str = "c++20") -> str:
    """Compiles the csrc/cuda/*.cu of a tree whose names match to objects in a folder, and returns what nvcc said."""
    target = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    flags = [f"-std={standard}", "-O3", "-Xptxas", "-v", "--threads=0", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    # Warnings are errors in our own code; torch's headers, and nvcc's pragmas seen by g++, are not ours.
    host = ["-Xcompiler=-fPIC,-Wall,-Wextra,-Werror,-Wno-unknown-pragmas", "-Werror=all-warnings"]
    includes = [argument for path in include_paths() for argument in ("-isystem", path)]
    sources = [str(path) for path in sorted(root.glob("csrc/cuda/*.cu")) if re.match(units, path.stem)]
    assert sources
    command = [nvcc, *flags, *target, *host, *includes, "-c", *sources]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def demangle(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [re.sub(r"slaf_ext::|cuda::|cpu::", "", name) for name in done.stdout.splitlines()]


def resources(report: str) -> list[tuple[str, str, int, int, int]]:
    """(architecture, name, registers, bytes of stack frame, bytes of spills) of every kernel, from `ptxas -v`."""
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


class Instruction:
    def __init__(self, text: str):
        self.text = text
        self.mnemonic = re.sub(r"^@!?\w+\s+", "", text).split()[0]
        self.kind = next(
            (kind for kind, names in KINDS.items() if re.match(rf"({names})(\.|$)", self.mnemonic)), "other"
        )
        self.width = next((WIDTHS[part] for part in self.mnemonic.split(".") if part in WIDTHS), 4)  # bytes
        self.registers = [int(number) for number in re.findall(r"\bR(\d+)", text)]


class Kernel:
    """What one thread does in a turn of a kernel's main loop, from a function of cuobjdump's listing. All instructions
    of the loop count once: those that it jumps over at times, and those that an inner loop repeats. A kernel that does
    not write in its main loop leaves sums behind."""

    def __init__(self, sass: str, registers: int, writes: bool = True):
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", sass)
        code = [Instruction(text) for _, text in lines]
        loops = natural_loops(code, {int(address, 16): n for n, (address, _) in enumerate(lines)})
        loop = main_loop(code, loops, ("load", "store") if writes else ("load",))
        self.registers = registers
        self.body = [code[n] for n in sorted(loop) if code[n].mnemonic != "NOP"]
        self.inner_loops = sum(other < loop for other in loops)
        self.counts = Counter(i.kind for i in self.body)
        self.loads = Counter(i.width for i in self.body if i.kind == "load")
        self.stores = Counter(i.width for i in self.body if i.kind == "store")
        self.loaded, self.stored = (sum(w * n for w, n in widths.items()) for widths in (self.loads, self.stores))

    @property
    def ahead(self) -> int:
        """The most bytes that are on their way at once: a load has arrived where one of its registers is met again."""
        most, pending = 0, []
        for i in self.body * 2:
            pending = [(registers, width) for registers, width in pending if registers.isdisjoint(i.registers)]
            if i.kind == "load":
                first = i.registers[0]
                pending.append((set(range(first, first + max(1, i.width // 4))), i.width))
            most = max(most, sum(width for _, width in pending))
        return most

    @property
    def in_flight(self) -> int:
        """The same on an SM, by the blocks that fit its 65,536 registers, of which a warp takes 256 at a time, and its
        2,048 threads."""
        blocks = min(65536 // (THREADS * (-(-self.registers // 8) * 8)), 2048 // THREADS)
        return self.ahead * THREADS * blocks


def natural_loops(code: list[Instruction], places: dict[int, int]) -> list[set[int]]:
    """Loops as places in the code: the target of a backward branch, and all from which the branch is reached without
    passing the target. So a cold path laid out behind a loop belongs to the loop that it returns to. Its way back is
    no loop itself: the start of the kernel, too, reaches it without passing its target."""
    sources: list[list[int]] = [[] for _ in code]
    backward = []
    for n, i in enumerate(code):
        if jump := re.search(r"\bBRA\b.*(0x[0-9a-f]+)$", i.text):
            target = places[int(jump[1], 16)]
            sources[target].append(n)
            if target < n:
                backward.append((target, n))
        if n + 1 < len(code) and not re.match(r"EXIT|RET|BRX|BRA[.\w]* 0x", i.text):
            sources[n + 1].append(n)
    loops: dict[int, set[int]] = {}
    for target, branch in backward:
        loop, reached = {target}, [branch]
        while reached:
            if (n := reached.pop()) not in loop:
                loop.add(n)
                reached += sources[n]
        if 0 not in loop:
            loops[target] = loops.get(target, set()) | loop
    return list(loops.values())


def main_loop(code: list[Instruction], loops: list[set[int]], kinds: tuple[str, ...]) -> set[int]:
    """Of the loops that move elements in all these ways at the greatest width, the innermost one that moves most."""

    def widths(loop: set[int], kind: str) -> list[int]:
        return [code[n].width for n in loop if code[n].kind == kind]

    def width(loop: set[int]) -> int:
        return min(max(widths(loop, kind), default=0) for kind in kinds)

    widest = [loop for loop in loops if 0 < width(loop) == max(map(width, loops))]
    innermost = [loop for loop in widest if not any(other < loop for other in widest)]
    return max(innermost, key=lambda loop: sum(sum(widths(loop, kind)) for kind in kinds), default=set())


def find_cuobjdump() -> str | None:
    """Where PyPI's nvidia-cuda-cuobjdump puts it, beside the nvdisasm that it needs, or on PATH."""
    beside = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/cuobjdump"))
    return str(beside[0]) if beside else shutil.which("cuobjdump")


def read_kernels(cuobjdump: str, compiled: Path, report: str, pattern: str = "") -> dict[str, Kernel]:
    """The sm_90 kernels of an object whose names match; `report` is what `ptxas -v` said when nvcc made it."""
    command = [cuobjdump, "--dump-sass", "--gpu-architecture", "sm_90", str(compiled)]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, *parts = re.split(r"\n\s*Function : (\S+)\n", sass)
    registers = {name: count for arch, name, count, *_ in resources(report) if arch == "90"}
    functions = zip(demangle(parts[::2]), parts[1::2], strict=True)
    return {
        name: Kernel(body, registers[name], writes=not re.search(SUMS_ALONE, name))
        for name, body in functions
        if re.search(pattern, name)
    }
