"""The GPU benchmark: medians of CUDA events, beside the copy bandwidth of the same run.

usage: python benchmarks/gpu.py FILE.csv [--seconds 120]
Inputs rotate through more memory than the L2 cache holds. Rows are written as they are measured, the most important
first, and measuring stops when the time is used up.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

import slaf_ext

COUNT = 1 << 26
CHANNELS = 64
FIELDS = ["what", "dtype", "degree", "layout", "pass", "numel", "ms", "gb_per_s", "fraction_of_copy", "device", "torch"]


def measure(call: Callable[[int], object], repeats: int = 20) -> float:
    """Median milliseconds of call(i), after a warm-up."""
    for i in range(5):
        call(i)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for i, (start, end) in enumerate(events):
        start.record()
        call(i)
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def chebyshev_clenshaw(x, coeffs):
    """The form to give to torch.compile: Clenshaw's recurrence, in fp32."""
    t, later, latest = x.float(), 0.0, coeffs[-1].float()
    for k in range(len(coeffs) - 2, 0, -1):
        latest, later = coeffs[k].float() + 2 * t * latest - later, latest
    return (coeffs[0].float() + t * latest - later if len(coeffs) > 1 else latest.expand_as(t)).to(x.dtype)


def tensors(dtype: torch.dtype, layout: str, copies: int) -> list[torch.Tensor]:
    shape = (COUNT // (CHANNELS * 56 * 56), CHANNELS, 56, 56) if layout != "shared" else (COUNT,)
    kind = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    return [(torch.rand(shape, device="cuda") * 2 - 1).to(dtype).to(memory_format=kind) for _ in range(copies)]


def subjects(dtype: torch.dtype, degree: int, layout: str) -> Iterator[tuple[str, Callable, torch.Tensor]]:
    """(name, f(x, coeffs), coeffs)"""
    rows = () if layout == "shared" else (CHANNELS,)
    coeffs = torch.randn(*rows, degree + 1, device="cuda").to(dtype)
    yield "slaf", slaf_ext.slaf, coeffs
    if layout != "shared":
        return
    yield "naive", lambda x, a: slaf_ext.reference.naive(x, a), coeffs
    if degree in (4, 8):
        yield "compiled", torch.compile(chebyshev_clenshaw), coeffs
        yield "compiled, max-autotune", torch.compile(chebyshev_clenshaw, mode="max-autotune-no-cudagraphs"), coeffs
    if degree == 8:
        yield "gelu", lambda x, a: F.gelu(x), coeffs
        yield "relu", lambda x, a: F.relu(x), coeffs


def plan() -> Iterator[tuple[torch.dtype, int, str]]:
    yield from ((torch.float32, degree, layout) for degree in (8, 4, 1, 2, 3, 16, 32) for layout in LAYOUTS)
    yield from itertools.product((torch.bfloat16, torch.float16), (8, 4, 1, 16, 32), LAYOUTS)
    yield from ((torch.float64, degree, "shared") for degree in (4, 8, 16))


LAYOUTS = ("shared", "contiguous", "channels-last")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=120)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU that this torch can use; nothing was measured")
    stop = time.monotonic() + arguments.seconds
    facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    with arguments.file.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()

        def note(what: str, moved: int, ms: float, **more) -> None:
            rate = moved / ms / 1e6
            row = {"what": what, "ms": f"{ms:.4f}", "gb_per_s": f"{rate:.0f}", **facts, **more}
            writer.writerow({**row, "fraction_of_copy": f"{rate / copy_rate:.3f}"})
            file.flush()

        source, to = torch.rand(COUNT, device="cuda"), torch.empty(COUNT, device="cuda")
        copy_ms = measure(lambda i: to.copy_(source))
        copy_rate = 2 * 4 * COUNT / copy_ms / 1e6
        note("copy", 2 * 4 * COUNT, copy_ms, dtype="float32", numel=COUNT)
        for dtype, degree, layout in plan():
            if time.monotonic() > stop:
                raise SystemExit(
                    f"the {arguments.seconds} seconds are used up before {dtype}, degree {degree}, {layout}"
                )
            # Four tensors of 2^26 elements hold more than the 50 to 126 MB of L2 of today's GPUs, even in 16 bits.
            xs = [x.requires_grad_() for x in tensors(dtype, layout, 4)]
            grad_output, size = torch.ones_like(xs[0]), xs[0].element_size() * xs[0].numel()
            about = {
                "dtype": str(dtype).removeprefix("torch."),
                "degree": degree,
                "layout": layout,
                "numel": xs[0].numel(),
            }
            for what, f, coeffs in subjects(dtype, degree, layout):
                coeffs.requires_grad_()

                def forward(i: int, f=f, coeffs=coeffs, xs=xs):
                    with torch.no_grad():
                        return f(xs[i % 4], coeffs)

                def both(i: int, f=f, coeffs=coeffs, xs=xs, grad_output=grad_output):
                    y = f(xs[i % 4], coeffs)
                    return torch.autograd.grad(y, (xs[i % 4], coeffs), grad_output, allow_unused=True)

                repeats = 5 if what == "naive" else 20
                note(what, 2 * size, measure(forward, repeats), **about, **{"pass": "forward"})
                note(what, 5 * size, measure(both, repeats), **about, **{"pass": "forward + backward"})
                if what == "slaf":
                    y = f(xs[0], coeffs)
                    backward = functools.partial(
                        torch.autograd.grad, y, (xs[0], coeffs), grad_output, retain_graph=True
                    )
                    note(what, 3 * size, measure(lambda i, run=backward: run()), **about, **{"pass": "backward"})
        small = torch.rand(1 << 12, device="cuda")
        coeffs = torch.randn(9, device="cuda")
        graph = torch.cuda.CUDAGraph()
        slaf_ext.slaf(small, coeffs)
        with torch.cuda.graph(graph):
            slaf_ext.slaf(small, coeffs)
        note("slaf in a graph", 2 * 4 * small.numel(), measure(lambda i: graph.replay()), numel=small.numel())


if __name__ == "__main__":
    main()
