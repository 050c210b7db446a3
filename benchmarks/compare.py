"""Two runs beside each other: what of this package became slower or larger."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from .analysis import MINE, describe, duration, frame, mebibytes, pick, ratio, units
from .cases import NORMALIZING
from .report import DISTURBED, markdown, paragraph
from .results import Results

LEAST = 0.05  # a difference counts if the medians differ by this much and the quartiles do not overlap
WORDS = {"time": ("slower", "faster"), "ratio": ("slower", "faster"), "peak": ("larger", "smaller")}
SHOWN = {"time": duration, "ratio": ratio, "peak": mebibytes}


def text(old: Results, new: Results) -> str:
    """The changes of this package's variants; everything else changes with the machine or with torch.

    A time counts by its ratio to relu (of the normalised form, to BatchNorm + relu) in the same run, where both runs
    have it, since a machine is not equally fast in every run.
    """
    pairs = pd.DataFrame(_pairs(frame([old]), frame([new])))
    if pairs.empty:
        return f"{old.path} and {new.path} have nothing in common."
    changed = [
        f"{k}: {v} -> {new.environment.get(k)}" for k, v in old.environment.items() if v != new.environment.get(k)
    ]
    blocks = ["\n".join(changed)] * bool(changed)
    for case, of in pairs[pairs.mine].groupby("case", sort=False):
        blocks += [paragraph(case), markdown(of[["of", "old", "new", "new/old", ""]])]
    others = pairs[~pairs.mine & (pairs.of == "time")].change
    if len(others):
        low, median, high = map(ratio, others.quantile([0.25, 0.5, 0.75]))
        said = f"The time of everything else changed by x {median} at the median (quartiles {low}-{high}): that is the "
        blocks.append(paragraph(f"{said}machine or torch, and does not count."))
    blocks.append(
        ", ".join(f"{(pairs.word == word).sum()} {word}" for word in ("slower", "faster", "larger", "smaller"))
    )
    worse = pairs[pairs.word.isin(["slower", "larger"])]
    blocks += [paragraph(f"regression{p.mark}: {p.case}: {p.of} x {p.change:.3f}") for p in worse.itertuples()]
    return "\n\n".join(blocks + [DISTURBED] * bool((pairs.mark == "?").any()))


def _pairs(old: pd.DataFrame, new: pd.DataFrame) -> Iterator[dict]:
    """Each quantity that both runs have."""
    after = {_key(unit): unit for unit in units(new)}
    for before in units(old):
        later = after.get(_key(before), before[:0])
        for _, was in before.iterrows():
            for _, now in later[later.variant == was.variant].iterrows():
                mine = was.variant in MINE
                same = {"case": f"{was.suite}: {was.network or describe(was.case)}: {was.variant}", "mine": mine}
                if was.blocks and now.blocks:
                    yardstick = NORMALIZING[1] if was.variant == NORMALIZING[0] else "relu"
                    plain = pick(before, yardstick), pick(later, yardstick)
                    has_ratio = mine and plain[0] is not None and plain[1] is not None
                    yield same | _change("time", was.blocks, now.blocks, judged=mine and not has_ratio)
                    if has_ratio:
                        yield same | _change(
                            "ratio", was.blocks.over(plain[0].blocks), now.blocks.over(plain[1].blocks)
                        )
                if was.peak > 0 and now.peak > 0:
                    yield same | _change("peak", was.peak, now.peak, judged=mine)


def _key(unit: pd.DataFrame) -> tuple:
    first = unit.iloc[0]
    return first.suite, first.kind, first.network, first.case


def _change(of: str, old, new, *, judged: bool = True) -> dict:
    (low, was, high), (new_low, now, new_high) = ([float(x)] * 3 if of == "peak" else x.quartiles for x in (old, new))
    change = now / was
    differs = judged and (new_low > high or new_high < low) and abs(change - 1) >= LEAST
    word = WORDS[of][change < 1] if differs else ""
    mark = "?" * (differs and of != "peak" and (old.disturbed or new.disturbed))
    return {"of": of, "old": SHOWN[of](was), "new": SHOWN[of](now), "new/old": ratio(change), "": word + mark,
            "change": change, "word": word, "mark": mark}  # fmt: skip
