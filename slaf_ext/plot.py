"""The plot of an activation: its learned curves, over a histogram of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .bases import check_integer
from .functional import slaf

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .nn import SLAF

MOST_IN_LEGEND = 8


def draw(module: SLAF, ax: Axes | None, inputs: Tensor | None, max_groups: int) -> Axes:
    """What SLAF.plot does, and documents."""
    max_groups = check_integer(max_groups, "max_groups", 1)
    if inputs is not None and (not isinstance(inputs, Tensor) or inputs.is_complex()):
        kind = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"inputs is of type {kind}; it must be a tensor of real numbers, as the module takes them")
    try:
        from matplotlib import cm, colors, pyplot
    except ImportError as error:
        raise ImportError("plot needs matplotlib, which is not installed: pip install matplotlib") from error
    if ax is None:
        ax = pyplot.figure(layout="constrained").subplots()
    count, (lo, hi) = module.num_groups, module.domain or module.basis.domain
    groups = np.unique(np.linspace(0, count - 1, min(max_groups, count)).astype(int)).tolist()
    palette = colors.ListedColormap(pyplot.get_cmap("viridis")(np.linspace(0, 0.9, 256)))
    color_of = cm.ScalarMappable(colors.Normalize(0, max(count - 1, 1)), palette)
    rows = module.fold().coeffs.double().cpu().reshape(count, -1)

    def f(x: np.ndarray, group: int) -> np.ndarray:
        y = slaf(torch.from_numpy(x), rows[group], module.basis, domain=module.domain, outside=module.outside)
        return y.numpy()

    seen = [np.empty(0)] if inputs is None else inputs_by_group(inputs, count, module.dim)
    values = np.concatenate(seen)
    margin = 0.1 * (hi - lo)
    window = limits([values], values) if values.size else (lo - margin, hi + margin)
    has_legend = len(groups) <= MOST_IN_LEGEND
    curves, heights = [], []
    for i, group in enumerate(groups):
        own = seen[group if len(seen) > 1 else 0]
        first, last = np.clip((own.min(), own.max()), *window) if own.size else window
        x = np.linspace(first, last, 400)
        curves.append(f(x, group))
        heights.append(f(own if own.size else np.linspace(lo, hi, 400), group))
        color = f"C{i}" if has_legend else color_of.to_rgba(group)
        ax.plot(x, curves[-1], color=color, linewidth=1.2, label=f"group {group}")
    _decorate(ax, limits(heights, np.concatenate(curves)), (lo, hi))
    title = f"{len(groups)} of {count} groups" if len(groups) < count else None
    if not has_legend:
        ticks = [groups[0], groups[len(groups) // 2], groups[-1]]
        ax.figure.colorbar(color_of, ax=ax, label=title or "group", ticks=ticks)
    elif count > 1:
        ax.legend(title=title, fontsize="small", framealpha=0.6)
    if values.size:
        _draw_histogram(ax, values, window)
    return ax


def _decorate(ax: Axes, heights: tuple[float, float], domain: tuple[float, float]) -> None:
    """The limits in y, the edges of the domain and the labels."""
    bottom, top = heights
    if bottom < top:
        ax.set_ylim(bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom))
    left, right = ax.get_xlim()
    for edge in domain:
        if left < edge < right:
            ax.axvline(edge, color="0.5", linestyle=":", linewidth=0.8)
    ax.set_xlabel("x")
    ax.set_ylabel("f(x)")


def _draw_histogram(ax: Axes, values: np.ndarray, window: tuple[float, float]) -> None:
    """A histogram behind the curves, on a second y axis."""
    back = ax.twinx()
    back.hist(values, bins=80, range=window, color="0.85")
    back.set_yticks([])
    ax.set_zorder(back.get_zorder() + 1)
    ax.patch.set_visible(False)


def limits(samples: Sequence[np.ndarray], everything: np.ndarray) -> tuple[float, float]:
    """The range that shows most of most samples, plus at most its own height on each side.

    Most of a sample: from its 1st to its 99th percentile. Most samples: all but the quarter with the lowest such ends,
    and the quarter with the highest. So neither a steep end nor a group of large values flattens the others.
    """
    everything = everything[np.isfinite(everything)]
    usual = [np.quantile(finite, (0.01, 0.99)) for s in samples if (finite := s[np.isfinite(s)]).size]
    if not usual or not everything.size:
        return 0.0, 0.0
    lows, highs = np.transpose(usual)
    ends = np.quantile(lows, 0.25, method="higher"), np.quantile(highs, 0.75, method="lower")
    low, high, height = min(ends), max(ends), abs(ends[1] - ends[0])
    if height == 0:
        return everything.min(), everything.max()
    return max(everything.min(), low - height), min(everything.max(), high + height)


def inputs_by_group(inputs: Tensor, groups: int, dim: int) -> list[np.ndarray]:
    """A sample of the finite inputs of every group, or of all inputs if `dim` does not divide into the groups."""
    rows = inputs.detach().reshape(1, -1)
    if inputs.numel() and -inputs.dim() <= dim < inputs.dim() and inputs.shape[dim] % groups == 0:
        rows = inputs.detach().movedim(dim, 0).reshape(groups, -1)
    rows = rows[:, :: max(1, rows.numel() // 1_000_000)].double().cpu()
    return [row[row.isfinite()].numpy() for row in rows]
