"""The speed and memory that this project promises, as ratios, and whether a run shows them.

At 2^20 elements a ratio to relu depends on which tensors a cache holds. So kernels are compared with gelu there, with
relu at 2^24 elements, where memory limits both, and with the larger of two roofs measured in the same rounds. From 2^20
elements on, the cost of a call from Python hardly matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import cases
from .analysis import RIVALS, pick, roof, units
from .cases import NORMALIZING
from .results import Blocks

FLAT, LARGE, IMAGE, ROWS = (2**20,), (2**24,), (32, 64, 56, 56), (4096, 768)
KEPT = {"memory": "kept", "dtype": "fp32"}


@dataclass(frozen=True)
class Bar:
    """`over` / `under` held against `bound`, in the first unit whose columns are as `where` says.

    Beside variants, "compiled" is the fastest compiled form, "roof" the larger roof of the other side, and "inputs"
    the bytes of x and coeffs. `of` is "blocks" of time, or "peak" or "saved" bytes; `group` is "CPU", "GPU", or
    "floor" for the GPU's kernels.
    """

    text: str
    over: str
    under: str
    sense: str
    bound: float
    where: dict
    suites: tuple[str, ...] = ("headline", "sizes")
    of: str = "blocks"
    group: str = "CPU"


def _at(shape: tuple[int, ...], degree: int = 8, layout: str = "contiguous") -> dict:
    return {"shape": shape, "degree": degree, "layout": layout}


def _of_kan(at: dict, least: float | None) -> list[Bar]:
    """Of a layer with a polynomial of degree n on every edge. ChebyKAN holds all terms, several times."""
    name, where = f"KAN {at['shape'][-1]}, n = {at['degree']}", ("kan",)
    return [
        Bar(f"{name}: kan / product", "kan", "kan product", "≤", 1.25, at, where),
        *([Bar(f"{name}: chebykan / kan", "chebykan", "kan", "≥", least, at, where)] if least else []),
        Bar(f"{name}: peak / chebykan", "kan", "chebykan", "≤", 0.2, at, where, "peak"),
    ]


_ROOFS = {"degree 3": _at(FLAT, 3), "degree 8": _at(FLAT), "degree 16": _at(FLAT, 16), "2^24 elements": _at(LARGE),
          "per channel": _at(IMAGE), "NHWC": _at(IMAGE, 8, "channels_last"), "per feature": _at(ROWS)}  # fmt: skip
_NORMALIZED = {"per channel": _at(IMAGE, 5), "NHWC": _at(IMAGE, 5, "channels_last")}
_KAN = [(_at((4096, 256), 3), None), (_at((4096, 256), 5), None), (_at((4096, 256)), 1.9), (_at((1024, 1024), 3), 1.6)]
_NETWORKS = [{"network": name, "kind": "network"} for name in ("mlp", "resnet", "vit")]
_CPU = (
    Bar("degree 3: fused / gelu", "fused", "gelu", "≤", 0.6, _at(FLAT, 3)),
    Bar("degree 8: fused / gelu", "fused", "gelu", "≤", 0.6, _at(FLAT)),
    Bar("degree 16: fused / gelu", "fused", "gelu", "≤", 0.9, _at(FLAT, 16)),
    Bar("2^24 elements: fused / relu", "fused", "relu", "≤", 1.15, _at(LARGE)),
    Bar("degree 8: best compiled / fused", "compiled", "fused", "≥", 2.5, _at(FLAT)),
    *(Bar(f"{name}: fused / roof", "fused", "roof", "≤", 2, at) for name, at in _ROOFS.items()),
    *(Bar(f"{name}: normalised / bn+relu", *NORMALIZING, "≤", 1.5, at) for name, at in _NORMALIZED.items()),
    *(Bar(f"{n['network']} step: fused / relu", "fused", "relu", "≤", 1.05, n, ("networks",)) for n in _NETWORKS),
    *(Bar(f"degree {n}: peak, fused / relu", "fused", "relu", "≤", 1.01, {"degree": n}, ("memory",), "peak")
      for n in (3, 8, 16)),
    Bar("saved bytes: fused / (x, coeffs)", "fused", "inputs", "≤", 1, {"degree": 8}, ("memory",), "saved"),
    *(bar for at, least in _KAN for bar in _of_kan(at, least)),
    Bar("a call: fused / python function", "fused", "python function", "≤", 1.35, {}, ("calls",), group="GPU"),
)  # fmt: skip


def _floor() -> Iterator[Bar]:
    """The share of a copy's bandwidth that the GPU's kernels reach."""
    for name, entry, share in cases.floor():
        where = {k: getattr(entry.case, k) for k in ("shape", "degree", "basis", "layout", "dtype", "passes")}
        yield Bar(name, "roof", entry.variant, "≥", share, where, ("gpu",), group="floor")


BARS = (*_CPU, *_floor())


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each bar that the records have both sides of; `disturbed`: by other processes on the cores."""
    rows = []
    for bar in BARS:
        device = table[(table.device == "cpu") == (bar.group == "CPU")]
        found = (_value(bar, unit) for suite in bar.suites for unit in units(device, **KEPT | bar.where, suite=suite))
        if value := next(filter(None, found), None):
            low, median, high = value.quartiles
            met = median >= bar.bound if bar.sense == "≥" else median <= bar.bound
            kernel = {"degree": None, "dtype": None, "passes": None, **bar.where}
            quartiles = {"low": low, "median": median, "high": high}
            rows.append({**vars(bar), **kernel, **quartiles, "met": met, "disturbed": value.disturbed})
    return pd.DataFrame(rows, columns=None if rows else ["group"])


def _value(bar: Bar, unit: pd.DataFrame) -> Blocks | None:
    """The ratio; None if the unit lacks a side."""
    case = unit.case.iloc[0]
    if bar.of != "blocks":
        inputs = float(case.nbytes + case.nbytes // case.numel * (case.degree + 1) * case.groups)
        sizes = {**dict(zip(unit.variant, unit[bar.of], strict=True)), "inputs": inputs}
        ratio = sizes.get(bar.over, np.nan) / sizes.get(bar.under, np.nan)
        return None if np.isnan(ratio) else Blocks(np.full(3, ratio), np.full(3, True))
    rows = {name: pick(unit, *RIVALS.get(name, (name,))) for name in (bar.over, bar.under) if name != "roof"}
    if any(row is None for row in rows.values()):
        return None
    limit = roof(unit, next(iter(rows.values())).entry)
    over, under = (limit if name == "roof" else rows[name].blocks for name in (bar.over, bar.under))
    return over and under and over.over(under)
