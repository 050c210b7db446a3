"""Hostile calls at random: each must give the oracle's values, or an error that is a sentence, and nothing else.

Shapes, strides, offsets, overlaps, dims, groups, dtypes, degrees, domains and tables of recurrences are drawn, wrong
ones among them; so are the arguments of the raw operators. The oracle is numpy in float64, one step of the recurrence
after another; a majorant of every sum says what rounding may do.

usage: python tests/fuzz.py [--calls 20000] [--seed 0]
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import slaf_ext
from slaf_ext import arguments, bases

OPS = torch.ops.slaf_ext
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, -1e-310, 1e-40, 1e30, -3e38, 1e300]
ERRORS = (ValueError, TypeError, NotImplementedError)


@dataclass
class Call:
    """The arguments of slaf, and the gradient that reaches y."""

    x: Tensor
    coeffs: Tensor
    grad_output: Tensor
    options: dict


def draw(rng: np.random.Generator) -> Call:
    dtype = rng.choice([torch.float32, torch.float64, torch.float16, torch.bfloat16])
    shape = [int(rng.choice([0, 1, 2, 3, 5, 8, 17, 64])) for _ in range(rng.integers(0, 5))]
    while np.prod(shape) > 2**13:
        shape.pop()
    degree = int(rng.choice([rng.integers(0, 9), rng.integers(0, 71)]))
    options = {
        "dim": int(rng.integers(-len(shape) - 1, len(shape) + 2)),
        "outside": str(rng.choice(["extrapolate", "clamp", "linear"])),
        "domain": None,
    }
    if rng.random() < 0.5:
        center, width = rng.normal(), rng.exponential(3)
        options["domain"] = (center - width, center + width)
    if rng.random() < 0.03:
        options["domain"] = tuple(rng.choice([*SPECIAL, 1.0, 2.0], 2).tolist())
    if rng.random() < 0.02:
        options["outside"] = "mirror"
    rows = (degree + 1,)
    if shape and rng.random() < 0.6:
        size = shape[options["dim"]] if -len(shape) <= options["dim"] < len(shape) else 4
        divisors = [g for g in range(1, size + 1) if size % g == 0] or [2]
        rows = (int(rng.choice(divisors)) if rng.random() < 0.95 else 7, degree + 1)
    if rng.random() < 0.02:
        rows = (*rows, 2)
    if rng.random() < 0.5:
        basis = bases.get(str(rng.choice(bases.names())))
    else:
        scale = [[1.0, 0.5, 0.5]] if rng.random() < 0.9 else [[10.0, 10.0, 10.0]]
        table = rng.normal(size=(degree, 3)) * scale
        if rng.random() < 0.15 and degree:
            table[rng.integers(degree), rng.integers(3)] = rng.choice(SPECIAL)
        if rng.random() < 0.05:
            table = table[: degree // 2]
        basis = bases.Basis("drawn", table, (-1.0, 1.0))
    options["basis"] = basis
    return Call(
        tensor(rng, shape, dtype, 1.5),
        tensor(rng, rows, torch.float32 if dtype.itemsize == 2 and rng.random() < 0.5 else dtype, 1.0),
        tensor(rng, shape, dtype, 1.0),
        options,
    )


def tensor(rng: np.random.Generator, shape: list[int], dtype: torch.dtype, size: float) -> Tensor:
    """A tensor of that shape in memory of any kind, with an infinity or the like among the values now and then."""
    kind = rng.choice(["contiguous", "permuted", "gaps", "offset", "expanded", "overlapping"])
    stored, order = list(shape), list(range(len(shape)))
    if kind == "permuted":
        order = rng.permutation(len(shape)).tolist()
        stored = [shape[d] for d in order]
    elif kind == "gaps":
        stored = [2 * s + 1 for s in shape]
    elif kind == "expanded" and shape:
        stored[rng.integers(len(shape))] = 1
    values = rng.normal(size=stored) * size
    if rng.random() < 0.15 and values.size:
        values.flat[rng.integers(values.size)] = rng.choice(SPECIAL)
    offset = int(rng.integers(1, 9)) if kind == "offset" else 0
    memory = torch.empty(offset + values.size, dtype=dtype)
    with np.errstate(over="ignore"):
        memory[offset:] = torch.from_numpy(values.ravel()).to(dtype)
    t = memory[offset:].view(stored)
    if kind == "permuted":
        return t.permute([order.index(d) for d in range(len(shape))])
    if kind == "gaps":
        return t[tuple(slice(1, None, 2) if s else slice(0, 0) for s in shape)]
    if kind == "overlapping" and t.numel() > 1:  # every dimension steps by one element
        return memory.as_strided(shape, [1] * len(shape))
    return t.expand(shape)


def walk(t: np.ndarray, table: np.ndarray, *, majorant: bool) -> tuple[np.ndarray, np.ndarray]:
    """φ_k and φ_k' at t, with k last; or the same sums of absolute values, with t at least 0."""
    sign, absolute = (1, np.abs) if majorant else (-1, np.asarray)
    phi, slope = [np.zeros_like(t), np.ones_like(t)], [np.zeros_like(t), np.zeros_like(t)]
    for k, (a, b, c) in enumerate(absolute(table)):
        factor = a * t + b
        slope.append(a * phi[-1] + factor * slope[-1] + sign * (c if k else 0.0) * slope[-2])
        phi.append(factor * phi[-1] + sign * (c if k else 0.0) * phi[-2])
    return np.stack(phi[1:], -1), np.stack(slope[1:], -1)


def oracle(call: Call) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """y, dx and dcoeffs, each with its majorant, the same sum of absolute values, and the size of what takes part."""
    x, a, g = (t.detach().double().numpy() for t in (call.x, call.coeffs, call.grad_output))
    basis, outside = call.options["basis"], call.options["outside"]
    (wlo, whi), (lo, hi) = basis.domain, call.options["domain"] or basis.domain
    scale, K = (whi - wlo) / (hi - lo), a.shape[-1]
    table = basis.table(K - 1)
    row = np.zeros(x.shape, dtype=int)
    if a.ndim == 2:
        d = call.options["dim"] % x.ndim
        index = np.arange(x.shape[d]) // max(x.shape[d] // a.shape[0], 1)
        row = np.broadcast_to(index.reshape([-1 if i == d else 1 for i in range(x.ndim)]), x.shape)
    inside = x if outside == "extrapolate" else np.clip(x, lo, hi)
    beyond = np.where(x == inside, 0.0, x - inside)[..., None]
    found: dict[str, list[np.ndarray]] = {"y": [], "dx": [], "dcoeffs": []}
    for majorant in (False, True):
        absolute = np.abs if majorant else np.asarray
        t = wlo + (inside - lo) * scale
        if majorant:
            t = np.abs(t) + 1e-2 * abs(scale) * (abs(lo) + abs(hi))  # the map's own rounding
        phi, slope = walk(t, table, majorant=majorant)
        slope = slope * absolute(scale)
        terms = phi + np.where(beyond == 0, 0.0, absolute(beyond) * slope) if outside == "linear" else phi
        coeffs, weighted = absolute(np.atleast_2d(a))[row], absolute(g)[..., None] * terms
        found["y"].append((coeffs * terms).sum(-1))
        dx = absolute(g) * (coeffs * slope).sum(-1)
        found["dx"].append(np.where(x == inside, dx, 0.0) if outside == "clamp" else dx)
        dcoeffs = [weighted[row == r].reshape(-1, K).sum(0) for r in range(len(np.atleast_2d(a)))]
        found["dcoeffs"].append(np.stack(dcoeffs).reshape(a.shape))
    at_edges, slopes = walk(np.abs(np.array([wlo, whi])), table, majorant=True)
    # The coefficients of p' are rounded once for the whole window, and so to the largest value of p' there.
    largest = np.abs(g) * (coeffs * slopes.max(0) * abs(scale)).sum(-1)
    found["dx"][1] = np.maximum(found["dx"][1], largest)
    edges = max(at_edges.max(), slopes.max()) if outside == "linear" else 0.0
    size = (1 + coeffs.max(-1, initial=0)) * np.maximum((terms + slope).max(-1, initial=0), edges * max(scale, 1))
    size = np.where(np.isnan(size), np.inf, size)
    weighted = size * np.maximum(np.abs(g), 1)  # a walk may begin with g
    sizes = {"y": size, "dx": weighted, "dcoeffs": np.full(a.shape, weighted.max(initial=0))}
    return {name: (*found[name], sizes[name]) for name in found}


@np.errstate(all="ignore")
def wrong_values(call: Call, got: dict[str, Tensor]) -> str | None:
    """What differs from the oracle by more than rounding, where float32 or float64 holds all that takes part."""
    compute = torch.finfo(torch.float64 if call.x.dtype == torch.float64 else torch.float32)
    K = call.coeffs.shape[-1]
    expected = oracle(call)
    for name, (true, majorant, size) in expected.items():
        own = torch.finfo(got[name].dtype)
        value = got[name].detach().double().numpy()
        if value.shape != true.shape:
            return f"{name} has shape {value.shape}, not {true.shape}"
        # The kernels scale φ_k by up to 2^40, and the coefficients of p' may be larger than its values.
        held = (K + 1) ** 2 * np.maximum(majorant, size) < 2.0**-44 * compute.max
        held &= np.abs(true) < own.max / 2
        rounding = 200 * (K + 1) ** 2 * compute.eps * majorant + 2 * own.eps * np.abs(true)
        rounding += 4 * own.smallest_normal + compute.smallest_normal * size  # results and terms that underflow
        off = held & (rounding < own.max) & ~(np.abs(value - true) <= rounding)
        if off.any():
            at = np.unravel_index(np.argmax(off), off.shape)
            at = tuple(int(i) for i in at)
            return f"{name}{list(at)} is {value[at]}, not {true[at]}; rounding explains {rounding[at]:.1e}"
    return None


def is_sentence(error: Exception) -> bool:
    text = str(error)
    return len(text.split()) > 3 and not re.search(r"INTERNAL|[Aa]ssert|0x[0-9a-f]{6}|Traceback", text)


def run_public(call: Call) -> dict[str, Tensor]:
    x, coeffs = call.x.detach().requires_grad_(), call.coeffs.detach().requires_grad_()
    y = slaf_ext.slaf(x, coeffs, **call.options)
    dx, dcoeffs = torch.autograd.grad(y, (x, coeffs), call.grad_output, materialize_grads=True)
    return {"y": y, "dx": dx, "dcoeffs": dcoeffs}


def run_raw(call: Call, rng: np.random.Generator) -> dict[str, Tensor] | None:
    """The operators with a spec of which one number may be changed; None where it was, and they took it."""
    spec = list(arguments.spec(call.coeffs, *(call.options[name] for name in ("basis", "dim", "domain", "outside"))))
    spec[0] = list(spec[0])
    changed = rng.random() < 0.7
    if changed:
        i = int(rng.integers(len(spec)))
        if i == 0:
            j = int(rng.integers(len(spec[0]) + 1))
            spec[0] = spec[0][:j] + rng.choice([*SPECIAL, 1.5], int(rng.integers(0, 3))).tolist() + spec[0][j + 1 :]
        elif i in (1, 5):
            spec[i] = int(rng.choice([-(2**63), -9, -1, 0, 1, 4, 99, 2**63 - 1]))
        else:
            spec[i] = float(rng.choice([*SPECIAL, 1.5, -1.5]))
    if rng.random() < 0.5:
        y = OPS.slaf(call.x, call.coeffs, *spec)
        dx, dcoeffs = OPS.slaf_backward(call.grad_output, call.x, call.coeffs, *spec, True, True)
    else:
        packed = torch.tensor([*map(float, spec[1:]), *spec[0]], dtype=torch.float64)
        if changed and rng.random() < 0.3:
            packed = [packed[:3], packed.float(), packed[None], packed[::2], packed.new_empty(0)][rng.integers(5)]
        y = OPS._slaf(call.x, call.coeffs, packed)
        dx, dcoeffs = OPS._slaf_backward(call.grad_output, call.x, call.coeffs, packed, True, True)
    return None if changed else {"y": y, "dx": dx, "dcoeffs": dcoeffs}


def attempt(seed: int, number: int) -> str:
    """What came of one call: "values", "sentence" or "taken".

    Raises:
        AssertionError: the values are wrong, or the error is no sentence.
    """
    rng = np.random.default_rng((seed, number))
    told = f"call {number} of seed {seed}"
    try:
        call = draw(rng)
        got = run_public(call) if rng.random() < 0.75 else run_raw(call, rng)
    except Exception as error:
        if isinstance(error, ERRORS) and is_sentence(error):
            return "sentence"
        raise AssertionError(f"{told}: {type(error).__name__}: {error}") from error
    if got is None:
        return "taken"
    wrong = wrong_values(call, got)
    assert wrong is None, f"{told}: {wrong}\n{call.x.dtype}, {tuple(call.x.shape)}, {call.coeffs.shape}, {call.options}"
    return "values"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"{options.calls} calls of seed {options.seed}", flush=True)
    counts: dict[str, int] = {}
    for number in range(options.calls):
        outcome = attempt(options.seed, number)
        counts[outcome] = counts.get(outcome, 0) + 1
    print(", ".join(f"{outcome}: {count}" for outcome, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
