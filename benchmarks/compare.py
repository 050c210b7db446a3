"""Two runs beside each other: what of this package became slower or larger."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from .analysis import MINE, frame, label, mebibytes, pick, ratio, units
from .cases import NORMALIZING
from .report import DISTURBED, markdown
from .results import Blocks, Results

LEAST = 0.05  # a difference counts if the medians differ by this much and the quartiles do not overlap


def text(old: Results, new: Results) -> str:
    """The changes of this package's variants.

    A time counts by its ratio to relu (of the normalised form, to BatchNorm + relu) in the same run, since a machine is
    not equally fast in every run.
    """
    after = {_key(unit): unit for unit in units(frame([new]))}
    pairs = ((unit, after[_key(unit)]) for unit in units(frame([old])) if _key(unit) in after)
    table = pd.DataFrame([row for pair in pairs for row in _changes(*pair)])
    if table.empty:
        return f"{old.path} and {new.path} have nothing in common."
    names = {name for name in old.environment if old.environment[name] != new.environment.get(name)}
    changed = [f"{name}: {old.environment[name]} -> {new.environment.get(name)}" for name in sorted(names)]
    words = table[""].str.removesuffix("?")
    counts = ", ".join(f"{(words == word).sum()} {word}" for word in ("slower", "faster", "larger", "smaller"))
    return "\n\n".join(["\n".join(changed), markdown(table), DISTURBED, counts])


def _key(unit: pd.DataFrame) -> tuple:
    first = unit.iloc[0]
    return first.suite, first.kind, first.network, first.case


def _changes(old: pd.DataFrame, new: pd.DataFrame) -> Iterator[dict]:
    """A row for each of this package's variants that both have."""
    for name in {*MINE} & {*old.variant} & {*new.variant}:
        case = {"case": f"{old.suite.iloc[0]}: {label(old)}"}
        yardstick = NORMALIZING[1] if name == NORMALIZING[0] else "relu"
        picked = [pick(unit, variant) for unit in (old, new) for variant in (name, yardstick)]
        if all(row is not None for row in picked):
            mine, relu, now, relu_now = (row.blocks for row in picked)
            yield case | _change("/relu" if yardstick == "relu" else "/bn+relu", mine.over(relu), now.over(relu_now))
        peaks = [unit[unit.variant == name].peak.iloc[0] for unit in (old, new)]
        if min(peaks) > 0:
            word = "" if abs(peaks[1] / peaks[0] - 1) < LEAST else "larger" if peaks[1] > peaks[0] else "smaller"
            shown = dict(zip(("old", "new"), map(mebibytes, peaks), strict=True))
            yield case | {"of": "peak", **shown, "new/old": ratio(peaks[1] / peaks[0]), "": word}


def _change(of: str, old: Blocks, new: Blocks) -> dict:
    (low, was, high), (new_low, now, new_high) = old.quartiles, new.quartiles
    differs = (new_low > high or new_high < low) and abs(now / was - 1) >= LEAST
    word = ("slower" if now > was else "faster") + "?" * (old.disturbed or new.disturbed) if differs else ""
    return {"of": of, "old": ratio(was), "new": ratio(now), "new/old": ratio(now / was), "": word}
