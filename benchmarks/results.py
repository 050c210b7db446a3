"""Results files: JSON Lines, the environment first, then a line for every unit that is done.

A line is written whole when its unit is done, so an interrupted run leaves a file that can be read, and continued.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from .cases import Entry, Unit

FORMAT = 1
FOLDER = Path(__file__).parent / "results"
LOCAL = FOLDER / "local"


class ResultsError(Exception):
    """A results file that cannot be used; the message is a sentence for the user."""


@dataclass
class Results:
    """What a file holds. `remarks` are sentences about what in it could not be used.

    Attributes:
        environment: see environment.facts.
        request: what was to be measured, see __main__.run.
    """

    path: Path
    environment: dict
    request: dict
    units: list[dict] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def done(self) -> set[tuple]:
        """The keys of the units that are in the file."""
        return {(u["suite"], u["kind"], tuple(Entry.from_json(e) for e in u["entries"])) for u in self.units}


def start(path: Path, environment: dict, request: dict) -> None:
    """Begins a file.

    Raises:
        ResultsError: it exists, or cannot be written.
    """
    if path.exists():
        raise ResultsError(f"{path} exists; go on with it by --resume, or give another --output.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, {"format": FORMAT, "environment": environment, "request": request})
    except OSError as error:
        raise ResultsError(f"{path} cannot be written: {error.strerror}.") from None


def append(path: Path, unit: Unit, records: list[dict]) -> None:
    """Adds the records of a unit."""
    entries = [entry.as_json() for entry in unit.entries]
    _append(path, {"suite": unit.suite, "kind": unit.kind, "entries": entries, "records": records})


def newest() -> Path:
    """The results file of the newest run.

    Raises:
        ResultsError: there is none.
    """
    files = sorted(LOCAL.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise ResultsError(f"there is no run to go on with in {LOCAL}.")
    return files[-1]


def check_same_environment(results: Results, environment: dict) -> None:
    """Refuses to go on with a file from elsewhere, whose numbers could not be compared with new ones.

    Raises:
        ResultsError: some fact but the date differs.
    """
    for name, value in environment.items():
        old = results.environment.get(name)
        if name != "date" and old != value:
            raise ResultsError(
                f"{results.path} was measured with {name} {old!r}, and now it is {value!r}; start a new file."
            )


def _append(path: Path, line: dict) -> None:
    text = json.dumps(line, separators=(",", ":")) + "\n"
    with path.open("a+b") as file:
        # A torn last line is kept as it is, and ended, so that this one can be read.
        if file.tell() and not _ends_with_newline(file):
            text = "\n" + text
        file.write(text.encode())


def _ends_with_newline(file) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"


def load(path: Path) -> Results:
    """Reads a results file; a damaged line is left out and remarked on.

    Raises:
        ResultsError: no such file, no results file, or one of another format.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}.") from None
    head = _parse(lines[0]) if lines else None
    if head is None or not isinstance(head.get("environment"), dict):
        raise ResultsError(f"{path} is no results file of these benchmarks: its first line holds no environment.")
    if head.get("format") != FORMAT:
        raise ResultsError(
            f"{path} has format {head.get('format')}, and this version reads format {FORMAT}. It was left as it is; "
            f"read it with commit {head['environment'].get('commit', 'of its time')}, or measure anew."
        )
    results = Results(path, head["environment"], head["request"])
    for number, text in enumerate(lines[1:], start=2):
        line = _parse(text)
        if line is not None and {"suite", "kind", "entries", "records"} <= line.keys():
            results.units.append(line)
        elif text.strip():
            results.remarks.append(f"{path}, line {number}: damaged, left out.")
    return results


def _parse(text: str) -> dict | None:
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) else None
