"""Two runs beside each other."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import tables
from .cases import NORMALIZING, Entry
from .results import Results
from .statistics import Group, Measured, Quantity, groups

# A difference is one if the quartiles of the two runs do not overlap and the medians differ by this much.
LEAST = 0.05
MACHINE = "machine: the change of what is not ours, which comes from the machine or from torch; it is not counted."
WORDS = {"time": ("slower", "faster"), "peak": ("larger", "smaller")}


@dataclass(frozen=True)
class Pair:
    """A quantity of both runs.

    Attributes:
        what: "time" or "peak", which say how a difference is called.
        judged: whether a difference counts. Only what is ours can regress; and where there is a ratio to its yardstick
            it counts instead of the time, since a machine is not as fast in every run.
        disturbed: whether other processes held the cores in one of the runs.
    """

    name: str
    entry: Entry
    what: str
    old: Quantity
    new: Quantity
    shown: Callable[[float], str]
    judged: bool
    disturbed: bool = False

    @property
    def ratio(self) -> float:
        return self.new.median / self.old.median

    @property
    def between(self) -> tuple[float, float]:
        return self.new.low / self.old.high, self.new.high / self.old.low

    @property
    def word(self) -> str:
        """How it differs: what is ours by itself, the rest by the machine."""
        low, high = self.between
        if low <= 1 <= high or abs(self.ratio - 1) < LEAST or (is_ours(self.entry) and not self.judged):
            return ""
        return "machine " * (not self.judged) + WORDS[self.what][self.ratio < 1]


def is_ours(entry: Entry) -> bool:
    return entry.variant in tables.MARKED


def text(old: Results, new: Results) -> str:
    """Time and peak memory of the new run over the old one's, for every entry that both hold."""
    pairs = list(_pairs(old, new))
    if not pairs:
        return f"{old.path} and {new.path} have no entry in common."
    lines = [
        f"{name}: {value} -> {new.environment.get(name)}"
        for name, value in old.environment.items()
        if value != new.environment.get(name)
    ]
    width = max(len(pair.name) for pair in pairs) + 1
    lines += ["", f"{'variant':<{width}}{'old':>10}{'new':>10}{'new/old':>9}{'between':>14}"]
    last = None
    for pair in pairs:
        if (pair.what, pair.entry.case) != last:
            lines += ["", *([] if pair.entry.network else tables.title(pair.entry.case))]
            last = pair.what, pair.entry.case
        low, high = pair.between
        spread = f"{low:.3f}-{high:.3f}" if low < high else ""
        numbers = f"{pair.shown(pair.old.median):>10}{pair.shown(pair.new.median):>10}{pair.ratio:>9.3f}{spread:>14}"
        lines.append(f"{pair.name:<{width}}{numbers} {pair.word}{'?' * pair.disturbed}".rstrip())
    counts = {word: sum(p.word == word for p in pairs) for words in WORDS.values() for word in words}
    lines += ["", ", ".join(f"{count} {word}" for word, count in counts.items())]
    for pair in pairs:
        if pair.word in ("slower", "larger"):
            where = "" if pair.entry.network else f" ({'; '.join(tables.title(pair.entry.case))})"
            said = f"regression{'?' * pair.disturbed}: {pair.name}{where} x {pair.ratio:.3f}"
            lines += textwrap.wrap(said, 79, subsequent_indent="  ")
    if any(pair.word.startswith("machine") for pair in pairs):
        lines += textwrap.wrap(MACHINE, 79, subsequent_indent="  ")
    if any(pair.disturbed for pair in pairs):
        lines += textwrap.wrap(tables.QUESTIONABLE, 79, subsequent_indent="  ")
    return "\n".join(lines)


def _pairs(old: Results, new: Results) -> Iterator[Pair]:
    for kind in ("times", "network"):
        for before, after, was, now in _common(old, new, kind):
            if not (was.is_timed and now.is_timed):
                continue
            entry, ours, disturbed = was.entry, is_ours(was.entry), was.disturbed or now.disturbed
            yardsticks = _yardstick(before, was), _yardstick(after, now)
            has_ratio = ours and None not in yardsticks
            judged = ours and not has_ratio
            yield Pair(_name(was), entry, "time", was.time, now.time, tables.duration, judged, disturbed)
            if has_ratio:
                ratios = was.over(yardsticks[0]), now.over(yardsticks[1])
                disturbed = disturbed or any(yardstick.disturbed for yardstick in yardsticks)
                name = f"{_name(was)} / {yardsticks[0].entry.variant}"
                yield Pair(name, entry, "time", *ratios, tables.ratio, True, disturbed)
    for _, _, was, now in _common(old, new, "memory"):
        if "peak_bytes" in was.record and "peak_bytes" in now.record:
            peaks = (Quantity(peak, peak, peak) for peak in (was.record["peak_bytes"], now.record["peak_bytes"]))
            yield Pair(f"{_name(was)} peak", was.entry, "peak", *peaks, tables.mebibytes, is_ours(was.entry))


def _common(old: Results, new: Results, kind: str) -> Iterator[tuple[Group, Group, Measured, Measured]]:
    """What both runs hold, and the units in which they hold it."""
    after = {(m.suite, m.entry): (group, m) for group in groups([new], kind) for m in group}
    for group in groups([old], kind):
        for m in group:
            if (m.suite, m.entry) in after:
                later, now = after[m.suite, m.entry]
                yield group, later, m, now


def _name(m: Measured) -> str:
    return (f"{m.entry.network}: " if m.entry.network else "") + m.entry.variant


def _yardstick(group: Group, m: Measured) -> Measured | None:
    return group.find(NORMALIZING[1] if m.entry.variant == NORMALIZING[0] else "relu", dtype=m.entry.case.dtype)
