"""Peak memory of one step of an entry, in a process of its own: ``python -m benchmarks.memory ENTRY``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from . import environment, measure, networks, variants
from .cases import Entry, Unit


def unit_records(unit: Unit, tick: Callable[[str], None]) -> list[dict]:
    """A record for every entry, from a fresh process each."""
    records = []
    for entry in unit.entries:
        tick(entry.variant)
        command = [sys.executable, "-m", "benchmarks.memory", json.dumps(entry.as_json())]
        result = subprocess.run(command, capture_output=True, text=True, cwd=environment.ROOT)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            records.append({**entry.as_json(), "skipped": f"the measuring process ended with: {last}"})
        else:
            records.append({**entry.as_json(), **json.loads(result.stdout.splitlines()[-1])})
    return records


def peak(entry: Entry) -> dict:
    """Bytes above what lay in memory before the step, at the step's highest."""
    case = entry.case
    torch.set_num_threads(case.threads)
    # Before the first tensor: a block that malloc keeps would hide as much of the step's memory.
    if not environment.return_freed_memory() and case.device == "cpu":
        return {"skipped": "peak memory on the CPU needs Linux and glibc"}
    try:
        run, found = _network(entry) if entry.network else _operator(entry)
    except variants.Unavailable as reason:
        return {"skipped": str(reason)}
    if case.device.startswith("cuda"):
        run()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return {**found, "peak_bytes": torch.cuda.max_memory_allocated() - before}
    return {**found, "peak_bytes": resident_growth(run)}


def _operator(entry: Entry) -> tuple[Callable, dict]:
    prepared = variants.prepare(entry.variant, entry.case)
    x, grad_output = measure.inputs(entry.case)
    run = measure.action(prepared, x, grad_output, entry.case.passes)
    return run, {"saved_bytes": measure.saved_bytes(prepared, x)}


def _network(entry: Entry) -> tuple[Callable, dict]:
    return networks.training_step(*networks.build(entry)), {}


def resident_growth(run: Callable) -> int:
    """How far the process's resident set rises above where it was while `run` runs, Linux alone."""
    run()  # code pages and threads' stacks are not the operator's memory
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to the present size
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(peak(Entry.from_json(json.loads(sys.argv[1])))))
