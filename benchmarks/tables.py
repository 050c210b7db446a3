"""The numbers of a report as tables, which can be written for a terminal of 80 columns or as markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from . import bars
from .cases import COMPILED, EAGER, PRODUCT_SIDE, ROOFS, Case, Entry
from .results import Results
from .statistics import Group, Measured, Quantity, groups

COLUMNS = 79


@dataclass
class Table:
    """Rows of cells: the first column holds names, the others numbers.

    Attributes:
        title, notes: lines above and below.
        marked: names of rows that stand out in markdown.
    """

    title: list[str]
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    marked: tuple[str, ...] = ()

    def plain(self) -> str:
        columns = list(zip(*[self.header, *self.rows], strict=True))
        widths = [max(map(len, column)) for column in columns]
        gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= COLUMNS else " "
        lines = list(self.title)
        for name, *numbers in [self.header, *self.rows]:
            cells = [name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))]
            lines.append(gap.join(cells).rstrip())
        for note in self.notes:
            lines += textwrap.wrap(note, COLUMNS, subsequent_indent="  ")
        return "\n".join(lines)

    def markdown(self) -> str:
        lines = [f"**{'; '.join(self.title)}**", ""] if self.title else []
        lines += [_row(self.header), "|---|" + "--:|" * (len(self.header) - 1)]
        lines += [_row([f"**{name}**" if name in self.marked else name, *rest]) for name, *rest in self.rows]
        for note in self.notes:
            lines += ["", *textwrap.wrap(note, COLUMNS)]
        return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# ------------------------------------------------------------------ a table for every unit


def times(group: Group) -> Table:
    """All that was measured of a case; the copy in whose terms bandwidth is given has no row."""
    first = group.case
    over = ["/bn+relu", "/norm."] if group.is_normalized else ["/relu", "/fused"]
    rows, notes = [], []
    for m in sorted(group, key=lambda m: m.time.median if m.is_timed else math.inf):
        dtype = m.entry.case.dtype
        name = m.entry.variant + (f" {dtype}" if dtype != first.dtype else "")
        if not m.is_timed:
            notes.append(_why_not(name, m))
        elif m.entry.variant not in ROOFS:
            rows.append([name, *_cells(m, group)])
    header = ["variant", "time", "quartiles", "GB/s", "copy", *over, "error", "saved", "ops"]
    return Table(title(first), header, rows, notes + _disturbed(group), MARKED)


MARKED = ("fused", "normalized")


def _cells(m: Measured, group: Group) -> list[str]:
    case, record = m.entry.case, m.record
    bandwidth = m.entry.moved_bytes / m.time.median
    copy = group.find("copy", dtype=case.dtype)
    share = bandwidth * copy.time.median / copy.entry.moved_bytes if copy else math.nan
    names = (("batchnorm + relu",), ("normalized",)) if group.is_normalized else (("relu",), ("fused",))
    over = [m.over(other).median if (other := group.find(*n, dtype=case.dtype)) else math.nan for n in names]
    saved, launches = record.get("saved_bytes"), record.get("launches")
    return [
        duration(m.time.median), _spread(m.time), short(bandwidth / 1e9),
        f"{share:.0%}" if copy else "-", *map(short, over),
        f"{max(record['errors'].values(), default=math.nan):.0e}",
        "-" if saved is None else short(saved / case.nbytes), "-" if launches is None else str(launches),
    ]  # fmt: skip


def _spread(time: Quantity) -> str:
    _, factor = _unit(time.median)
    return f"{short(time.low * factor)}-{short(time.high * factor)}"


def _why_not(name: str, m: Measured) -> str:
    verb = "skipped" if "skipped" in m.record else "refused"
    return f"{name} {verb}: {m.record[verb]}"


def _disturbed(group: Group) -> list[str]:
    return _said_disturbed(filter(None, [_names_of_disturbed(group)]))


def _said_disturbed(what: Iterable[str]) -> list[str]:
    """A note, if there is something to say it of."""
    said = "; ".join(what)
    return [f"Disturbed by other processes: {said}."] * bool(said)


def _names_of_disturbed(group: Group) -> str:
    timed = [m for m in group if m.is_timed]
    names = [m.entry.variant for m in timed if m.disturbed]
    return "all" if len(names) == len(timed) > 0 else ", ".join(names)


def network(group: Group, peaks: Group) -> Table:
    """A step of training and its peak memory."""
    first = group[0].entry
    plain = {name: group.find(name) for name in ("relu", "gelu")}
    peak = {m.entry.variant: m.record["peak_bytes"] for m in peaks if "peak_bytes" in m.record}
    rows, notes = [], []
    for m in group:
        variant = m.entry.variant
        if not m.is_timed:
            notes.append(_why_not(variant, m))
            continue
        over = [f"{m.over(other).median:.3f}" if other else "-" for other in plain.values()]
        memory = [mebibytes(peak.get(variant)), _ratio_of(peak.get(variant), peak.get("relu"))]
        error = f"{max(m.record['errors'].values(), default=math.nan):.0e}"
        rows.append([variant, duration(m.time.median), _spread(m.time), *over, *memory, error])
    case = first.case
    lines = [f"{first.network}: a training step, batch {case.shape[0]}", _network_where(case)]
    header = ["activation", "step", "quartiles", "/relu", "/gelu", "peak", "/relu", "error"]
    return Table(lines, header, rows, notes + _disturbed(group), MARKED)


def _network_where(case: Case) -> str:
    return f"{case.basis} of degree {case.degree}, {case.dtype}, {where(case)}"


def memory(group: Group) -> Table:
    """Peak memory and what is saved, as bytes and as multiples of x."""
    first = group[0].entry
    lines = [f"{first.network}: peak of a training step"] if first.network else title(first.case)
    plain = next(
        (m.record["peak_bytes"] for m in group if m.entry.variant == "relu" and "peak_bytes" in m.record), None
    )
    rows, notes = [], []
    for m in group:
        if "peak_bytes" not in m.record:
            notes.append(f"{m.entry.variant} skipped: {m.record['skipped']}")
            continue
        peak, saved, x = m.record["peak_bytes"], m.record.get("saved_bytes"), m.entry.case.nbytes
        of_x = ["-", "-", "-"] if saved is None else [short(peak / x), mebibytes(saved), short(saved / x)]
        rows.append([m.entry.variant, mebibytes(peak), _ratio_of(peak, plain), *of_x])
    return Table(lines, ["variant", "peak", "/relu", "of x", "saved", "of x"], rows, notes, MARKED)


def mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.0f} MiB"


def _ratio_of(count: int | None, other: int | None) -> str:
    return f"{count / other:.3f}" if count is not None and other else "-"


# ------------------------------------------------------------------ a row for every unit


def summary(results: Iterable[Results]) -> Table | None:
    """The cases that have bars, a row each."""
    rows, shapes, dtypes, disturbed = [], {}, [], []
    for group in groups(results, "times", "headline"):
        case, mine, plain = group.case, group.mine, group.yardstick
        if case.memory != "kept" or mine is None:
            continue
        what = f"{'normalised, ' * group.is_normalized}degree {case.degree}"
        last = case.layout == "channels_last"
        sharing = size(case) if case.sharing == "layer" else "channels last" if last else f"per {case.sharing}"
        if case.sharing != "layer":
            shapes[sharing] = size(case)
        slower = (_best(group, names, mine) for names in (COMPILED, [f for f in EAGER if f != "naive"], ("naive",)))
        over = short(mine.over(plain).median) if plain else "-"
        rows.append([f"{what}, {sharing}", duration(mine.time.median), over, *slower])
        dtypes.append(case.dtype)
        disturbed += [rows[-1][0]] * any(m.disturbed for m in group if m.is_timed)
    if not rows:
        return None
    note = (
        "fused: its time. /relu: that over relu's; for the normalised form, over BatchNorm's and relu's. The rest: "
        "how many times fused's the best torch.compile form takes, the best eager one but the naive, and the naive one."
    )
    note += "".join(f" {sharing.capitalize()}: x of {shape}." for sharing, shape in shapes.items())
    header = ["case", "fused", "/relu", "compiled", "eager", "naive"]
    if len(set(dtypes)) > 1:
        rows = [[f"{name}, {dtype}", *rest] for (name, *rest), dtype in zip(rows, dtypes, strict=True)]
    title = f"Forward + backward: {case.basis}, {' and '.join(dict.fromkeys(dtypes))}, {where(case)}"
    return Table([title], header, rows, [note, *_said_disturbed(disturbed)])


def _best(group: Group, names: Iterable[str], mine: Measured) -> str:
    best = group.find(*names, dtype=group.case.dtype)
    return short(best.over(mine).median) if best else "-"


def memory_summary(results: Iterable[Results]) -> Table | None:
    """Peak and saved memory of the operator, a row for every case."""
    rows, case = [], None
    variants = ("relu", "fused", "naive")
    for group in groups(results, "memory", "memory"):
        case = group.case
        of = {m.entry.variant: m.record for m in group if "peak_bytes" in m.record}
        both = [" / ".join(f"{of[v][k] / 2**20:.0f}" for k in ("peak_bytes", "saved_bytes")) if v in of else "-"
                for v in variants]  # fmt: skip
        rows.append([f"degree {case.degree}", *both])
    if case is None:
        return None
    title = f"Memory, {size(case)}, {case.dtype}, MiB: peak above the input / saved for backward"
    return Table([title], ["case", *variants], rows)


def network_summary(results: list[Results]) -> Table | None:
    """A step of training, a row for every network."""
    rows, case, disturbed = [], None, []
    for group, peaks in network_groups(results):
        mine = group.find("fused")
        if mine is None:
            continue
        case = group.case
        over = [f"{mine.over(other).median:.3f}" if (other := group.find(n)) else "-" for n in ("relu", "gelu")]
        slower = [f"{other.over(mine).median:.3f}" if (other := group.find(n)) else "-" for n in
                  ("compiled horner", "naive")]  # fmt: skip
        peak = {m.entry.variant: m.record["peak_bytes"] for m in peaks if "peak_bytes" in m.record}
        memory = [_ratio_of(peak.get(v), peak.get("relu")) for v in ("fused", "naive")]
        rows.append([f"{group[0].entry.network}", duration(mine.time.median), *over, *slower, *memory])
        disturbed += [rows[-1][0]] * any(m.disturbed for m in group if m.is_timed)
    if case is None:
        return None
    note = (
        "/relu, /gelu: the step over that of the same network with relu, with gelu. compiled, naive: how many times "
        "fused's step these take. The last two: peak memory over the relu network's, fused and naive."
    )
    header = ["training step", "fused", "/relu", "/gelu", "compiled", "naive", "peak", "naive peak"]
    return Table([f"Networks: {_network_where(case)}"], header, rows, [note, *_said_disturbed(disturbed)])


def network_groups(results: list[Results]) -> Iterator[tuple[Group, Group]]:
    """The timed steps of each network, and the peaks of its memory."""
    peaks = {group[0].entry.network: group for group in groups(results, "memory", "networks")}
    for group in groups(results, "network"):
        yield group, peaks.get(group[0].entry.network, Group())


def _form(case: Case) -> str:
    return ", ".join([size(case), case.dtype, _passes(case), _sharing(case), _layout(case)])


# What tells the cases of a suite apart.
LABELS: dict[str, tuple[str, Callable[[Case], str]]] = {
    "sizes": ("elements", lambda case: size(case).removesuffix(" elements")),
    "degrees": ("degree", lambda case: str(case.degree)),
    "channels": ("channels", lambda case: f"{case.shape[1]}, {_layout(case)}"),
    "threads": ("threads", lambda case: f"{case.threads}, {size(case)}"),
    "bases": ("basis", lambda case: case.basis),
    "gpu": ("kernels", lambda case: f"{case.basis} {case.degree}, {_form(case)}"),
    **dict.fromkeys(("rivals", "calls"), ("", lambda case: f"{size(case)}, {case.dtype}, {_passes(case)}")),
    "forms": ("form", _form),
}


def sweep(results: Iterable[Results], suite: str) -> Table | None:
    """The times of a suite: a row for every case, a column for every variant."""
    chosen = list(groups(results, "times", suite))
    if not chosen:
        return None
    variants = list(
        dict.fromkeys(m.entry.variant for g in chosen for m in g if m.is_timed and m.entry.variant not in ROOFS)
    )
    first, label = LABELS[suite]
    rows = [
        [label(g.case), *(duration(m.time.median) if (m := g.find(v)) else "-" for v in variants), duration(roof(g))]
        for g in chosen
    ]
    notes = [f"{label(g.case)}: {_why_not(m.entry.variant, m)}" for g in chosen for m in g if not m.is_timed]
    notes += _said_disturbed(f"{label(g.case)}: {names}" for g in chosen if (names := _names_of_disturbed(g)))
    return Table([], [first, *variants, "memory roof"], rows, notes, MARKED)


def roof(group: Group) -> float:
    """Seconds that the bytes which must move take at the rate of a copy; nan where none was measured."""
    copy = group.find("copy", dtype=group.case.dtype)
    return copy.time.median * Entry("fused", group.case).moved_bytes / copy.entry.moved_bytes if copy else math.nan


def arithmetic_roof(group: Group) -> float:
    """Seconds that the polynomial's multiply-adds take at the rate of a matrix product; nan where none was measured."""
    product = group.find("product", dtype=group.case.dtype)
    return product.time.median * product.entry.least_multiply_adds / PRODUCT_SIDE**3 if product else math.nan


# ------------------------------------------------------------------ the bars


QUESTIONABLE = "?: other processes held the cores meanwhile; measure again on a quiet machine."


def verdicts(results: Iterable[Results]) -> Table | None:
    """The bars, but for a GPU's floor, which has a table of its own."""
    found = [v for v in bars.verdicts(results) if v.bar.kind != bars.FLOOR]
    rows = []
    for v in found:
        m = v.measured
        spread = f"{ratio(m.low)}-{ratio(m.high)}" if m.low < m.high else ""
        outcome = ("met" if v.met else "MISSED") + ("?" if v.disturbed else "")
        rows.append([v.bar.text, ratio(m.median), spread, f"{v.bar.sense} {v.bar.bound:g}", outcome])
    if not rows:
        return None
    notes = [f"{sum(v.met for v in found)} of {len(found)} bars met."]
    if any(v.disturbed for v in found):
        notes.append(QUESTIONABLE)
    return Table([], ["bar", "measured", "quartiles", "wanted", ""], rows, notes)


def floor(results: Iterable[Results]) -> Table | None:
    """The bars of a GPU's kernels: a row for every case and pass, a column for every dtype."""
    of = {(v.bar.text, v.bar.case["passes"], v.bar.case["dtype"]): v for v in bars.floor(results)}
    if not of:
        return None
    rows = []
    for row in dict.fromkeys(key[:2] for key in of):
        found = [of.get((*row, dtype)) for dtype in ("fp32", "bf16", "fp16")]
        shares = [f"{100 * v.measured.median:.1f}{'' if v.met else '!'}" if v else "-" for v in found]
        bounds = dict.fromkeys(f"{100 * v.bar.bound:.0f}" for v in found if v)
        rows.append([", ".join(row), *shares, ", ".join(bounds)])
    count = sum(bar.kind == bars.FLOOR for bar in bars.BARS)
    note = (
        "In percent of the bandwidth of a copy of the same size, in the same rounds; !: less than the bar, of fp32 and "
        f"of 16 bits. {sum(v.met for v in of.values())} of {count} bars met, {count - len(of)} not measured."
    )
    return Table(["Kernels on a GPU, x of 2^26 elements"], ["case", "fp32", "bf16", "fp16", "bars"], rows, [note])


# ------------------------------------------------------------------ words and numbers


def title(case: Case) -> list[str]:
    """A case in two lines of at most 79 characters."""
    first = f"{case.basis}, degree {case.degree}, {_sharing(case)}: {size(case)}"
    fresh = ", fresh memory" if case.memory == "fresh" else ""
    return [first, f"{case.dtype}, {_layout(case)}, {_passes(case)}, {where(case)}{fresh}"]


def _sharing(case: Case) -> str:
    return {"layer": "one polynomial", "group": "8 groups"}.get(case.sharing, f"one per {case.sharing}")


def size(case: Case) -> str:
    if len(case.shape) > 1:
        return " x ".join(map(str, case.shape))
    return f"{power(case.numel) if case.numel.bit_count() == 1 else f'{case.numel:,}'} elements"


def power(count: int) -> str:
    """A number, as a power of 2 if it is one."""
    return f"2^{count.bit_length() - 1}" if count.bit_count() == 1 else str(count)


def _layout(case: Case) -> str:
    return case.layout.replace("_", " ")


def _passes(case: Case) -> str:
    return "forward + backward" if case.passes == "both" else case.passes


def where(case: Case) -> str:
    return f"{case.threads} thread{'s' * (case.threads > 1)}" if case.device == "cpu" else case.device


def _unit(seconds: float) -> tuple[str, float]:
    return ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)


def duration(seconds: float) -> str:
    unit, factor = _unit(seconds)
    return f"{short(seconds * factor)} {unit}" if math.isfinite(seconds) else "-"


def short(value: float) -> str:
    """Three significant digits."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.3f}"
