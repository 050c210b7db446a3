"""The figures, as PNG and SVG: told apart by marker and dash as well as by colour, so that print keeps them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib import ticker

from . import bars, tables
from .cases import PASSES, ROOFS, Case
from .results import Results, writing
from .statistics import Group, Measured, groups

plt.switch_backend("agg")  # files alone, with or without a screen
plt.rcParams["svg.hashsalt"] = "slaf_ext"  # the same numbers give the same file
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "grid.color": "#DDDDDD", "grid.linewidth": 0.6}

# Okabe and Ito's colours, which differ in lightness too.
STYLES = {
    "fused": {"color": "#0072B2", "marker": "o", "linestyle": "-", "linewidth": 2.2},
    "relu": {"color": "#000000", "marker": "s", "linestyle": "--"},
    "clone": {"color": "#7F7F7F", "marker": "x", "linestyle": ":"},
    "compiled horner": {"color": "#009E73", "marker": "^", "linestyle": "-."},
    "horner": {"color": "#E69F00", "marker": "D", "linestyle": "-"},
    "clenshaw": {"color": "#E69F00", "marker": "d", "linestyle": "--"},
    "naive": {"color": "#D55E00", "marker": "h", "linestyle": (0, (7, 2))},
}


def draw_all(results: Iterable[Results], folder: Path) -> list[Path]:
    """Every figure for which the results have the numbers.

    Raises:
        ResultsError: the folder cannot be written.
    """
    with writing(folder):
        return _draw_all(list(results), folder)


def _draw_all(results: list[Results], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in FIGURES.items():
        chosen = figure.chosen(results)
        if chosen:
            # Beside a file of the CPU, one of a GPU has its own figure alone.
            fitting = [r.environment for r in results if bool(r.environment["gpu"]) == figure.of_gpu]
            environment = [results[-1].environment, *fitting][-1]
            drawn = figure.draw(chosen, environment["gpu"] or environment["cpu"])
            for suffix, silent in (("png", {}), ("svg", {"Date": None})):
                path = folder / f"{name}.{suffix}"
                drawn.savefig(path, dpi=150, metadata={**silent, "Description": origin(results)})
                written.append(path)
            plt.close(drawn)
    return written


def origin(results: Iterable[Results]) -> str:
    """What a figure's file says of where its numbers come from."""
    return "; ".join(f"{r.path.name}, measured {r.environment['date']} at {r.environment['commit']}" for r in results)


def _elements(case: Case) -> str:
    return f"$2^{{{case.numel.bit_length() - 1}}}$ elements"


WHISKERS = "medians, with whiskers to the quartiles"


# ------------------------------------------------------------------ headline


def _headline_groups(results: list[Results]) -> dict[tuple[int, str], Group]:
    """Forward + backward at 2^20 elements, by degree and dtype."""
    found = {
        (g.case.degree, g.case.dtype): g
        for g in groups(results, "times", "headline")
        if (g.case.shape, g.case.memory) == ((2**20,), "kept") and any(m.is_timed for m in g)
    }
    return dict(sorted(found.items()))


def _headline(chosen: dict[tuple[int, str], Group], where: str):
    """A dot for every variant: the axis is logarithmic, on which the length of a bar says nothing."""
    width = 4 * len(chosen)
    figure, axes = plt.subplots(1, len(chosen), figsize=(width, 4), sharex=True, layout="constrained", squeeze=False)
    dtypes = list(dict.fromkeys(dtype for _, dtype in chosen))
    for ax, ((degree, dtype), group) in zip(axes.flat, chosen.items(), strict=True):
        drawn = [m for m in group if m.is_timed and m.entry.case.dtype == dtype and m.entry.variant not in ROOFS]
        drawn.sort(key=lambda m: m.time.median)
        for i, m in enumerate(drawn):
            median, whiskers = _ms(m)
            mine = m.entry.variant == "fused"
            ax.errorbar(median, i, xerr=whiskers, fmt="o", markersize=8 if mine else 6, capsize=2.5, elinewidth=1,
                        color="black", markerfacecolor="#0072B2" if mine else "#D9D9D9")  # fmt: skip
            ax.annotate(f"{median:.3g}", (m.time.high * 1e3, i), xytext=(7, 0), textcoords="offset points",
                        va="center", fontsize=8, fontweight="bold" if mine else "normal")  # fmt: skip
        ax.set_yticks(range(len(drawn)), [m.entry.variant for m in drawn])
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.set_title(f"degree {degree}" + f", {dtype}" * (len(dtypes) > 1))
        ax.grid(True)
        ax.set_axisbelow(True)
        ax.set_xlabel("time, ms (log scale)")
        ax.margins(x=0.2)
    case = group.case
    title = f"Forward + backward, {case.basis}, one polynomial, {_elements(case)}, {' and '.join(dtypes)}"
    figure.suptitle(_wrapped(f"{title}, {tables.where(case)}, {where}; {WHISKERS}", width), fontsize=10)
    return figure


def _ms(m: Measured) -> tuple[float, list[list[float]]]:
    """The median, and how far the quartiles lie from it on either side, as matplotlib takes them."""
    t = m.time
    return t.median * 1e3, [[(t.median - t.low) * 1e3], [(t.high - t.median) * 1e3]]


def _wrapped(text: str, inches: float) -> str:
    """Text of 10 points in lines that a figure of that width has room for."""
    return textwrap.fill(text, round(12 * inches), break_long_words=False)


# ------------------------------------------------------------------ scaling


@dataclass(frozen=True)
class Sweep:
    """A suite that varies one number, and which of its cases belong in one picture."""

    suite: str
    of: Callable[[Case], float]
    label: str
    only: tuple[str, object] | None = None
    log: bool = True


SWEEPS = (
    Sweep("sizes", lambda case: case.numel, "elements"),
    Sweep("degrees", lambda case: case.degree, "degree", log=False),
    Sweep("channels", lambda case: case.shape[1], "channels, a polynomial each", ("layout", "contiguous")),
    Sweep("channels", lambda case: case.shape[1], "channels, a polynomial each", ("layout", "channels_last")),
    Sweep("threads", lambda case: case.threads, "threads", ("shape", (2**24,))),
)


def _sweeps(results: list[Results]) -> list[tuple[Sweep, list[Group]]]:
    """The sweeps of which there are two points at least."""
    found = []
    for sweep in SWEEPS:
        chosen = [
            g for g in groups(results, "times", sweep.suite)
            if sweep.only is None or getattr(g.case, sweep.only[0]) == sweep.only[1]
        ]  # fmt: skip
        chosen = [g for g in chosen if any(m.is_timed for m in g)]
        if len(chosen) > 1:
            found.append((sweep, sorted(chosen, key=lambda g: sweep.of(g.case))))
    return found


def _scaling(chosen: list[tuple[Sweep, list[Group]]], where: str):
    """Time against one number, a line for every variant, and the least time that the bytes moved would take."""
    columns = min(2, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5 * columns, 3.6 * rows + 0.8), layout="constrained", squeeze=False
    )
    named = {}
    for ax, (sweep, swept) in zip(axes.flat, chosen, strict=False):
        _lines(ax, sweep, swept)
        named |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    for ax in axes.flat[len(chosen) :]:
        ax.set_axis_off()
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    title = f"Forward + backward, fp32, {where}; medians, with bands between the quartiles"
    figure.suptitle(_wrapped(title, 5 * columns), fontsize=10)
    return figure


def _lines(ax, sweep: Sweep, swept: list[Group]) -> None:
    drawn = {m.entry.variant for g in swept for m in g if m.is_timed}
    for variant in (name for name in STYLES if name in drawn):
        points = [(sweep.of(m.entry.case), m.time) for g in swept if (m := g.find(variant))]
        xs, ts = [x for x, _ in points], [t for _, t in points]
        ax.plot(xs, [t.median * 1e3 for t in ts], label=variant, markersize=5, **STYLES[variant])
        ax.fill_between(xs, [t.low * 1e3 for t in ts], [t.high * 1e3 for t in ts], color=STYLES[variant]["color"],
                        alpha=0.15, linewidth=0)  # fmt: skip
    for name, roof, dashes in (
        ("memory roof", tables.roof, "-"),
        ("arithmetic roof", tables.arithmetic_roof, (0, (4, 1, 1, 1, 1, 1))),
    ):
        known = [(sweep.of(g.case), t * 1e3) for g in swept if (t := roof(g)) > 0]  # nan is not, nor is degree 0
        if known:
            ax.plot(*zip(*known, strict=True), color="black", linewidth=1, linestyle=dashes, label=name)
    ax.set_yscale("log")
    if sweep.log:
        ax.set_xscale("log", base=2)
    if sweep.suite == "threads":
        ax.set_xticks([sweep.of(g.case) for g in swept], [str(g.case.threads) for g in swept])
        ax.xaxis.set_minor_locator(ticker.NullLocator())
    case = swept[0].case
    fixed = {
        "elements": sweep.suite != "sizes" and _elements(case),
        "degree": sweep.suite != "degrees" and f"degree {case.degree}",
        "layout": sweep.suite == "channels" and case.layout.replace("_", " "),
        "threads": sweep.suite != "threads" and tables.where(case),
    }
    ax.set_title(", ".join([case.basis, *filter(None, fixed.values())]), fontsize=9)
    ax.set_xlabel(sweep.label)
    ax.set_ylabel("time, ms (log scale)")
    ax.grid(True)


# ------------------------------------------------------------------ networks, and a GPU's kernels


def _network_groups(results: list[Results]) -> list[Group]:
    """The networks of one device, the first."""
    found = list(groups(results, "network"))
    return [group for group in found if group.case.device == found[0].case.device]


def _networks(chosen: list[Group], where: str):
    """A step of training. The variants are within a factor, so bars on a linear axis, told apart by hatching too."""
    drawn = [v for v in FILLS if any(g.find(v) for g in chosen)]
    figure, ax = plt.subplots(figsize=(6, 4.5), layout="constrained")
    width = 0.8 / len(drawn)
    for i, variant in enumerate(drawn):
        named = variant
        for j, group in enumerate(chosen):
            if m := group.find(variant):
                median, whiskers = _ms(m)
                ax.bar(j + (i - (len(drawn) - 1) / 2) * width, median, width, yerr=whiskers, label=named,
                       edgecolor="black", linewidth=0.6, capsize=2, error_kw={"elinewidth": 0.8},
                       **FILLS[variant])  # fmt: skip
                named = "_"
    ax.set_ylabel("time of a training step, ms")
    case = chosen[0].case
    ax.set_xticks(range(len(chosen)), [g[0].entry.network or "" for g in chosen])
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    what = f"{case.basis}, degree {case.degree}, {case.dtype}, {tables.where(case)}, {where}; {WHISKERS}"
    ax.set_xlabel(_wrapped(what, figure.get_figwidth()), fontsize=9)
    return figure


FILLS = {
    "relu": {"color": "#FFFFFF"},
    "gelu": {"color": "#FFFFFF", "hatch": "...."},
    "fused": {"color": "#0072B2"},
    "compiled horner": {"color": "#8FD3BE", "hatch": "\\\\\\\\"},
    "naive": {"color": "#BBBBBB", "hatch": "xxxx"},
}


def _floor(chosen: list[bars.Verdict], where: str):
    """The share of a copy's bandwidth, which should not lie to the left of its bar."""
    rows = list(dict.fromkeys(v.bar.text for v in chosen))
    marks = ("fp32", "#0072B2", "o"), ("bf16", "#D55E00", "^"), ("fp16", "#009E73", "D")
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 0.4 * len(rows) + 1.6), sharex=True, sharey=True, layout="constrained"
    )
    for ax, passes in zip(axes, PASSES[1:], strict=True):
        for i, (dtype, color, marker) in enumerate(marks):
            drawn = [v for v in chosen if (v.bar.case["dtype"], v.bar.case["passes"]) == (dtype, passes)]
            places = [rows.index(v.bar.text) + 0.25 * (i - 1) for v in drawn]
            ax.plot([v.bar.bound for v in drawn], places, linestyle="", marker="|", markersize=9, color="black")
            ax.plot([v.measured.median for v in drawn], places, marker, color=color, label=dtype)
        ax.set_title(passes)
        ax.grid(True)
        ax.set_axisbelow(True)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].invert_yaxis()
    axes[0].legend(loc="best", fontsize=9)
    title = f"Share of a copy's bandwidth, kernels alone, x of $2^{{26}}$ elements, {where}; | is what is promised"
    figure.suptitle(_wrapped(title, 10), fontsize=10)
    return figure


@dataclass(frozen=True)
class Figure:
    """A picture: what it takes from the results, nothing if they do not have it, and how it is drawn."""

    caption: str
    chosen: Callable
    draw: Callable
    of_gpu: bool = False


FIGURES = {
    "headline": Figure("time of each variant", _headline_groups, _headline),
    "scaling": Figure("time against elements, degree, channels and threads", _sweeps, _scaling),
    "networks": Figure("time of a training step", _network_groups, _networks),
    "gpu": Figure("share of a copy's bandwidth on a GPU", bars.floor, _floor, of_gpu=True),
}
