"""The GPU benchmark: medians of CUDA events, beside the copy bandwidth and the fp32 rate of the same run.

usage: python -m benchmarks.gpu FILE.csv [--seconds 120]
       ncu … python -m benchmarks.gpu --profile
Inputs rotate through more memory than the L2 cache holds. Rows are written as they are measured, the most important
first, and measuring stops when the time is used up. Then every bar is held to the rows: met, missed or not measured.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

import slaf_ext
from slaf_ext.functional import normalized_slaf

COUNT = 1 << 26
CHANNELS = 64
SIDE = 8192
FIELDS = ["what", "dtype", "degree", "layout", "pass", "numel", "ms", "gb_per_s", "fraction_of_copy"]
FIELDS += ["fraction_of_fp32", "device", "torch"]
LAYOUTS = ("shared", "contiguous", "channels-last")
PASSES = ("forward", "backward", "forward + backward")


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


def yardsticks() -> tuple[float, float]:
    """Milliseconds of a copy of COUNT numbers, and of an fp32 product of two matrices."""
    source, to = torch.rand(COUNT, device="cuda"), torch.empty(COUNT, device="cuda")
    torch.backends.cuda.matmul.allow_tf32 = False
    matrix = torch.rand(SIDE, SIDE, device="cuda")
    return measure(lambda i: to.copy_(source)), measure(lambda i: matrix @ matrix, 5)


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


def flops(what: str, degree: int, pass_: str) -> int:
    """Of slaf, for an element: a step of the Chebyshev walk takes 2, a term of y or of dx 2, and a sum 1."""
    forward, backward = 4 * degree + 2, 5 * degree + 4
    return {"forward": forward, "backward": backward}.get(pass_, forward + backward) if what == "slaf" else 0


def subjects(dtype: torch.dtype, degree: int, layout: str) -> Iterator[tuple[str, Callable, torch.Tensor]]:
    """(name, f(x, coeffs), coeffs)"""
    rows = () if layout == "shared" else (CHANNELS,)
    coeffs = torch.randn(*rows, degree + 1, device="cuda").to(dtype)
    yield "slaf", slaf_ext.slaf, coeffs
    if layout != "shared":
        if degree == 4:
            yield "normalised", lambda x, a: normalized_slaf(x, a)[0], coeffs
            yield "batch norm + relu", lambda x, a: F.relu(F.batch_norm(x, None, None, training=True)), coeffs
        return
    if degree in (4, 8):
        yield "naive", lambda x, a: slaf_ext.reference.naive(x, a), coeffs
        yield "compiled", torch.compile(chebyshev_clenshaw), coeffs
        yield "compiled, max-autotune", torch.compile(chebyshev_clenshaw, mode="max-autotune-no-cudagraphs"), coeffs
        yield "gelu", lambda x, a: F.gelu(x), coeffs
        yield "relu", lambda x, a: F.relu(x), coeffs


# Times N·s bytes that a pass moves; the normalised form reads x, and in its backward grad_output, once more.
MOVED = {"forward": 2, "backward": 3, "forward + backward": 5}
NORMALIZED_MOVED = {"forward": 3, "backward": 5, "forward + backward": 8}


def plan() -> Iterator[tuple[torch.dtype, int, str]]:
    yield from ((torch.float32, degree, layout) for degree in (8, 4) for layout in LAYOUTS)
    yield from itertools.product((torch.bfloat16, torch.float16), (8, 4), LAYOUTS)
    yield from ((torch.float32, degree, layout) for degree in (16, 32, 1, 2, 3, 5, 6, 7) for layout in LAYOUTS)
    yield from itertools.product((torch.bfloat16, torch.float16), (1, 2, 3, 5, 6, 7, 16, 32), LAYOUTS)
    yield from ((torch.float64, degree, "shared") for degree in (4, 8, 16))


def profiled() -> None:
    """Degrees 8 and 16 of fp32 and bf16 in every layout, forward and backward once each: for a profiler to look at."""
    for dtype, degree, layout in itertools.product((torch.float32, torch.bfloat16), (8, 16), LAYOUTS):
        (x,) = tensors(dtype, layout, 1)
        _, f, coeffs = next(subjects(dtype, degree, layout))
        y = f(x.requires_grad_(), coeffs.requires_grad_())
        torch.autograd.grad(y, (x, coeffs), torch.ones_like(y))


def small(note: Callable) -> None:
    """2^12 numbers, 1 launch forward and 2 backward: calls one by one, and replays of a captured graph."""
    x = torch.rand(1 << 12, device="cuda").requires_grad_()
    coeffs, ones = torch.randn(9, device="cuda").requires_grad_(), torch.ones_like(x)

    def forward() -> object:
        with torch.no_grad():
            return slaf_ext.slaf(x, coeffs)

    def both() -> object:
        return torch.autograd.grad(slaf_ext.slaf(x, coeffs), (x, coeffs), ones)

    for name, call in (("forward", forward), ("forward + backward", both)):
        about = {"dtype": "float32", "degree": 8, "layout": "shared", "numel": x.numel(), "pass": name}
        moved = MOVED[name] * 4 * x.numel()
        note("slaf, small", moved, measure(lambda i, call=call: call()), **about)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        note("slaf, small, in a graph", moved, measure(lambda i, graph=graph: graph.replay()), **about)


def bars(rows: list[dict]) -> Iterator[tuple[str, float, str, float]]:
    """(bar, what was measured or nan, at least or at most, the limit), the worst layout of each."""
    found = {tuple(str(row.get(f, "")) for f in ("what", "dtype", "degree", "layout", "pass")): row for row in rows}

    def fractions(dtype: str, degree: int, pass_: str) -> list[float]:
        keys = [("slaf", dtype, str(degree), layout, pass_) for layout in LAYOUTS]
        return [float(found[key]["fraction_of_copy"]) if key in found else math.nan for key in keys]

    def ms(what: str, dtype: str, degree: int, pass_: str) -> float:
        row = found.get((what, dtype, str(degree), "shared", pass_))
        return float(row["ms"]) if row else math.nan

    def worst(values: list[float]) -> float:
        return math.nan if any(math.isnan(v) for v in values) else min(values)

    limits = {("float32", d, p): 0.9 for d in range(1, 9) for p in PASSES[:2]}
    limits.update({("float32", 16, p): 0.75 for p in PASSES[:2]})
    for dtype in ("bfloat16", "float16"):
        limits.update({(dtype, d, "forward"): 0.85 for d in range(1, 9)})
        limits.update({(dtype, d, "backward"): 0.85 for d in range(1, 5)})
        limits[dtype, 8, "backward"] = 0.6
    for (dtype, degree, pass_), limit in limits.items():
        name = f"{pass_}, {dtype}, degree {degree}: fraction of the copy bandwidth"
        yield name, worst(fractions(dtype, degree, pass_)), ">=", limit
    for degree in (4, 8):
        ours = {p: ms("slaf", "float32", degree, p) for p in PASSES}
        both = "forward + backward"
        for other in ("compiled", "compiled, max-autotune"):
            yield (
                f"forward beside {other}, degree {degree}",
                ms(other, "float32", degree, "forward") / ours["forward"],
                ">=",
                1,
            )
            yield f"{both} beside {other}, degree {degree}", ms(other, "float32", degree, both) / ours[both], ">=", 2
        yield f"{both} beside naive, degree {degree}", ms("naive", "float32", degree, both) / ours[both], ">=", 20
        yield f"{both} against gelu, degree {degree}", ours[both] / ms("gelu", "float32", degree, both), "<=", 1.05


def verdict(value: float, sign: str, limit: float) -> str:
    if math.isnan(value):
        return "not measured"
    return "met" if (value >= limit if sign == ">=" else value <= limit) else "missed"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--profile", action="store_true", help="run what has bars once, and measure nothing")
    arguments = parser.parse_args()
    if (arguments.file is None) != arguments.profile:
        parser.error("give a FILE.csv to measure, or --profile")
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU that this torch can use; nothing was measured")
    if arguments.profile:
        return profiled()
    stop = time.monotonic() + arguments.seconds
    facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    rows: list[dict] = []
    with arguments.file.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()

        def note(what: str, moved: int, ms: float, done: float = 0, **more) -> None:
            rate = moved / ms / 1e6
            row = {"what": what, "ms": f"{ms:.4f}", "gb_per_s": f"{rate:.0f}", **facts, **more}
            row["fraction_of_copy"] = f"{rate / copy_rate:.3f}"
            row["fraction_of_fp32"] = f"{done / ms / 1e9 / fp32_rate:.3f}" if done else ""
            writer.writerow(row)
            rows.append(row)
            file.flush()

        copy_ms, product_ms = yardsticks()
        copy_rate, fp32_rate = 2 * 4 * COUNT / copy_ms / 1e6, 2 * SIDE**3 / product_ms / 1e9
        note("copy", 2 * 4 * COUNT, copy_ms, dtype="float32", numel=COUNT)
        note("matrix product", 3 * 4 * SIDE**2, product_ms, 2 * SIDE**3, dtype="float32", numel=SIDE**2)
        small(note)
        for dtype, degree, layout in plan():
            if time.monotonic() > stop:
                print(f"the {arguments.seconds:g} seconds are used up before {dtype}, degree {degree}, {layout}")
                break
            # Four tensors of 2^26 elements hold more than the 50 to 126 MB of L2 of today's GPUs, even in 16 bits.
            xs = [x.requires_grad_() for x in tensors(dtype, layout, 4)]
            grad_output, numel = torch.ones_like(xs[0]), xs[0].numel()
            about = {
                "dtype": str(dtype).removeprefix("torch."),
                "degree": degree,
                "layout": layout,
                "numel": numel,
            }
            for what, f, coeffs in subjects(dtype, degree, layout):
                coeffs.requires_grad_()

                def forward(i: int, f=f, coeffs=coeffs, xs=xs):
                    with torch.no_grad():
                        return f(xs[i % 4], coeffs)

                def both(i: int, f=f, coeffs=coeffs, xs=xs, grad_output=grad_output):
                    y = f(xs[i % 4], coeffs)
                    return torch.autograd.grad(y, (xs[i % 4], coeffs), grad_output, allow_unused=True)

                calls = {"forward": forward, "forward + backward": both}
                if what in ("slaf", "normalised"):
                    graphs = [(x, f(x, coeffs)) for x in xs]

                    def backward(i: int, graphs=graphs, coeffs=coeffs, grad_output=grad_output):
                        x, y = graphs[i % 4]
                        return torch.autograd.grad(y, (x, coeffs), grad_output, retain_graph=True)

                    calls["backward"] = backward
                moved = NORMALIZED_MOVED if what in ("normalised", "batch norm + relu") else MOVED
                for name, call in calls.items():
                    size = moved[name] * xs[0].element_size() * numel
                    ms = measure(call, 5 if what == "naive" else 20)
                    note(what, size, ms, flops(what, degree, name) * numel, **about, **{"pass": name})
    for bar, value, sign, limit in bars(rows):
        print(f"{verdict(value, sign, limit):12} {bar}: {value:.3f}, {sign} {limit:g}")


if __name__ == "__main__":
    main()
