"""Tables: for the terminal, and the block in README.md between the markers."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import bars
from .cases import Case
from .results import Results, ResultsError, load
from .statistics import Group, Measured, groups

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"


def text(results: list[Results]) -> str:
    """Everything in the results, for a terminal of 80 columns."""
    parts = [environment_lines(results)]
    parts += ["\n".join(_times_lines(group)) for group in groups(results, "times")]
    parts += ["\n".join(_network_lines(group)) for group in groups(results, "network")]
    parts += ["\n".join(_memory_lines(group)) for group in groups(results, "memory")]
    parts.append("\n".join(_verdict_lines(results)))
    return "\n\n".join(part for part in parts if part)


def environment_lines(results: Iterable[Results]) -> str:
    lines = []
    for e in (r.environment for r in results):
        lines.append(f"{e['gpu'] or e['cpu']}, {e['cores']} cores, {e['kernels']} kernels, torch {e['torch']}")
        lines.append(f"slaf_ext {e['slaf_ext']}, commit {e['commit']}, {e['date']}")
    return "\n".join(lines)


def title(case: Case) -> list[str]:
    """A case in two lines of at most 79 characters."""
    sharing = {"layer": "one polynomial", "group": "8 groups"}.get(case.sharing, f"one per {case.sharing}")
    first = f"{case.basis}, degree {case.degree}, {sharing}: {size(case)}"
    fresh = ", fresh memory" if case.memory == "fresh" else ""
    return [first, f"{case.dtype}, {case.layout.replace('_', ' ')}, {_passes(case)}, {_where(case)}{fresh}"]


def size(case: Case) -> str:
    if len(case.shape) > 1:
        return " x ".join(map(str, case.shape))
    return f"2^{case.numel.bit_length() - 1} elements" if case.numel.bit_count() == 1 else f"{case.numel:,} elements"


def _passes(case: Case) -> str:
    return "forward + backward" if case.passes == "both" else case.passes


def _where(case: Case) -> str:
    return f"{case.threads} thread{'s' * (case.threads > 1)}" if case.device == "cpu" else case.device


def _times_lines(group: Group) -> Iterator[str]:
    first = group[0].entry.case
    yield from title(first)
    yield f"{'variant':<22}{'time':>9}{'quartiles':>14}{'GB/s':>7}{'copy':>6}{'/relu':>7}{'/fused':>7}{'error':>7}"
    for m in sorted(group, key=lambda m: m.time.median if m.record.get("seconds") else math.inf):
        dtype = m.entry.case.dtype
        name = m.entry.variant + (f" {dtype}" if dtype != first.dtype else "")
        if "seconds" not in m.record:
            verb = "skipped" if "skipped" in m.record else "refused"
            yield f"{name:<22} {verb}: {m.record[verb]}"
        elif m.entry.variant != "copy":
            yield f"{name:<22}" + _numbers(m, group)
    yield from _disturbed(group)


def _disturbed(group: Group) -> Iterator[str]:
    names = [m.entry.variant for m in group if m.record.get("seconds") and m.disturbed]
    if names:
        listed = "all" if len(names) == len(group) else ", ".join(names)
        yield from textwrap.wrap(f"Disturbed by other processes: {listed}.", 79, subsequent_indent="  ")


def _network_lines(group: Group) -> Iterator[str]:
    case = group[0].entry.case
    yield f"{group[0].entry.network}, a training step, batch {case.shape[0]}, {case.basis} of degree {case.degree}"
    yield f"{case.dtype}, {_where(case)}"
    plain = group.find("relu", "gelu")
    yield f"{'variant':<22}{'step':>9}{'quartiles':>14}{'/' + (plain.entry.variant if plain else '-'):>8}{'error':>8}"
    for m in group:
        if not m.record.get("seconds"):
            yield f"{m.entry.variant:<22} refused: {m.record['refused']}"
            continue
        _, factor = _unit(m.time.median)
        quartiles = f"{_short(m.time.low * factor)}-{_short(m.time.high * factor)}"
        over = m.over(plain).median if plain else math.nan
        error = max(m.record["errors"].values())
        yield f"{m.entry.variant:<22}{duration(m.time.median):>9}{quartiles:>14}{over:>8.3f}{error:>8.0e}"
    yield from _disturbed(group)


def _numbers(m: Measured, group: Group) -> str:
    case, time = m.entry.case, m.time
    copy = group.find("copy", dtype=case.dtype)
    # clone's backward hands grad_output on as it is.
    bandwidth = (2 * case.nbytes if m.entry.variant == "clone" else case.moved_bytes) / time.median
    share = bandwidth * copy.time.median / (2 * case.nbytes) if copy else math.nan
    over = [
        m.over(other).median if (other := group.find(name, dtype=case.dtype)) else math.nan
        for name in ("relu", "fused")
    ]
    error = max(m.record["errors"].values(), default=math.nan)
    _, factor = _unit(time.median)
    quartiles = f"{_short(time.low * factor)}-{_short(time.high * factor)}"
    return (
        f"{duration(time.median):>9}{quartiles:>14}{bandwidth / 1e9:>7.1f}{share:>6.0%}"
        f"{_short(over[0]):>7}{_short(over[1]):>7}{error:>7.0e}"
    )


def _unit(seconds: float) -> tuple[str, float]:
    return ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)


def duration(seconds: float) -> str:
    unit, factor = _unit(seconds)
    return f"{_short(seconds * factor)} {unit}"


def _short(value: float) -> str:
    """Three significant digits."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def _memory_lines(group: Group) -> Iterator[str]:
    case, network = group[0].entry.case, group[0].entry.network
    yield from [f"{network}, a training step, batch {case.shape[0]}"] if network else title(case)
    plain = next((m for m in group if m.entry.variant in ("relu", "gelu") and "peak_bytes" in m.record), None)
    ratio = f"/{plain.entry.variant}" if plain else ""
    yield f"{'variant':<22}{'peak':>10}{ratio:>8}" + ("" if network else f"{'of x':>8}{'saved':>12}{'of x':>8}")
    for m in group:
        if "peak_bytes" not in m.record:
            yield f"{m.entry.variant:<22} skipped: {m.record['skipped']}"
            continue
        peak = m.record["peak_bytes"]
        over = f"{peak / plain.record['peak_bytes']:.3f}" if plain else ""
        line = f"{m.entry.variant:<22}{peak / 2**20:>6.0f} MiB{over:>8}"
        if not network:
            x, saved = case.nbytes, m.record["saved_bytes"]
            line += f"{peak / x:>8.2f}{saved / 2**20:>8.0f} MiB{saved / x:>8.2f}"
        yield line


def _verdict_lines(results: list[Results]) -> Iterator[str]:
    verdicts = bars.verdicts(results)
    if not verdicts:
        return
    yield f"{'bar':<41}{'measured':>9}{'quartiles':>13}{'wanted':>8}"
    for v in verdicts:
        spread = f"{_ratio(v.measured.low)}-{_ratio(v.measured.high)}" if v.measured.low < v.measured.high else ""
        yield (
            f"{v.bar.text:<41}{_ratio(v.measured.median):>9}{spread:>13}"
            f"{v.bar.sense + ' ' + format(v.bar.bound, 'g'):>8} {_outcome(v)}".rstrip()
        )
    met = sum(v.met for v in verdicts)
    yield f"{met} of {len(verdicts)} bars met"
    if any(v.disturbed for v in verdicts):
        yield "?: other processes held the cores meanwhile; measure again on a quiet machine"


def _outcome(v: bars.Verdict) -> str:
    return ("met" if v.met else "MISSED") + ("?" if v.disturbed else "")


def _ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.3f}"


def write_block(readme: Path, results: list[Results], figures: Path | None) -> None:
    """Rewrites what lies between the markers of `readme`.

    Raises:
        ResultsError: the file cannot be read, or has no such markers.
    """
    try:
        old = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{readme} cannot be read: {error.strerror}.") from None
    new, count = _BLOCK.subn(lambda _: block(readme, results, figures), old)
    if count != 1:
        raise ResultsError(f"{readme} has {count} pairs of markers; it needs {BEGIN} and {END}, once.")
    readme.write_text(new, encoding="utf-8")


def regenerated(readme: Path) -> str:
    """The text of `readme` with its block made anew from the raw files and the figures that the block names.

    Raises:
        ResultsError: there is no block, or one that names no raw file.
    """
    old = readme.read_text(encoding="utf-8")
    match = _BLOCK.search(old)
    if match is None:
        raise ResultsError(f"{readme} has no block between {BEGIN} and {END}.")
    files = [readme.parent / path for path in re.findall(r"\]\(([^)]*\.jsonl)\)", match[0])]
    if not files:
        raise ResultsError(f"{readme} names no raw file between {BEGIN} and {END}.")
    picture = re.search(r"\]\(([^)]*)/[^/)]*\.png\)", match[0])
    made = block(readme, [load(path) for path in files], readme.parent / picture[1] if picture else None)
    return old[: match.start()] + made + old[match.end() :]


_BLOCK = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)


def block(readme: Path, results: list[Results], figures: Path | None) -> str:
    """The markers and, between them, the figure, the headline times, the bars, and where they come from."""
    lines = [BEGIN]
    if figures is not None:
        lines += [f"![time of each variant]({_link(readme, figures / 'headline.png')})", ""]
    shown = [g for g in groups(results, "times", "headline") if g[0].entry.case.memory == "kept"]
    for group in shown:
        lines += [*_markdown_times(group), ""]
    for group in groups(results, "network"):
        lines += [*_markdown_network(group), ""]
    for group in groups(results, "memory", "memory"):
        lines += [*_markdown_memory(group), ""]
    lines += [*_markdown_bars(results), ""]
    for r in results:
        e = r.environment
        lines.append(
            f"Measured on {e['date'][:10]} at commit {e['commit']}: {e['gpu'] or e['cpu']}, {e['cores']} cores, "
            f"{e['kernels']} kernels, torch {e['torch']}, Python {e['python']}; "
            f"raw numbers in [{r.path.name}]({_link(readme, r.path)})."
        )
    return "\n".join([*lines, END])


def _link(readme: Path, path: Path) -> str:
    return Path(os.path.relpath(path.resolve(), readme.resolve().parent)).as_posix()


def _markdown_times(group: Group) -> Iterator[str]:
    first = group[0].entry.case
    yield f"**{'; '.join(title(first))}**"
    yield ""
    yield from _markdown_row("variant", "time", "quartiles", "GB/s", "of copy", "/ relu", "/ fused", "error")
    yield "|---|" + "--:|" * 7
    for m in sorted((m for m in group if m.record.get("seconds")), key=lambda m: m.time.median):
        if m.entry.variant != "copy":
            dtype = m.entry.case.dtype
            name = m.entry.variant + (f" {dtype}" if dtype != first.dtype else "")
            numbers = re.split(r"(?<=[^ ])\s+(?!ms|us)", _numbers(m, group).strip())
            yield from _markdown_row(f"**{name}**" if name == "fused" else name, *numbers)
    for m in group:
        if "refused" in m.record:
            yield from _markdown_row(m.entry.variant, f"refused: {m.record['refused']}", *[""] * 6)
    yield from ("", *(f"{line}  " for line in _disturbed(group)))


def _markdown_network(group: Group) -> Iterator[str]:
    case, plain = group[0].entry.case, group.find("relu", "gelu")
    yield f"**{group[0].entry.network}: a training step, batch {case.shape[0]}, degree {case.degree}, {_where(case)}**"
    yield ""
    yield from _markdown_row("activation", "step", "quartiles", f"/ {plain.entry.variant if plain else '-'}")
    yield "|---|--:|--:|--:|"
    for m in group:
        if m.record.get("seconds"):
            quartiles = f"{duration(m.time.low)} - {duration(m.time.high)}"
            over = f"{m.over(plain).median:.3f}" if plain else "-"
            yield from _markdown_row(m.entry.variant, duration(m.time.median), quartiles, over)


def _markdown_memory(group: Group) -> Iterator[str]:
    case = group[0].entry.case
    yield f"**Memory: {'; '.join(title(case))}**"
    yield ""
    yield from _markdown_row("variant", "peak above the input", "saved for backward")
    yield "|---|--:|--:|"
    for m in group:
        if "peak_bytes" in m.record:
            cells = (f"{m.record[k] / 2**20:.0f} MiB" for k in ("peak_bytes", "saved_bytes"))
            yield from _markdown_row(m.entry.variant, *cells)


def _markdown_bars(results: list[Results]) -> Iterator[str]:
    yield from _markdown_row("bar", "measured", "quartiles", "wanted", "")
    yield "|---|--:|--:|--:|---|"
    for v in bars.verdicts(results):
        spread = f"{_ratio(v.measured.low)}-{_ratio(v.measured.high)}" if v.measured.low < v.measured.high else ""
        wanted = f"{v.bar.sense} {v.bar.bound:g}"
        yield from _markdown_row(v.bar.text, _ratio(v.measured.median), spread, wanted, _outcome(v))


def _markdown_row(*cells: str) -> Iterator[str]:
    yield "| " + " | ".join(cells) + " |"
