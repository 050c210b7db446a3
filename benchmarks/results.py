"""Raw results: JSON Lines, the environment first, then one line for each finished unit.

A line is written when its unit is done, so an interrupted run leaves a file that can be read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .cases import Entry, Unit

FORMAT = 1
LOCAL = Path(__file__).parent / "results" / "local"
QUIET = 0.02  # a block is undisturbed if its threads waited for a core during at most this share of it
MIN_QUIET = 3


class ResultsError(Exception):
    """A results file that cannot be used; the message is a sentence for the user."""


@dataclass(frozen=True)
class Blocks:
    """Seconds per call, block by block, or a ratio of two such; `quiet` marks the undisturbed blocks."""

    seconds: np.ndarray
    quiet: np.ndarray

    @property
    def disturbed(self) -> bool:
        """Whether so few blocks are undisturbed that all of them have to count."""
        return bool(self.quiet.sum() < MIN_QUIET)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """The lower quartile, the median and the upper quartile."""
        counted = self.seconds if self.disturbed else self.seconds[self.quiet]
        return tuple(np.quantile(counted, (0.25, 0.5, 0.75)).tolist())

    @property
    def median(self) -> float:
        return self.quartiles[1]

    def over(self, other: Blocks) -> Blocks:
        """The ratio within each round: what slowed the machine slowed both."""
        return Blocks(self.seconds / other.seconds, self.quiet & other.quiet)


@dataclass
class Results:
    """What a file holds."""

    path: Path
    environment: dict
    rows: list[dict] = field(default_factory=list)  # one for each record

    @property
    def origin(self) -> str:
        form = "{} cores, {kernels} kernels, torch {torch}, Python {python}, slaf_ext {slaf_ext}, commit {commit}"
        e = self.environment
        return f"{e['gpu'] or e['cpu']}, {form.format(e['cores'], **e)}, {e['date'][:10]}"


def start(path: Path, environment: dict, request: dict) -> None:
    """Begins a file, which must not exist."""
    if path.exists():
        raise ResultsError(f"{path} exists; give another --output.")
    path.parent.mkdir(parents=True, exist_ok=True)
    _append(path, {"format": FORMAT, "environment": environment, "request": request})


def append(path: Path, unit: Unit, records: list[dict]) -> None:
    _append(path, {"suite": unit.suite, "kind": unit.kind, "records": records})


def _append(path: Path, line: dict) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, separators=(",", ":")) + "\n")


def load(path: Path) -> Results:
    """Reads a file.

    Raises:
        ResultsError: it cannot be read, or a line is damaged.
    """
    number = 1
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        head = json.loads(lines[0])
        if head["format"] != FORMAT:
            commit = head["environment"]["commit"]
            raise ResultsError(f"{path} has format {head['format']}, not {FORMAT}; read it with commit {commit}.")
        found = Results(path, head["environment"])
        _ = found.origin  # raises if a fact is missing
        for number, text in enumerate(lines[1:], start=2):
            line = json.loads(text)
            rows = [{"line": number, **row(line["suite"], line["kind"], record)} for record in line["records"]]
            if len({len(row["blocks"].seconds) for row in rows if row["blocks"]}) > 1:
                raise ValueError("the records have different numbers of blocks")
            found.rows += rows
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ResultsError(f"{path}, line {number}, is not a line of results; delete it, or measure again.") from None
    return found


def row(suite: str, kind: str, record: dict) -> dict:
    """A record with flat columns."""
    entry = Entry.from_json(record)
    seconds, waited = (np.array(record.get(name, []), dtype=float) for name in ("seconds", "waited"))
    if len(seconds) != len(waited) or not (seconds > 0).all():
        raise ValueError("blocks are missing or not positive")
    return {
        **vars(entry.case),
        "suite": suite,
        "kind": kind,
        "variant": entry.variant,
        "network": entry.network or "",
        "entry": entry,
        "blocks": Blocks(seconds, waited <= QUIET) if len(seconds) else None,
        "error": max(record.get("errors", {}).values(), default=np.nan),
        "peak": float(record.get("peak_bytes", np.nan)),
        "saved": float(record.get("saved_bytes", np.nan)),
        "why_not": next((f"{verb}: {record[verb]}" for verb in ("skipped", "refused") if verb in record), ""),
    }
