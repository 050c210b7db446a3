"""From records to numbers: medians, quartiles, ratios within a round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .cases import NORMALIZING, Case, Entry
from .results import Results


@dataclass(frozen=True)
class Quantity:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(samples: Iterable[float]) -> Quantity:
        low, median, high = np.quantile(list(samples), (0.25, 0.5, 0.75)).tolist()
        return Quantity(median, low, high)


# A block counts as undisturbed if its threads waited for a core for no more than this part of it.
QUIET = 0.02
LEAST_QUIET = 3


@dataclass(frozen=True)
class Measured:
    """A record beside its entry."""

    suite: str
    entry: Entry
    record: dict

    @property
    def is_timed(self) -> bool:
        return bool(self.record.get("seconds"))

    @property
    def seconds(self) -> np.ndarray:
        return np.array(self.record["seconds"])

    @property
    def quiet(self) -> np.ndarray:
        """Which blocks had their cores to themselves: judged by the scheduler's clock, not by their times."""
        return np.array(self.record["waited"]) <= QUIET

    @property
    def disturbed(self) -> bool:
        """Whether too few blocks were undisturbed, so that all of them had to be used."""
        return bool(self.quiet.sum() < LEAST_QUIET)

    @property
    def time(self) -> Quantity:
        return Quantity.of(self.seconds if self.disturbed else self.seconds[self.quiet])

    def over(self, other: Measured, factor: float = 1) -> Quantity:
        """This one's time over the other's, times a factor, round by round: what slowed the machine slowed both."""
        ratios = factor * self.seconds / other.seconds
        quiet = self.quiet & other.quiet
        return Quantity.of(ratios[quiet] if quiet.sum() >= LEAST_QUIET else ratios)


class Group(list[Measured]):
    """The entries of a unit."""

    @property
    def case(self) -> Case:
        return self[0].entry.case

    @property
    def is_normalized(self) -> bool:
        return any(m.entry.variant in NORMALIZING for m in self)

    @property
    def mine(self) -> Measured | None:
        """What this package offers."""
        return self.find("normalized" if self.is_normalized else "fused", dtype=self.case.dtype)

    @property
    def yardstick(self) -> Measured | None:
        """What it is to replace."""
        return self.find("batchnorm + relu" if self.is_normalized else "relu", dtype=self.case.dtype)

    def find(self, *names: str, **attributes) -> Measured | None:
        """The fastest of those with one of the names and these attributes of the case."""
        found = [
            m
            for m in self
            if m.entry.variant in names
            and m.is_timed
            and all(getattr(m.entry.case, k) == v for k, v in attributes.items())
        ]
        return min(found, key=lambda m: m.time.median, default=None)


def groups(results: Iterable[Results], kind: str = "times", suite: str | None = None) -> Iterator[Group]:
    """The units of that kind, and suite. Where several results have the same case, the last one's counts."""
    found = {}
    for result in results:
        for unit in result.units:
            if unit["kind"] == kind and suite in (None, unit["suite"]):
                group = Group(Measured(unit["suite"], Entry.from_json(r), r) for r in unit["records"])
                found[unit["suite"], group[0].entry.network, group.case] = group
    yield from found.values()
