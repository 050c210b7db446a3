"""The figures, as PNG. Lines differ in marker and dash as well as in colour, so that print keeps them apart."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from .analysis import describe, frame, pick, roofs, units
from .cases import ROOFS
from .results import Results

plt.switch_backend("agg")
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
                 "grid.color": "#DDDDDD", "grid.linewidth": 0.6}  # fmt: skip

# The colours of Okabe and Ito, which differ in lightness too.
STYLES = {
    "fused": {"color": "#0072B2", "marker": "o", "linestyle": "-", "linewidth": 2.2},
    "relu": {"color": "#000000", "marker": "s", "linestyle": "--"},
    "compiled horner": {"color": "#009E73", "marker": "^", "linestyle": "-."},
    "horner": {"color": "#E69F00", "marker": "D", "linestyle": "-"},
    "clenshaw": {"color": "#E69F00", "marker": "d", "linestyle": "--"},
    "naive": {"color": "#D55E00", "marker": "h", "linestyle": (0, (7, 2))},
    "memory roof": {"color": "#000000", "linewidth": 1, "linestyle": "-"},
    "arithmetic roof": {"color": "#000000", "linewidth": 1, "linestyle": (0, (4, 1, 1, 1, 1, 1))},
}


def draw_all(results: Iterable[Results], folder: Path) -> list[Path]:
    """Every figure for which the results have the numbers; each file says which raw files it was drawn from."""
    results = list(results)
    table = frame(results)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (_, select, draw) in FIGURES.items():
        if selected := select(table):
            figure, about = draw(selected)
            about += f", {results[0].environment['gpu'] or results[0].environment['cpu']}; medians and quartiles"
            figure.suptitle(textwrap.fill(about, round(12 * figure.get_figwidth())), fontsize=10)
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=110, metadata={"Description": origin(results)})
            plt.close(figure)
    return written


def origin(results: Iterable[Results]) -> str:
    return "; ".join(f"{r.path.name}, measured {r.environment['date']} at {r.environment['commit']}" for r in results)


def _headline_units(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Forward + backward at 2^20 elements, by degree."""
    timed = table[table["median"].notna() & ~table.variant.isin(ROOFS)]
    found = units(timed, suite="headline", shape=(2**20,), memory="kept", dtype="fp32")
    return sorted(found, key=lambda unit: unit.degree.iloc[0])


def _headline(selected: list[pd.DataFrame]) -> tuple[plt.Figure, str]:
    """A dot for each variant, on a logarithmic axis."""
    size = 4 * len(selected), 3.8
    figure, axes = plt.subplots(1, len(selected), figsize=size, sharex=True, layout="constrained", squeeze=False)
    for ax, unit in zip(axes.flat, selected, strict=True):
        drawn = unit.sort_values("median")
        for i, (_, row) in enumerate(drawn.iterrows()):
            low, median, high = (1e3 * t for t in row.blocks.quartiles)
            dot, color, weight = (8, "#0072B2", "bold") if row.variant == "fused" else (6, "#D9D9D9", "normal")
            ax.errorbar(median, i, xerr=[[median - low], [high - median]], fmt="o", markersize=dot, capsize=2.5,
                        elinewidth=1, color="black", markerfacecolor=color)  # fmt: skip
            ax.annotate(f"{median:.3g}", (high, i), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8,
                        fontweight=weight)  # fmt: skip
        ax.set_yticks(range(len(drawn)), drawn.variant)
        ax.invert_yaxis()
        ax.set(xscale="log", xlabel="time, ms (log scale)", title=f"degree {unit.degree.iloc[0]}")
        ax.margins(x=0.2)
    return figure, describe(selected[0].case.iloc[0]).partition(", ")[2]


def _sweeps(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The suites that vary the size and the degree, each with that number and the unit in a row."""
    found = []
    for suite, number in (("sizes", "elements"), ("degrees", "degree")):
        swept = [u for u in units(table, suite=suite) if pick(u, "fused") is not None]
        xs = [u.case.iloc[0].numel if suite == "sizes" else u.degree.iloc[0] for u in swept]
        found += [pd.DataFrame({number: xs, "unit": swept}).sort_values(number)] * (len(swept) > 1)
    return found


def _scaling(sweeps: list[pd.DataFrame]) -> tuple[plt.Figure, str]:
    """Time against one number: a line for each variant and for each roof."""
    figure, axes = plt.subplots(1, len(sweeps), figsize=(5.5 * len(sweeps), 4.6), layout="constrained", squeeze=False)
    for ax, swept in zip(axes.flat, sweeps, strict=True):
        number = swept.columns[0]
        for name, style in STYLES.items():
            times = {}
            for x, unit in zip(swept[number], swept.unit, strict=True):
                limits = roofs(unit, pick(unit, "fused").entry)
                if (row := pick(unit, name)) is not None:
                    limits[name] = row.blocks
                if name in limits:
                    times[x] = [1e3 * t for t in limits[name].quartiles]
            if times:
                low, median, high = zip(*times.values(), strict=True)
                ax.plot(list(times), median, label=name, markersize=5, **style)
                if "roof" not in name:
                    ax.fill_between(list(times), low, high, color=style["color"], alpha=0.15, linewidth=0)
        ax.set(yscale="log", xlabel=number, ylabel="time, ms (log scale)")
        if number == "elements":
            ax.set_xscale("log", base=2)
    handles, names = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure, "Degree 8, or N = 2^20; " + describe(sweeps[0].unit.iloc[0].case.iloc[0]).split(", ", 3)[3]


# name: (caption, what selects the records to draw, or nothing if there are none, what draws them)
FIGURES = {
    "headline": ("time of each variant", _headline_units, _headline),
    "scaling": ("time against elements and degree", _sweeps, _scaling),
}
