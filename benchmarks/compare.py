"""Two runs beside each other."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from . import tables
from .cases import Entry
from .results import Results
from .statistics import Measured, groups

# A difference is one if the quartiles of the two runs do not overlap and the medians differ by this much.
LEAST = 0.05


def text(old: Results, new: Results) -> str:
    """Time (and peak memory) of the new run over the old one's, for every entry that both hold."""
    lines, slower, faster = [], [], []
    for name, value in old.environment.items():
        if value != new.environment.get(name):
            lines.append(f"{name}: {value} -> {new.environment.get(name)}")
    lines += ["", f"{'variant':<22}{'old':>10}{'new':>10}{'new/old':>9}{'between':>14}"]
    last = None
    for before, after in _pairs(old, new):
        case = before.entry.case
        if case != last:
            lines += ["", *([] if before.entry.network else tables.title(case))]
            last = case
        ratio, low, high = _ratio(before, after)
        apart = "" if low <= 1 <= high or abs(ratio - 1) < LEAST else "slower" if ratio > 1 else "faster"
        network = f"{before.entry.network}: " if before.entry.network else ""
        line = (
            f"{network + before.entry.variant:<22}{tables.duration(before.time.median):>10}"
            f"{tables.duration(after.time.median):>10}{ratio:>9.3f}{f'{low:.3f}-{high:.3f}':>14} {apart}"
        )
        lines.append(line.rstrip())
        if apart:
            where = "" if network else f" ({'; '.join(tables.title(case))})"
            (slower if apart == "slower" else faster).append(f"{network}{before.entry.variant}{where} x {ratio:.3f}")
    if last is None:
        return f"{old.path} and {new.path} have no entry in common."
    lines += ["", f"{len(slower)} slower, {len(faster)} faster"]
    for name in slower:
        lines += textwrap.wrap(f"regression: {name}", 79, subsequent_indent="  ")
    return "\n".join(lines)


def _pairs(old: Results, new: Results) -> Iterator[tuple[Measured, Measured]]:
    for kind in ("times", "network"):
        after: dict[tuple[str, Entry], Measured] = {
            (m.suite, m.entry): m for group in groups([new], kind) for m in group if m.record.get("seconds")
        }
        for group in groups([old], kind):
            for m in group:
                if m.record.get("seconds") and (m.suite, m.entry) in after:
                    yield m, after[m.suite, m.entry]


def _ratio(before: Measured, after: Measured) -> tuple[float, float, float]:
    old, new = before.time, after.time
    return new.median / old.median, new.low / old.high, new.high / old.low
