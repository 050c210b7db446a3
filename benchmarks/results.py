"""Results files: JSON Lines, the environment first, then a line for every unit that is done.

A line is written whole when its unit is done, so an interrupted run leaves a file that can be read, and continued.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import cases
from .cases import Case, Entry, Unit

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
    with writing(path):
        if path.is_dir():
            raise ResultsError(f"{path} is a folder; give --output a file in it, such as {path / 'run.jsonl'}.")
        if path.exists():
            raise ResultsError(f"{path} exists; go on with it by --resume, or give another --output.")
        path.parent.mkdir(parents=True, exist_ok=True)
    _append(path, {"format": FORMAT, "environment": environment, "request": request})


def append(path: Path, unit: Unit, records: list[dict]) -> None:
    """Adds the records of a unit.

    Raises:
        ResultsError: the file cannot be written.
    """
    entries = [entry.as_json() for entry in unit.entries]
    _append(path, {"suite": unit.suite, "kind": unit.kind, "entries": entries, "records": records})


def pictures(path: Path) -> Path:
    """The folder for the figures of a results file: of its name, without the suffix.

    Raises:
        ResultsError: there can be no such folder.
    """
    folder = path.with_suffix("")
    if folder == path:
        raise ResultsError(f"{path} has no suffix, and its figures need a folder of that name; call it {path}.jsonl.")
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> None:
    """Refuses to draw into what is no folder, and cannot become one.

    Raises:
        ResultsError: it, or what it lies in, is a file.
    """
    with writing(folder):
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not there.is_dir():
            raise ResultsError(f"{folder} cannot hold the figures, since {there} is a file; give another name.")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the system's refusals into a sentence."""
    try:
        yield
    except OSError as error:
        raise ResultsError(f"{path} cannot be written: {error.strerror}.") from None


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
    with writing(path), path.open("a+b") as file:
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
    _check_head(path, head)
    results = Results(path, head["environment"], head["request"])
    for number, text in enumerate(lines[1:], start=2):
        line = _parse(text)
        if line is not None and _holds(_is_unit, line):
            results.units.append(line)
        elif text.strip():
            results.remarks.append(f"{path}, line {number}: damaged, left out.")
    return results


def _parse(text: str) -> dict | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, a number of too many digits; brackets without end
        return None
    return line if isinstance(line, dict) else None


# ------------------------------------------------------------------ what a line must hold, so that reports can read it


def _check_head(path: Path, head: dict) -> None:
    fields = {
        **{f"environment.{name}": (head["environment"], name, _is_text) for name in _TEXTS},
        "environment.cores": (head["environment"], "cores", _is_count),
        "environment.gpu": (head["environment"], "gpu", lambda gpu: gpu is None or _is_text(gpu)),
        "request": (head, "request", _is_request),
    }
    for name, (holder, key, is_right) in fields.items():
        if key not in holder:
            raise ResultsError(f"{path} has a damaged first line, without {name}; measure anew.")
        if not _holds(is_right, holder[key]):
            said = json.dumps(holder[key])[:60]
            raise ResultsError(f"{path} has a damaged first line, whose {name} is {said}; measure anew.")


_TEXTS = ("date", "commit", "device", "cpu", "kernels", "torch", "python", "slaf_ext")


def _holds(test: Callable[..., bool], value: object) -> bool:
    """Whether a test of a value of any type is passed."""
    try:
        return test(value)
    except (AttributeError, KeyError, OverflowError, TypeError):
        return False


def _is_request(request: dict) -> bool:
    return (
        request["preset"] in cases.PRESETS
        and _is_text(request["device"])
        and all(name in cases.FILTERS and isinstance(values, list) for name, values in request["wanted"].items())
    )


def _is_unit(line: dict) -> bool:
    """A unit's records are from the same rounds, so they have as many blocks."""
    records = line["records"]
    return (
        _is_text(line["suite"])
        and line["kind"] in ("times", "memory", "network")
        and bool(line["entries"])
        and all(_is_entry(entry, line["suite"]) for entry in line["entries"])
        and bool(records)
        and all(_is_entry(record, line["suite"]) and _is_record(record, line["kind"]) for record in records)
        and len({len(record["seconds"]) for record in records if "seconds" in record}) <= 1
    )


def _is_entry(data: dict, suite: str) -> bool:
    entry = Entry.from_json(data)
    is_named = _is_text(entry.variant) and (entry.network is None or _is_text(entry.network))
    return is_named and _is_case(entry.case, suite)


def _is_case(case: Case, suite: str) -> bool:
    has_channels = suite == "channels" or case.sharing in ("group", "channel")
    return (
        len(case.shape) > has_channels
        and all(map(_is_count, case.shape))
        and 0 < math.prod(case.shape) < 2**63
        and _is_count(case.degree)
        and _is_text(case.basis)
        and case.sharing in cases.SHARINGS
        and case.layout in cases.LAYOUTS
        and case.dtype in cases.DTYPES
        and case.passes in cases.PASSES
        and _is_count(case.threads)
        and _is_text(case.device)
        and case.memory in ("kept", "fresh")
    )


def _is_record(record: dict, kind: str) -> bool:
    """Numbers, or the reason why there are none."""
    if not all(record.get(name) is None or _is_count(record[name]) for name in ("saved_bytes", "launches")):
        return False
    if kind == "memory" and "peak_bytes" in record:
        return _is_count(record["peak_bytes"]) and record["peak_bytes"] > 0
    if kind != "memory" and "seconds" in record:
        seconds, waited = record["seconds"], record["waited"]
        errors = {} if record["variant"] in cases.ROOFS else record["errors"]
        return (
            len(seconds) == len(waited) > 0
            and all(_is_number(value) and value > 0 for value in seconds)
            and all(map(_is_number, [*waited, *errors.values()]))
        )
    return _is_text(record.get("skipped")) or (kind != "memory" and _is_text(record.get("refused")))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
