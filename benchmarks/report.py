"""Reports: for the terminal, the block of README.md between two markers, and REPORT.md with every table."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Iterable

import pandas as pd
import tabulate

from . import analysis, figures
from .analysis import costs, describe, duration, frame, label, mebibytes, pick, ratio, roof, short, spread, units
from .bars import verdicts
from .cases import KAN, NORMALIZING, PRESETS, ROOFS
from .environment import ROOT
from .results import Results

tabulate.MIN_PADDING = 0  # makes columns no wider than their headers

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
BLOCK = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
DISTURBED = "?: disturbed by other processes."
LEGEND = (
    "/relu, /gelu: fused's time over theirs (normalised: over BatchNorm + relu). compiled, eager, naive: times of the "
    "best torch.compile form, of the better of Horner's and Clenshaw's eager forms and of the naive sum over fused's. "
    f"{DISTURBED}"
)
TITLES = {
    "CPU": "CPU, forward + backward: 2^20 elements, images, and steps of networks",
    "GPU": "GPU: kernels alone, 2^26 elements; a call and steps include the host",
}
FLOOR_NOTE = """\
In percent of the bandwidth of a copy of the same size, in the same rounds; !:
less than the bar, of fp32 and of 16 bits."""
OWN_HEADINGS = {
    "rivals": "GPU kernels beside what one would write instead.",
    "calls": "GPU calls, with the host's part.",
}


def markdown(table: pd.DataFrame) -> str:
    """As aligned markdown, which a terminal can show too, without the columns that are empty."""
    table = table.dropna(axis=1, how="all").fillna("-")
    aligned = ["left"] + ["right"] * (table.shape[1] - 1)
    return "" if table.empty else table.to_markdown(index=False, disable_numparse=True, colalign=aligned)


def paragraph(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 79, break_long_words=False, break_on_hyphens=False))


def unit_table(unit: pd.DataFrame) -> list[str]:
    """A row for each variant, and a sentence for each that was not timed."""
    yardsticks = {"/relu": "relu", "/fused": "fused"}
    if pick(unit, *KAN) is not None:
        yardsticks = {"/product": KAN[1], "/kan": KAN[0]}
    if pick(unit, *NORMALIZING) is not None:
        yardsticks = {"/bn+relu": NORMALIZING[1], "/norm.": NORMALIZING[0]}
    others = {column: pick(unit, name) for column, name in yardsticks.items()}
    over = {column: other.blocks for column, other in others.items() if other is not None}
    rows = []
    for _, row in unit[unit["median"].notna() & ~unit.variant.isin(ROOFS)].sort_values("median").iterrows():
        limits = {**over, "/roof": roof(unit, row.entry)}
        ratios = {column: short(row.blocks.over(other).median) for column, other in limits.items() if other}
        ratios["error"] = None if math.isnan(row.error) else f"{row.error:.0e}"
        rows.append({"variant": row.variant, "time": _time(row), "quartiles": spread(row.blocks), **ratios})
    return [markdown(pd.DataFrame(rows)), *why_not(unit)]


def _time(row: pd.Series) -> str:
    return duration(row["median"]) + "?" * row.blocks.disturbed


def why_not(unit: pd.DataFrame) -> list[str]:
    return [f"{row.variant} {row.why_not}" for row in unit[unit.why_not != ""].itertuples()]


def cost_table(rows: dict[str, pd.DataFrame], columns: Iterable[str] = analysis.COSTS) -> pd.DataFrame:
    """A row for each unit that timed a variant of this package: its time, and the ratios of `analysis.costs`."""
    made = []
    for name, unit in rows.items():
        if found := costs(unit):
            ratios = {k: short(v) for k, v in found.items() if not math.isnan(v)}
            made.append({"case": name, **ratios, "fused": _time(pick(unit, *analysis.MINE))})
    return pd.DataFrame(made, columns=["case", *columns])


def summary(table: pd.DataFrame) -> str:
    """The main cases of one device, a row each; of a GPU the rivals, the call and the networks."""
    headline = units(table, suite="headline", memory="kept", dtype="fp32")
    main = [u for u in headline if u.case.iloc[0].shape == (2**20,) or u.case.iloc[0].sharing == "channel"]
    main += [u for suite in ("rivals", "calls") for u in units(table, suite=suite)]
    main += [u for u in units(table, kind="network") if not u.network.iloc[0].startswith("compiled")]
    return markdown(cost_table({label(u): u for u in main}, ("fused", "/relu", "/gelu", "compiled", "naive")))


def memory_table(table: pd.DataFrame) -> pd.DataFrame:
    """Peak above the inputs, and what is saved for backward, of the operator."""
    found = table[table.peak.notna()].reset_index(drop=True)
    relu = found.unit.map(found[found.variant == "relu"].set_index("unit").peak)
    x = pd.Series([case.nbytes for case in found.case], dtype=float)
    return pd.DataFrame({"case": "degree " + found.degree.map(str), "variant": found.variant,
                         "peak": found.peak.map(mebibytes), "/relu": (found.peak / relu).map(ratio),
                         "saved": found.saved.map(mebibytes), "of x": (found.saved / x).map(short)})  # fmt: skip


def bar_table(found: pd.DataFrame) -> pd.DataFrame:
    between = found.low.map(ratio) + "-" + found.high.map(ratio)
    met = found.met.map({True: "met", False: "MISSED"}) + found.disturbed.map({True: "?", False: ""})
    wanted = found.sense + " " + found.bound.map("{:g}".format)
    return pd.DataFrame({"bar": found.text, "ratio": found["median"].map(ratio),
                         "quartiles": between.where(found.low < found.high), "wanted": wanted, "": met})  # fmt: skip


def floor_table(found: pd.DataFrame) -> pd.DataFrame:
    """The GPU's kernels, a row for each case and pass: the share of a copy's bandwidth, and its bars."""
    key = ["text", "degree", "passes"]
    shares = (100 * found["median"]).map("{:.1f}".format) + found.met.map({True: "", False: "!"})
    cells = found.assign(cell=shares, bars=(100 * found.bound).map("{:.0f}".format))
    wide = cells.pivot(index=key, columns="dtype", values="cell").loc[list(cells.groupby(key, sort=False).groups)]
    wide = wide[[dtype for dtype in ("fp32", "bf16", "fp16") if dtype in wide]]
    wide["bars"] = cells.groupby(key).bars.agg(lambda values: ", ".join(dict.fromkeys(values)))
    wide = wide.reset_index().replace({"passes": {"forward": "fwd", "backward": "bwd"}})
    return wide.astype({"degree": int}).astype({"degree": str}).rename(columns={"text": "case", "passes": "pass"})


def text(results: list[Results]) -> str:
    """Every table, for a terminal; what sums it up comes last."""
    table = frame(results)
    return "\n\n".join([*origins(results), *details(table), *bars(table), *summaries(table)])


def summaries(table: pd.DataFrame) -> list[str]:
    """The main cases of each device, and how many bars are met."""
    found, parts, counts = verdicts(table), [], []
    for name, part in (("CPU", table[table.device == "cpu"]), ("GPU", table[table.device != "cpu"])):
        main, of = summary(part), found[(found.group == "CPU") == (name == "CPU")]
        parts += [f"**{TITLES[name]}**", main] if main else []
        counts += [f"{of.met.sum()} of {len(of)} on the {name}"] if len(of) else []
    parts += [paragraph(LEGEND)] + ["On a GPU: not measured."] * bool((table.device == "cpu").all())
    met = f"Bars met: {', '.join(counts) or 'none'}. Each bar, and every table: "
    return [*parts, paragraph(f"{met}[REPORT.md](benchmarks/results/REPORT.md).")]


def bars(table: pd.DataFrame) -> list[str]:
    """Each bar, met or missed."""
    found, parts = verdicts(table), []
    for group in ("CPU", "GPU"):
        of = found[found.group == group]
        parts += [f"## Bars, {group}", markdown(bar_table(of))] if len(of) else []
    if len(of := found[found.group == "floor"]):
        parts += ["## Bars, GPU kernels, 2^26 elements", markdown(floor_table(of)), FLOOR_NOTE]
    return parts


def details(table: pd.DataFrame) -> list[str]:
    """Each suite's tables under its heading."""
    parts = []
    for suite in (*list(PRESETS)[2:], *OWN_HEADINGS):
        of, made = table[table.suite == suite], []
        if suite == "memory" and len(of):
            made = [describe(of.case.iloc[0]).partition(", ")[2], markdown(memory_table(of))]
        elif suite in ("headline", "networks", "kan"):
            for unit in units(of[of.kind != "memory"]):
                made += [f"### {label(unit)}", describe(unit.case.iloc[0]), *unit_table(unit)]
        elif suite != "gpu" and len(of):  # gpu: its kernels are among the bars
            named = {label(unit): unit for unit in units(of)}
            notes = (f"{name}: {note}" for name, unit in named.items() for note in why_not(unit))
            made = [markdown(cost_table(named)), *notes]
        heading = OWN_HEADINGS.get(suite) or PRESETS[suite].__doc__ or suite
        parts += [f"## {heading.splitlines()[0].rstrip('.')}", *made] if made else []
    return [part if part[0] in "|#" else paragraph(part) for part in parts if part]


def origins(results: Iterable[Results]) -> list[str]:
    """Where the numbers come from, a paragraph for each machine, commit and day."""
    files: dict[str, list[str]] = {}
    for r in results:
        files.setdefault(r.origin, []).append(os.path.relpath(r.path, ROOT))
    return [paragraph(f"{' and '.join(names)}: {origin}.") for origin, names in files.items()]


def block(results: list[Results]) -> str:
    """README's part between the markers."""
    table = frame(results)
    parts = ["![time of each variant](benchmarks/results/figures/headline.png)", *summaries(table)]
    return "\n".join([BEGIN, "\n\n".join(parts), "", *origins(results), END])


def page(results: list[Results]) -> str:
    """REPORT.md."""
    table = frame(results)
    how = "[how each number is measured](../README.md)"
    head = ["# Every table of the benchmarks", paragraph(f"Written by `python -m benchmarks report --publish`; {how}.")]
    head += [f"![{caption}](figures/{name}.png)" for name, (caption, *_) in figures.FIGURES.items()]
    return "\n\n".join([*head, *origins(results), *bars(table), *details(table)]) + "\n"


def publish(results: list[Results]) -> None:
    """Writes REPORT.md and its figures, and rewrites what lies between the markers of README.md."""
    readme, folder = ROOT / "README.md", ROOT / "benchmarks" / "results"
    text = BLOCK.sub(lambda _: block(results), readme.read_text(encoding="utf-8"))
    readme.write_text(text, encoding="utf-8")
    (folder / "REPORT.md").write_text(page(results), encoding="utf-8")
    figures.draw_all(results, folder / "figures")
