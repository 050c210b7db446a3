"""The speed and memory that this project has promised, as ratios, and whether a run shows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .cases import NETWORKS, Case
from .results import Results
from .statistics import Group, Measured, Quantity, groups

COMPILED = ("compiled horner", "compiled clenshaw", "max-autotune horner", "max-autotune clenshaw")
FLAT, IMAGE, ROWS, SMALL = (2**20,), (32, 64, 56, 56), (4096, 768), (4096,)


@dataclass(frozen=True)
class Bar:
    """`over` / `under` (the fastest of the variants named) held against `bound`."""

    text: str
    over: tuple[str, ...]
    under: tuple[str, ...]
    sense: str
    bound: float
    case: dict = field(default_factory=dict)
    over_dtype: str = "fp32"
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
BARS = (
    *(
        bar
        for degree, compiled, naive, relu in ((3, 2.5, 40, 1.4), (8, 3, 100, 1.5), (16, 2.5, 150, 2.5))
        for bar in (
            Bar(f"degree {degree}: naive / fused", NAIVE, FUSED, "≥", naive, {"shape": FLAT, "degree": degree}),
            Bar(f"degree {degree}: best compiled / fused", COMPILED, FUSED, "≥", compiled,
                {"shape": FLAT, "degree": degree}),
            Bar(f"degree {degree}: fused / relu", FUSED, RELU, "≤", relu, {"shape": FLAT, "degree": degree}),
        )
    ),
    Bar("per channel, contiguous: fused / relu", FUSED, RELU, "≤", 2, {"shape": IMAGE, "layout": "contiguous"}),
    Bar("per channel, channels last: fused / relu", FUSED, RELU, "≤", 2, {"shape": IMAGE, "layout": "channels_last"}),
    Bar("per feature: fused / relu", FUSED, RELU, "≤", 2, {"shape": ROWS}),
    Bar("4096 elements: fused / relu", FUSED, RELU, "≤", 2, {"shape": SMALL}),
    Bar("fused: bf16 / fp32", FUSED, FUSED, "≤", 1, {"shape": FLAT, "degree": 8}, over_dtype="bf16"),
    *(Bar(f"{network} step: fused / {plain}", FUSED, (plain,), "≤", 1.05, kind=network)
      for network, plain in (("mlp", "relu"), ("resnet", "relu"), ("vit", "gelu"))),
    Bar("peak memory: fused / relu", FUSED, RELU, "≤", 1.01, kind="peak_bytes"),
    Bar("saved for backward: fused / (x, coeffs)", FUSED, (), "≤", 1, kind="saved_bytes"),
)  # fmt: skip


def verdicts(results: Iterable[Results]) -> list[Verdict]:
    """A verdict for every bar of which the results hold both sides."""
    results = list(results)
    timed, stepped = list(groups(results, "times", "headline")), list(groups(results, "network"))
    memory = list(groups(results, "memory", "memory"))
    found = []
    for bar in BARS:
        if bar.kind == "times":
            verdict = _time(bar, timed)
        elif bar.kind in NETWORKS:
            verdict = _time(bar, [group for group in stepped if group[0].entry.network == bar.kind])
        else:
            verdict = _bytes(bar, memory)
        if verdict is not None:
            found.append(verdict)
    return found


def _time(bar: Bar, timed: list[Group]) -> Verdict | None:
    found = None
    for group in timed:
        under = group.find(*bar.under, dtype="fp32", memory="kept", **bar.case)
        over = group.find(*bar.over, dtype=bar.over_dtype, memory="kept", **bar.case)
        if over and under:
            found = Verdict(bar, over.over(under), over.disturbed or under.disturbed)
    return found


def _bytes(bar: Bar, memory: list[Group]) -> Verdict | None:
    of: dict[str, Measured] = {m.entry.variant: m for group in memory for m in group if bar.kind in m.record}
    over = next((of[v] for v in bar.over if v in of), None)
    under = next((of[v] for v in bar.under if v in of), None)
    if over is None or (bar.under and under is None):
        return None
    ratio = over.record[bar.kind] / (under.record[bar.kind] if under else _x_and_coeffs(over.entry.case))
    return Verdict(bar, Quantity(ratio, ratio, ratio))


def _x_and_coeffs(case: Case) -> int:
    return case.nbytes + case.nbytes // case.numel * (case.degree + 1) * case.groups
