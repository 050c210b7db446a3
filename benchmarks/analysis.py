"""All records in one DataFrame, and the words and numbers that tables and figures share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from .cases import COMPILED, NORMALIZING, PRODUCT_SIDE, ROOFS, Case, Entry
from .results import Blocks, Results, row

MINE = ("fused", "normalized")
OVER = ("relu", "gelu")  # yardsticks, which the package's time is divided by
RIVALS = {"compiled": COMPILED, "eager": ("horner", "clenshaw"), "naive": ("naive",)}
COSTS = ("fused", *(f"/{name}" for name in OVER), *RIVALS, "/roof")


def frame(results: Iterable[Results]) -> pd.DataFrame:
    """A row for each record. Of a unit that was measured several times the last measurement counts.

    `unit` names what was measured in the same rounds and in the same dtype, and so shares a case.
    """
    rows = [{**found, "file": i} for i, result in enumerate(results) for found in result.rows]
    table = pd.DataFrame(rows, columns=["file", "line", *row("", "", Entry("", Case()).as_json())])
    table["case"] = [entry.case for entry in table.entry]
    table["shape"] = table["shape"].map(str)
    table["median"] = [blocks.median if blocks else math.nan for blocks in table.blocks]
    table["unit"] = table.file * 10**6 + table.line
    table["unit"] = table.groupby(["unit", "dtype"], sort=False).ngroup()
    last = table.groupby(["suite", "kind", "network", "case"], sort=False, dropna=False).unit.transform("max")
    return table[table.unit == last].reset_index(drop=True)


def units(table: pd.DataFrame, **where: object) -> Iterator[pd.DataFrame]:
    """The records of each unit whose columns have these values."""
    kept = np.ones(len(table), dtype=bool)
    for column, value in where.items():
        kept &= (table[column] == (str(value) if column == "shape" else value)).to_numpy(bool)
    table = table[kept]
    for _, unit in table.groupby("unit", sort=False):
        yield unit


def pick(unit: pd.DataFrame, *variants: str) -> pd.Series | None:
    """The fastest of these variants, if one was timed."""
    pairs = enumerate(zip(unit.variant, unit["median"], strict=True))
    times = {i: t for i, (name, t) in pairs if name in variants and t > 0}  # which NaN is not
    return unit.iloc[min(times, key=times.__getitem__)] if times else None


def roofs(unit: pd.DataFrame, entry: Entry) -> dict[str, Blocks]:
    """The least time that the entry's memory traffic, and its multiply-adds, take at the rates of the same rounds."""
    copy, product = (pick(unit, roof) for roof in ROOFS)
    found = {}
    if copy is not None:
        share = entry.moved_bytes / copy.entry.moved_bytes
        found["memory roof"] = Blocks(copy.blocks.seconds * share, copy.blocks.quiet)
    if product is not None and entry.least_multiply_adds:
        share = entry.least_multiply_adds / PRODUCT_SIDE**3
        found["arithmetic roof"] = Blocks(product.blocks.seconds * share, product.blocks.quiet)
    return found


def roof(unit: pd.DataFrame, entry: Entry) -> Blocks | None:
    """The larger of the two, round by round."""
    found = list(roofs(unit, entry).values())
    if not found:
        return None
    return Blocks(np.max([b.seconds for b in found], axis=0), np.all([b.quiet for b in found], axis=0))


def costs(unit: pd.DataFrame) -> dict[str, float]:
    """What this package's variant takes, over the yardsticks and the roof, and what the rivals take over it."""
    mine = pick(unit, *MINE)
    if mine is None:
        return {}
    found = {"fused": mine["median"]}
    for name in OVER:
        other = pick(unit, NORMALIZING[1] if (mine.variant, name) == ("normalized", "relu") else name)
        found[f"/{name}"] = math.nan if other is None else mine.blocks.over(other.blocks).median
    for name, variants in RIVALS.items():
        other = pick(unit, *variants)
        found[name] = math.nan if other is None else other.blocks.over(mine.blocks).median
    limit = roof(unit, mine.entry)
    return {**found, "/roof": math.nan if limit is None else mine.blocks.over(limit).median}


def parts(case: Case) -> dict[str, str]:
    """What distinguishes a case, each in a word or two."""
    number = f"2^{case.numel.bit_length() - 1}" if case.numel.bit_count() == 1 else f"{case.numel:,}"
    return {
        "degree": f"degree {case.degree}",
        "basis": case.basis,
        "size": f"N = {number}" if len(case.shape) == 1 else " x ".join(map(str, case.shape)),
        "sharing": {"layer": "one polynomial", "group": "8 groups"}.get(case.sharing, f"per {case.sharing}"),
        "layout": {"channels_last": "NHWC"}.get(case.layout, case.layout),
        "dtype": case.dtype,
        "passes": "forward+backward" if case.passes == "both" else case.passes,
        "threads": where(case),
        "memory": f"{case.memory} memory",
    }


def describe(case: Case) -> str:
    """All of a case."""
    return ", ".join(part for name, part in parts(case).items() if (name, case.memory) != ("memory", "kept"))


def where(case: Case) -> str:
    return case.device if case.on_gpu else f"{case.threads} thread{'s' * (case.threads > 1)}"


def label(unit: pd.DataFrame) -> str:
    """A unit's network, or how its case differs from the usual one."""
    first = unit.iloc[0]
    if first.network:
        return first.network
    usual = parts(Case(threads=2) if first.device == "cpu" else Case(shape=(2**26,), device=first.device))
    own = parts(first.case)
    if (mine := pick(unit, *MINE)) is not None and mine.variant == NORMALIZING[0]:
        own["sharing"] = "normalised"
    hidden = {"size"} if len(first.case.shape) == 4 else set()  # all images have the same size
    shown = [v for k, v in own.items() if k == "degree" or (k not in hidden and v != usual[k])]
    return ", ".join(["a call"] * (first.suite == "calls") + shown)


def short(value: float) -> str:
    """Three significant digits."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def ratio(value: float) -> str:
    return f"{value:.3f}" if value < 9.95 else short(value)


def scale(seconds: float) -> float:
    return 1e-3 if seconds >= 1e-3 else 1e-6


def duration(seconds: float) -> str:
    return f"{short(seconds / scale(seconds))} {'ms' if seconds >= 1e-3 else 'us'}" if math.isfinite(seconds) else "-"


def spread(blocks: Blocks) -> str:
    """The quartiles, in the unit in which `duration` gives the median."""
    low, median, high = blocks.quartiles
    return f"{short(low / scale(median))}-{short(high / scale(median))}"


def mebibytes(count: float) -> str:
    return f"{count / 2**20:.0f} MiB" if math.isfinite(count) else "-"
