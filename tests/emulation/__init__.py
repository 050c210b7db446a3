"""The CUDA kernels on the CPU: builds main.cpp with g++, feeds it cases and reads its results."""

from __future__ import annotations

import io
import math
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
STORAGE = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
FLAGS = ["-std=c++20", "-O0", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread"]
SANITIZERS = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


# What main.cpp is asked for.
PLAIN, FOLLOW, MOMENTS, NORMALIZED_BACKWARD, WALKED_BACKWARD, FOLD, PANEL = range(7)


@dataclass(frozen=True)
class Case:
    """One call of an operator. x has the shape (outer, groups, inner), coeffs (groups, K), grad_output None or x's."""

    x: Tensor
    coeffs: Tensor
    rows: list[tuple[float, float, float]]
    grad_output: Tensor | None = None
    need_x: bool = True
    need_coeffs: bool = True
    center: float = 0.0
    lo: float = -1.0
    hi: float = 1.0
    outside: int = 0
    offsets: tuple[int, int, int] = (0, 0, 0)  # of x, grad_output and the result, from an aligned address
    multiprocessors: int = 1
    threads: int = 64

    def pack(self, what: int) -> bytes:
        forward = self.grad_output is None
        header = (
            *(STORAGE[self.x.dtype], STORAGE[self.coeffs.dtype], *self.x.shape, len(self.rows), self.outside),
            *(not forward, forward or self.need_x, not forward and self.need_coeffs),
            *(*self.offsets, self.multiprocessors, self.threads),
        )
        grad_output = torch.zeros_like(self.x) if forward else self.grad_output
        flat = [number for row in self.rows for number in row]
        return b"".join(
            (
                struct.pack("=q15q3d", what, *(int(h) for h in header), self.center, self.lo, self.hi),
                struct.pack(f"={len(flat)}d", *flat),
                *(raw(t) for t in (self.x, grad_output, self.coeffs)),
            )
        )


@dataclass
class Result:
    launches: int
    out: Tensor  # y, or the gradient in x
    grad_coeffs: Tensor


def raw(t: Tensor) -> bytes:
    return t.contiguous().view(torch.uint8).numpy().tobytes() if t.numel() else b""


def unraw(data: io.BytesIO, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data.read(count * dtype.itemsize)), dtype=dtype).view(*shape)


@dataclass
class Emulator:
    """The program, built with a sanitizer or without."""

    folder: Path
    sanitizer: str = "plain"
    source: Path = CSRC
    program: Path = field(init=False)

    def __post_init__(self):
        self.program = self.folder / f"emulate-{self.sanitizer}"
        compiler = shutil.which("g++")
        assert compiler, "the kernels' logic is tested under g++; install it"
        includes = [f"-I{self.source / 'cuda'}", f"-I{self.source}"]
        command = [compiler, *FLAGS, *SANITIZERS[self.sanitizer], *includes, str(HERE / "main.cpp")]
        subprocess.run([*command, "-o", str(self.program)], check=True)

    def talk(self, request: bytes, timeout: float = 300) -> bytes:
        done = subprocess.run([str(self.program)], input=request, capture_output=True, timeout=timeout)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[:4000]
        return done.stdout

    def run(self, cases: list[Case]) -> list[Result]:
        """The operators slaf and slaf_backward."""
        return self._results(b"".join(case.pack(PLAIN) for case in cases), cases)

    def walked_backward(self, cases: list[Case]) -> list[Result]:
        """slaf_backward of a basis whose derivative is walked."""
        return self._results(b"".join(case.pack(WALKED_BACKWARD) for case in cases), cases)

    def moments(self, cases: list[Case]) -> list[tuple[int, Tensor, Tensor]]:
        """The launches, the means and the variances, (groups, degree) each, of slaf_moments."""
        answer, results = io.BytesIO(self.talk(b"".join(case.pack(MOMENTS) for case in cases))), []
        for case in cases:
            (launches,) = struct.unpack("=q", answer.read(8))
            shape = (case.coeffs.shape[0], len(case.rows))
            results.append((launches, *(unraw(answer, torch.float64, shape) for _ in range(2))))
        return results

    def normalized_backward(self, cases: list[Case], statistics: list[tuple[Tensor, Tensor]], eps: float):
        """slaf_normalized_backward, with a mean and a variance for every case."""
        requests = [
            case.pack(NORMALIZED_BACKWARD) + struct.pack("=d", eps) + raw(mean) + raw(variance)
            for case, (mean, variance) in zip(cases, statistics, strict=True)
        ]
        return self._results(b"".join(requests), cases)

    def fold(
        self, coeffs: Tensor, mean: Tensor, variance: Tensor, eps: float, in_double: bool, threads: int = 64
    ) -> tuple[int, Tensor]:
        """The launches and the result of slaf_fold."""
        groups, K = coeffs.shape
        rounding = torch.finfo(torch.promote_types(coeffs.dtype, torch.float32)).eps
        header = struct.pack("=6q2d", FOLD, STORAGE[coeffs.dtype], groups, K - 1, in_double, threads, eps, rounding)
        answer = io.BytesIO(self.talk(header + raw(coeffs) + raw(mean) + raw(variance)))
        (launches,) = struct.unpack("=q", answer.read(8))
        return launches, unraw(answer, torch.float64 if in_double else torch.float32, coeffs.shape)

    def panel(
        self, x: Tensor, spec: Sequence, grad_terms: Tensor | None = None, multiprocessors: int = 1, threads: int = 64
    ) -> Tensor:
        """The result of kan_expand, or of kan_contract for a gradient, with a spec as Python has it."""
        recurrence, _, *window, outside = spec
        shape = (len(x), len(recurrence) // 3, x.shape[1])
        sizes = STORAGE[x.dtype], *x.shape, shape[1], outside, grad_terms is None, multiprocessors, threads
        request = struct.pack(f"=9q{3 + len(recurrence)}d", PANEL, *sizes, *window, *recurrence) + raw(x)
        answer = io.BytesIO(self.talk(request + (b"" if grad_terms is None else raw(grad_terms))))
        return unraw(answer, x.dtype, shape if grad_terms is None else x.shape)

    def _results(self, request: bytes, cases: list[Case]) -> list[Result]:
        answer, results = io.BytesIO(self.talk(request)), []
        for case in cases:
            (launches,) = struct.unpack("=q", answer.read(8))
            results.append(Result(launches, *(unraw(answer, t.dtype, t.shape) for t in (case.x, case.coeffs))))
        return results

    def follow(self, layout: tuple[int, int, int], width: int, unroll: int, blocks: int, sum_rows: int):
        """Places visited wrongly, the farthest element, and the blocks, for any layout (outer, groups, inner)."""
        request = struct.pack("=8q", FOLLOW, *layout, width, unroll, blocks, sum_rows)
        return struct.unpack("=3q", self.talk(request))


def both(case: Case, grad_output: Tensor) -> list[Case]:
    """The forward case, and its backward for grad_output."""
    return [case, replace(case, grad_output=grad_output)]
