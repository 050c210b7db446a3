"""The figures, as PNG and SVG: told apart by marker and dash as well as by colour, so that print keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from matplotlib import pyplot as plt

from .cases import Case
from .results import Results
from .statistics import Group, groups

plt.switch_backend("agg")  # files alone, with or without a screen
plt.rcParams["svg.hashsalt"] = "slaf_ext"  # the same numbers give the same file

# Okabe and Ito's colours, which differ in lightness too.
STYLES = {
    "fused": {"color": "#0072B2", "marker": "o", "linestyle": "-", "linewidth": 2.2},
    "relu": {"color": "#000000", "marker": "s", "linestyle": "--"},
    "clone": {"color": "#7F7F7F", "marker": "x", "linestyle": ":"},
    "gelu": {"color": "#56B4E9", "marker": "P", "linestyle": "--"},
    "prelu": {"color": "#CC79A7", "marker": "X", "linestyle": "--"},
    "compiled horner": {"color": "#009E73", "marker": "^", "linestyle": "-."},
    "compiled clenshaw": {"color": "#009E73", "marker": "v", "linestyle": "-."},
    "max-autotune horner": {"color": "#005C43", "marker": "<", "linestyle": "-."},
    "max-autotune clenshaw": {"color": "#005C43", "marker": ">", "linestyle": "-."},
    "horner": {"color": "#E69F00", "marker": "D", "linestyle": "-"},
    "clenshaw": {"color": "#E69F00", "marker": "d", "linestyle": "--"},
    "stacked": {"color": "#F0E442", "marker": "*", "linestyle": "-"},
    "naive": {"color": "#D55E00", "marker": "h", "linestyle": "-"},
}


def draw_all(results: Iterable[Results], folder: Path) -> list[Path]:
    """Every figure for which the results have the numbers."""
    results = list(results)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in FIGURES.items():
        figure = draw(results)
        if figure is not None:
            for suffix in ("png", "svg"):
                path = folder / f"{name}.{suffix}"
                figure.savefig(path, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
                written.append(path)
            plt.close(figure)
    return written


def _headline(results: list[Results]):
    """Forward + backward at 2^20 elements: a bar for every variant, by degree."""
    chosen = {
        g[0].entry.case.degree: g
        for g in groups(results, "times", "headline")
        if (g[0].entry.case.shape, g[0].entry.case.memory) == ((2**20,), "kept")
    }
    if not chosen:
        return None
    figure, axes = plt.subplots(1, len(chosen), figsize=(4 * len(chosen), 4), sharex=True, layout="constrained")
    for ax, (degree, group) in zip(axes if len(chosen) > 1 else [axes], sorted(chosen.items()), strict=True):
        fp32 = [
            m for m in group if m.record.get("seconds") and m.entry.case.dtype == "fp32" and m.entry.variant != "copy"
        ]
        fp32.sort(key=lambda m: m.time.median)
        for i, m in enumerate(fp32):
            t = m.time
            mine = m.entry.variant == "fused"
            ax.barh(i, t.median * 1e3, color="#0072B2" if mine else "#D9D9D9", edgecolor="black", linewidth=0.8,
                    xerr=[[(t.median - t.low) * 1e3], [(t.high - t.median) * 1e3]],
                    error_kw={"capsize": 2.5, "elinewidth": 1})  # fmt: skip
            ax.annotate(f"{t.median * 1e3:.3g}", (t.high * 1e3, i), xytext=(4, 0), textcoords="offset points",
                        va="center", fontsize=8)  # fmt: skip
        ax.set_yticks(range(len(fp32)), [m.entry.variant for m in fp32])
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.set_title(f"degree {degree}")
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlabel("time, ms (log scale)")
        ax.margins(x=0.2)
    case = group[0].entry.case
    environment = results[-1].environment
    figure.suptitle(
        f"Forward + backward, {case.basis}, one polynomial, 2^20 elements, fp32, {case.threads} threads, "
        f"{environment['gpu'] or environment['cpu']}",
        fontsize=10,
    )
    return figure


def _lines(results: list[Results], suite: str, x_of: Callable[[Case], float], xlabel: str, log: bool = True, **only):
    """Time against something, a line for every variant, and the least time that the bytes moved would take."""
    chosen = [
        g for g in groups(results, "times", suite) if all(getattr(g[0].entry.case, k) == v for k, v in only.items())
    ]
    if len(chosen) < 2:
        return None
    chosen.sort(key=lambda g: x_of(g[0].entry.case))
    figure, ax = plt.subplots(figsize=(7.5, 5), layout="constrained")
    drawn = {m.entry.variant for g in chosen for m in g if m.record.get("seconds")}
    for variant in (name for name in STYLES if name in drawn):
        points = [(x_of(m.entry.case), m.time) for g in chosen if (m := g.find(variant))]
        xs, ts = [x for x, _ in points], [t for _, t in points]
        ax.plot(xs, [t.median * 1e3 for t in ts], label=variant, markersize=6, **STYLES[variant])
        ax.fill_between(xs, [t.low * 1e3 for t in ts], [t.high * 1e3 for t in ts], color=STYLES[variant]["color"],
                        alpha=0.15, linewidth=0)  # fmt: skip
    floor = [
        (x_of(c.entry.case), c.time.median * c.entry.case.moved_bytes / (2 * c.entry.case.nbytes))
        for g in chosen
        if (c := g.find("copy"))
    ]
    ax.plot(*zip(*((x, t * 1e3) for x, t in floor), strict=True), color="black", linewidth=1, label="memory roof")
    ax.set_yscale("log")
    if log:
        ax.set_xscale("log", base=2)
    ax.set_xlabel(xlabel)
    ax.set_ylabel("time of forward + backward, ms")
    ax.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    ax.set_title(_where(chosen[0][0].entry.case, results, without=suite), fontsize=9)
    return figure


def _where(case: Case, results: list[Results], without: str) -> str:
    environment = results[-1].environment
    parts = {
        "degrees": f"{case.basis}",
        "": f"{case.basis} of degree {case.degree}",
    }
    what = parts.get(without, parts[""])
    count = "" if without in ("sizes", "threads") else "2^20 elements, "
    thread = "" if without == "threads" else f"{case.threads} threads, "
    return f"{what}, {count}{case.dtype}, {thread}{environment['gpu'] or environment['cpu']}"


def _sizes(results: list[Results]):
    return _lines(results, "sizes", lambda case: case.numel, "elements")


def _degrees(results: list[Results]):
    return _lines(results, "degrees", lambda case: case.degree, "degree", log=False)


def _channels(results: list[Results]):
    return _lines(results, "channels", lambda case: case.shape[1], "channels, a polynomial each", layout="contiguous")


def _channels_last(results: list[Results]):
    xlabel = "channels (last in memory), a polynomial each"
    return _lines(results, "channels", lambda case: case.shape[1], xlabel, layout="channels_last")


def _threads(results: list[Results]):
    return _lines(results, "threads", lambda case: case.threads, "threads, at 2^24 elements", shape=(2**24,))


def _bases(results: list[Results]):
    """The fused kernel and relu, for every basis."""
    chosen = list(groups(results, "times", "bases"))
    return _bars(
        [(g[0].entry.case.basis, g) for g in chosen], ("relu", "fused", "clenshaw", "naive"), results,
        "time of forward + backward, ms", f"degree {chosen[0][0].entry.case.degree}, 2^20 elements" if chosen else "",
        "times",
    )  # fmt: skip


def _networks(results: list[Results]):
    """A step of training."""
    chosen = list(groups(results, "network"))
    return _bars(
        [(g[0].entry.network or "", g) for g in chosen], ("relu", "gelu", "fused", "compiled horner", "naive"), results,
        "time of a training step, ms", f"degree {chosen[0][0].entry.case.degree}" if chosen else "", "network",
    )  # fmt: skip


def _bars(
    labelled: list[tuple[str, Group]], variants: tuple[str, ...], results: list[Results], ylabel: str, what: str,
    kind: str,
):  # fmt: skip
    """Grouped bars, told apart by shade and hatching."""
    if not labelled:
        return None
    drawn = [v for v in variants if any(g.find(v) for _, g in labelled)]
    figure, ax = plt.subplots(figsize=(max(6.0, 0.8 * len(labelled) + 2), 4.5), layout="constrained")
    width = 0.8 / len(drawn)
    for i, variant in enumerate(drawn):
        found = [(j, m.time) for j, (_, g) in enumerate(labelled) if (m := g.find(variant))]
        ax.bar(
            [j + (i - (len(drawn) - 1) / 2) * width for j, _ in found], [t.median * 1e3 for _, t in found], width,
            yerr=[[(t.median - t.low) * 1e3 for _, t in found], [(t.high - t.median) * 1e3 for _, t in found]],
            label=variant, edgecolor="black", linewidth=0.6, error_kw={"elinewidth": 0.8}, **FILLS[variant],
        )  # fmt: skip
    ax.set_xticks(range(len(labelled)), [name for name, _ in labelled], rotation=35 if len(labelled) > 5 else 0,
                  ha="right" if len(labelled) > 5 else "center")  # fmt: skip
    if kind == "times":
        ax.set_yscale("log")  # the variants of a network's step are within a factor, those of an operator are not
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(drawn), frameon=False, fontsize=9)
    case, environment = labelled[0][1][0].entry.case, results[-1].environment
    where = environment["gpu"] or f"{case.threads} threads, {environment['cpu']}"
    ax.set_xlabel(f"{what}, {case.dtype}, {where}", fontsize=9)
    return figure


FILLS = {
    "fused": {"color": "#0072B2"},
    "relu": {"color": "#FFFFFF"},
    "gelu": {"color": "#FFFFFF", "hatch": "...."},
    "compiled horner": {"color": "#8FD3BE", "hatch": "\\\\\\\\"},
    "clenshaw": {"color": "#F6CE7A", "hatch": "////"},
    "naive": {"color": "#BBBBBB", "hatch": "xxxx"},
}
FIGURES: dict[str, Callable] = {
    "headline": _headline,
    "sizes": _sizes,
    "degrees": _degrees,
    "channels": _channels,
    "channels-last": _channels_last,
    "threads": _threads,
    "bases": _bases,
    "networks": _networks,
}
