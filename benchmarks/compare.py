"""Two runs beside each other."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from . import tables
from .results import Results
from .statistics import Measured, Quantity, groups

# A difference is one if the quartiles of the two runs do not overlap and the medians differ by this much.
LEAST = 0.05
WORDS = {"time": ("slower", "faster"), "peak": ("larger", "smaller")}


def text(old: Results, new: Results) -> str:
    """Time and peak memory of the new run over the old one's, for every entry that both hold."""
    lines = [
        f"{name}: {value} -> {new.environment.get(name)}"
        for name, value in old.environment.items()
        if value != new.environment.get(name)
    ]
    lines += ["", f"{'variant':<22}{'old':>10}{'new':>10}{'new/old':>9}{'between':>14}"]
    found: dict[str, list[str]] = {word: [] for words in WORDS.values() for word in words}
    last = None
    for before, after in _pairs(old, new):
        entry, (what, was, shown), (_, now, _) = before.entry, _quantity(before), _quantity(after)
        name = (f"{entry.network}: " if entry.network else "") + entry.variant + (" peak" if what == "peak" else "")
        if (what, entry.case) != last:
            lines += ["", *([] if entry.network else tables.title(entry.case))]
            last = what, entry.case
        ratio, low, high = now.median / was.median, now.low / was.high, now.high / was.low
        differs = not low <= 1 <= high and abs(ratio - 1) >= LEAST
        word = WORDS[what][ratio < 1] if differs else ""
        spread = f"{low:.3f}-{high:.3f}" if low < high else ""
        lines.append(
            f"{name:<22}{shown(was.median):>10}{shown(now.median):>10}{ratio:>9.3f}{spread:>14} {word}".rstrip()
        )
        if differs:
            where = "" if entry.network else f" ({'; '.join(tables.title(entry.case))})"
            found[word].append(f"{name}{where} x {ratio:.3f}")
    if last is None:
        return f"{old.path} and {new.path} have no entry in common."
    lines += ["", ", ".join(f"{len(names)} {word}" for word, names in found.items())]
    for name in found["slower"] + found["larger"]:
        lines += textwrap.wrap(f"regression: {name}", 79, subsequent_indent="  ")
    return "\n".join(lines)


def _quantity(m: Measured):
    """What was measured of an entry, how much of it, and how to show that; None if nothing was."""
    if m.is_timed:
        return "time", m.time, tables.duration
    peak = m.record.get("peak_bytes")
    return ("peak", Quantity(peak, peak, peak), tables.mebibytes) if peak else None


def _pairs(old: Results, new: Results) -> Iterator[tuple[Measured, Measured]]:
    for kind in ("times", "network", "memory"):
        after = {(m.suite, m.entry): m for group in groups([new], kind) for m in group if _quantity(m)}
        for group in groups([old], kind):
            for m in group:
                if _quantity(m) and (m.suite, m.entry) in after:
                    yield m, after[m.suite, m.entry]
