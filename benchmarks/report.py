"""Reports: for the terminal, the block of README.md between two markers, and REPORT.md with every table."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import tabulate

from . import analysis, figures
from .analysis import costs, describe, duration, frame, label, mebibytes, pick, ratio, roof, short, spread, units
from .bars import verdicts
from .cases import NORMALIZING, PRESETS, ROOFS
from .results import Results, ResultsError

tabulate.MIN_PADDING = 0  # makes columns no wider than their headers

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
BLOCK = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
DISTURBED = "?: disturbed by other processes."
LEGEND = (
    "/relu, /gelu: fused's time over theirs (normalised: over BatchNorm + relu). compiled, naive: times of the best "
    f"torch.compile form and of the naive sum over fused's. {DISTURBED}"
)
TITLES = {
    "CPU": "CPU: forward + backward of 2^20 elements, or of images of 32 x 64 x 56 x 56; and training steps",
    "GPU": "GPU: kernels alone, forward + backward unless named; a call and training steps with the host's part",
}
FLOOR_NOTE = (
    "In percent of the bandwidth of a copy of the same size, in the same rounds; !: less than the bar, of fp32 and of "
    "16 bits. {} of {} met. The times follow."
)
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


def unit_table(unit: pd.DataFrame, peaks: dict[str, float] | None = None) -> list[str]:
    """A row for each variant, and a sentence for each that was not timed."""
    yardsticks = {"/relu": "relu", "/fused": "fused"}
    if pick(unit, *NORMALIZING) is not None:
        yardsticks = {"/bn+relu": NORMALIZING[1], "/norm.": NORMALIZING[0]}
    others = {column: pick(unit, name) for column, name in yardsticks.items()}
    over = {column: other.blocks for column, other in others.items() if other is not None}
    rows = []
    for _, row in unit[unit["median"].notna() & ~unit.variant.isin(ROOFS)].sort_values("median").iterrows():
        limits = {**over, "/roof": roof(unit, row.entry)}
        ratios = {column: short(row.blocks.over(other).median) for column, other in limits.items() if other}
        more = {"error": None if math.isnan(row.error) else f"{row.error:.0e}"}
        if peaks:
            more["peak"] = mebibytes(peaks.get(row.variant, math.nan))
        rows.append({"variant": row.variant, "time": _time(row), "quartiles": spread(row.blocks), **ratios, **more})
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


def floor_table(found: pd.DataFrame, *, times: bool) -> pd.DataFrame:
    """The GPU's kernels, a row for each case and pass: the share of a copy's bandwidth with its bars, or the time."""
    key = ["text", "degree", "passes"]
    shares = (100 * found["median"]).map("{:.1f}".format) + found.met.map({True: "", False: "!"})
    cells = found.assign(cell=found.seconds.map(duration) if times else shares)
    wide = cells.pivot(index=key, columns="dtype", values="cell").loc[list(cells.groupby(key, sort=False).groups)]
    wide = wide[[dtype for dtype in ("fp32", "bf16", "fp16") if dtype in wide]]
    if not times:
        bounds = cells.assign(bars=(100 * found.bound).map("{:.0f}".format)).groupby(key).bars
        wide["bars"] = bounds.agg(lambda values: ", ".join(dict.fromkeys(values)))
    wide = wide.reset_index().replace({"passes": {"forward": "fwd", "backward": "bwd"}})
    return wide.astype({"degree": int}).astype({"degree": str}).rename(columns={"text": "case", "passes": "pass"})


def text(results: list[Results]) -> str:
    """Every table, for a terminal; what sums it up comes last."""
    table = frame(results)
    return "\n\n".join([*origins(results), *details(table), *summaries(table)])


def summaries(table: pd.DataFrame) -> list[str]:
    """Of each device: the main cases and the bars."""
    found, parts = verdicts(table), []
    for group, part in devices(table):
        main, of = summary(part), found[found.group == group]
        parts += [f"### {group}", TITLES[group] + ".", main, LEGEND] if main else []
        parts += [f"### Bars, {group}", markdown(bar_table(of)), f"{of.met.sum()} of {len(of)} met."] if len(of) else []
    of = found[found.group == "floor"]
    if len(of):
        tables = [markdown(floor_table(of, times=times)) for times in (False, True)]
        parts += [
            "### Bars, GPU kernels, 2^26 elements",
            tables[0],
            FLOOR_NOTE.format(of.met.sum(), len(of)),
            tables[1],
        ]
    return [part if part[0] in "|#" else paragraph(part) for part in parts]


def devices(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [("CPU", table[table.device == "cpu"]), ("GPU", table[table.device != "cpu"])]


def details(table: pd.DataFrame, picture: Callable[[str], list[str]] = lambda name: []) -> list[str]:
    """Each suite's tables under its heading."""
    parts = []
    for suite in (*list(PRESETS)[2:], *OWN_HEADINGS):
        of, made = table[table.suite == suite], []
        if suite == "headline":
            for unit in units(of):
                made += [f"### {label(unit)}", describe(unit.case.iloc[0]), *unit_table(unit)]
        elif suite == "memory" and len(of):
            made = [describe(of.case.iloc[0]).partition(", ")[2], markdown(memory_table(of))]
        elif suite == "networks":
            for unit in units(of, kind="network"):
                case, name = unit.case.iloc[0], unit.network.iloc[0]
                peaks = of[(of.kind == "memory") & (of.network == name)].set_index("variant").peak
                about = (
                    f"batch {case.shape[0]}, {case.basis} of degree {case.degree}, {case.dtype}, {analysis.where(case)}"
                )
                made += [f"### {name}", about, *unit_table(unit, dict(peaks))]
        elif suite != "gpu":  # whose kernels are in the summary
            for _, same in of.groupby([len(case.shape) for case in of.case], sort=False):
                named = analysis.distinguished(list(units(same)))
                made += [
                    markdown(cost_table(named)),
                    *(f"{k}: {note}" for k, u in named.items() for note in why_not(u)),
                ]
        heading = OWN_HEADINGS.get(suite) or PRESETS[suite].__doc__ or suite
        parts += [f"## {heading.splitlines()[0].rstrip('.')}", *picture(suite), *made] if made else []
    return [part if part[0] in "|#!" else paragraph(part) for part in parts if part]


def origins(results: Iterable[Results], link: Callable[[Path], str] | None = None) -> list[str]:
    """Where the numbers come from, a paragraph for each machine, commit and day."""
    files: dict[str, list[str]] = {}
    for r in results:
        files.setdefault(r.origin, []).append(f"[{r.path.name}]({link(r.path)})" if link else str(r.path))
    return [paragraph(f"{' and '.join(names)}: {origin}.") for origin, names in files.items()]


def block(readme: Path, results: list[Results], pictures: Path | None, every: Path | None) -> str:
    """The markers and, between them, what sums up the results; `every` is the file with every table."""
    table = frame(results)
    found = verdicts(table)
    parts, counts = _picture(readme, table, pictures, "headline"), []
    for group, part in devices(table):
        main, of = summary(part), found[(found.group == "CPU") == (group == "CPU")]
        parts += [f"**{TITLES[group]}**", main] if main else []
        counts += [f"{of.met.sum()} of {len(of)} on the {group}"] if len(of) else []
    parts += [paragraph(LEGEND)] + ["On a GPU: not measured."] * bool((table.device == "cpu").all())
    more = f" Each of them, and every table: [{every.name}]({_link(readme, every)})." if every else ""
    parts += [paragraph(f"Bars met: {', '.join(counts) or 'none'}.{more}")]
    return "\n".join([BEGIN, "\n\n".join(parts), "", *origins(results, lambda path: _link(readme, path)), END])


def every_table(page: Path, results: list[Results], pictures: Path | None) -> str:
    """REPORT.md."""
    table = frame(results)
    how = f"[how each number is measured]({_link(page, Path(__file__).parent / 'README.md')})"
    head = ["# Every table of the benchmarks", paragraph(f"Written by `python -m benchmarks report`; {how}.")]
    body = details(table, lambda suite: _picture(page, table, pictures, {"sizes": "scaling"}.get(suite, suite)))
    parts = [*head, *origins(results, lambda path: _link(page, path)), "## Summary", *summaries(table), *body]
    return "\n\n".join(parts) + "\n"


def write(readme: Path, results: list[Results], pictures: Path | None, every: Path | None) -> None:
    """Writes `every`, and rewrites what lies between the markers of `readme`."""
    old = readme.read_text(encoding="utf-8")
    if (count := len(BLOCK.findall(old))) != 1:
        raise ResultsError(f"{readme} has {count} pairs of markers; it needs {BEGIN} and {END}, once.")
    if every is not None:
        every.write_text(every_table(every, results, pictures), encoding="utf-8")
    readme.write_text(BLOCK.sub(lambda _: block(readme, results, pictures, every), old), encoding="utf-8")


def _picture(page: Path, table: pd.DataFrame, pictures: Path | None, name: str) -> list[str]:
    """The link to a figure, if the records have the numbers for it."""
    if pictures is None or name not in figures.FIGURES:
        return []
    caption, select, _ = figures.FIGURES[name]
    return [f"![{caption}]({_link(page, pictures / f'{name}.png')})"] if select(table) else []


def _link(page: Path, path: Path) -> str:
    return Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix()
