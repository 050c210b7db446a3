"""The speed and memory that this project has promised, as ratios, and whether a run shows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

from . import cases
from .cases import COMPILED, NETWORKS, NORMALIZING, Case
from .results import Results
from .statistics import Group, Measured, Quantity, groups

FLAT, IMAGE, ROWS, SMALL = (2**20,), (32, 64, 56, 56), (4096, 768), (4096,)
FLOOR = "floor"


@dataclass(frozen=True)
class Bar:
    """`over` / `under` (the fastest of the variants named) held against `bound`.

    Of kind FLOOR it is the share of a copy's bandwidth: a copy's time over `under`'s, each by the bytes it moves.
    """

    text: str
    over: tuple[str, ...]
    under: tuple[str, ...]
    sense: str
    bound: float
    case: dict = field(default_factory=dict)
    over_dtype: str | None = None  # if it is not under's
    kind: str = "times"


@dataclass(frozen=True)
class Verdict:
    """A bar beside what was measured; it says little if other processes held the cores meanwhile: `disturbed`."""

    bar: Bar
    measured: Quantity
    disturbed: bool = False

    @property
    def met(self) -> bool:
        value = self.measured.median
        return value >= self.bar.bound if self.bar.sense == "≥" else value <= self.bar.bound


FUSED, RELU, NAIVE = ("fused",), ("relu",), ("naive",)


def _by_degree(degree: int, naive: float, compiled: float, relu: float) -> Iterator[Bar]:
    at = {"shape": FLAT, "degree": degree}
    yield Bar(f"degree {degree}: naive / fused", NAIVE, FUSED, "≥", naive, at)
    yield Bar(f"degree {degree}: best compiled / fused", COMPILED, FUSED, "≥", compiled, at)
    yield Bar(f"degree {degree}: fused / relu", FUSED, RELU, "≤", relu, at)
    yield Bar(f"degree {degree}: fused bf16 / fused fp32", FUSED, FUSED, "≤", 1, at, over_dtype="bf16")
    yield Bar(
        f"degree {degree}: peak memory, fused / relu", FUSED, RELU, "≤", 1.01, {"degree": degree}, kind="peak_bytes"
    )


def _by_layout(layout: str) -> Iterator[Bar]:
    at, words = {"shape": IMAGE, "layout": layout}, layout.replace("_", " ")
    yield Bar(f"per channel, {words}: fused / relu", FUSED, RELU, "≤", 2, {**at, "degree": 8})
    normalized, yardstick = NORMALIZING
    yield Bar(f"{words}: normalised / batchnorm+relu", (normalized,), (yardstick,), "≤", 1.5, {**at, "degree": 5})


# For a GPU, in the order of cases.FLOOR: the share of a copy's bandwidth, forward and backward in fp32, and in 16 bits.
# What is normalised moves more bytes (Entry.moved_bytes), and may take 1.15 and 1.35 times what these take a copy.
_DENSE, _APART, _GENERAL = (0.96, 0.96, 0.94, 0.95), (0.93, 0.91, 0.86, 0.83), (0.95, 0.95, 0.90, 0.90)
_NORMALIZED, _DEGREE_16 = (1 / 1.15, 1 / 1.15, 1 / 1.35, 1 / 1.35), (0.95, 0.95, 0.76, 0.76)
_SHARES = _DENSE, _DENSE, _APART, _APART, _GENERAL, _GENERAL, _NORMALIZED, _NORMALIZED


def _floor() -> Iterator[Bar]:
    of = dict(zip(cases.FLOOR, _SHARES, strict=True))
    for name, entry in cases.floor():
        at = {key: value for key, value in asdict(entry.case).items() if key not in ("device", "threads")}
        shares = _DEGREE_16 if at["degree"] == 16 else of[name]
        bound = shares[2 * (at["dtype"] != "fp32") + (at["passes"] == "backward")]
        yield Bar(f"degree {at['degree']}, {name}", ("copy",), (entry.variant,), "≥", bound, at, kind=FLOOR)


BARS = (
    *_by_degree(3, naive=40, compiled=2.5, relu=1.4),
    *_by_degree(8, naive=100, compiled=3, relu=1.5),
    *_by_degree(16, naive=150, compiled=2.5, relu=2.5),
    *_by_layout("contiguous"),
    *_by_layout("channels_last"),
    Bar("per feature: fused / relu", FUSED, RELU, "≤", 2, {"shape": ROWS}),
    Bar("4096 elements: fused / relu", FUSED, RELU, "≤", 2, {"shape": SMALL}),
    *(Bar(f"{network} step: fused / relu", FUSED, RELU, "≤", 1.05, kind=network) for network in NETWORKS),
    Bar("saved for backward: fused / (x, coeffs)", FUSED, (), "≤", 1, {"degree": 8}, kind="saved_bytes"),
    Bar("a call of 4096 elements: fused / python function", FUSED, ("python function",), "≤", 1.35, kind="calls"),
    *_floor(),
)


SUITES = {"times": "headline", "calls": "calls", FLOOR: "gpu"}


def verdicts(results: Iterable[Results]) -> list[Verdict]:
    """A verdict for every bar of which the results hold both sides."""
    results = list(results)
    timed = {kind: list(groups(results, "times", suite)) for kind, suite in SUITES.items()}
    for kind in ("calls", FLOOR):  # which are a GPU's
        timed[kind] = [group for group in timed[kind] if group.case.on_gpu]
    stepped, memory = list(groups(results, "network")), list(groups(results, "memory", "memory"))
    found = []
    for bar in BARS:
        if bar.kind in SUITES:
            verdict = _time(bar, timed[bar.kind])
        elif bar.kind in NETWORKS:
            verdict = _time(bar, [group for group in stepped if group[0].entry.network == bar.kind])
        else:
            verdict = _bytes(bar, memory)
        if verdict is not None:
            found.append(verdict)
    return found


def floor(results: Iterable[Results]) -> list[Verdict]:
    """Those of a GPU's kernels."""
    return [verdict for verdict in verdicts(results) if verdict.bar.kind == FLOOR]


def _time(bar: Bar, timed: list[Group]) -> Verdict | None:
    found = None
    at = {"dtype": "fp32", "memory": "kept", **bar.case}
    for group in timed:
        under = group.find(*bar.under, **at)
        over = group.find(*bar.over, **{**at, "dtype": bar.over_dtype or at["dtype"]})
        if over and under:
            factor = under.entry.moved_bytes / over.entry.moved_bytes if bar.kind == FLOOR else 1
            found = Verdict(bar, over.over(under, factor), over.disturbed or under.disturbed)
    return found


def _bytes(bar: Bar, memory: list[Group]) -> Verdict | None:
    of: dict[str, Measured] = {
        m.entry.variant: m
        for group in memory
        for m in group
        if bar.kind in m.record and m.entry.case.degree == bar.case["degree"]
    }
    over = next((of[v] for v in bar.over if v in of), None)
    under = next((of[v] for v in bar.under if v in of), None)
    if over is None or (bar.under and under is None):
        return None
    ratio = over.record[bar.kind] / (under.record[bar.kind] if under else _x_and_coeffs(over.entry.case))
    return Verdict(bar, Quantity(ratio, ratio, ratio))


def _x_and_coeffs(case: Case) -> int:
    return case.nbytes + case.nbytes // case.numel * (case.degree + 1) * case.groups
