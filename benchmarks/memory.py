"""Peak memory of one step of an entry, measured in a fresh process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from . import environment, measure, variants
from .cases import Entry, Unit


def unit_records(unit: Unit, tick: Callable[[str], None]) -> list[dict]:
    """A record for each entry, from a process forked from one that has imported everything and made no tensor."""
    forks = multiprocessing.get_context("forkserver" if environment.IS_LINUX else "spawn")
    if environment.IS_LINUX:
        forks.set_forkserver_preload([__name__])
    records = []
    for entry in unit.entries:
        tick(entry.variant)
        with ProcessPoolExecutor(1, forks) as process:
            try:
                found = process.submit(peak, entry).result()
            except Exception as error:  # also of a process that the system killed because memory ran out
                found = measure.failure(error)
        records.append({**entry.as_json(), **found})
    return records


def peak(entry: Entry) -> dict:
    """The step's highest use of memory, in bytes above what was in use before it."""
    case = entry.case
    torch.set_num_threads(case.threads)
    # Before the first tensor: a freed block that malloc keeps would hide as much of the step's memory.
    if not environment.return_freed_memory() and case.device == "cpu":
        return {"skipped": "peak memory on the CPU needs Linux and glibc"}
    prepared = variants.prepare(entry.variant, case)
    x, grad_output = measure.inputs(case)
    run = measure.action(prepared, x, grad_output, case.passes)
    found = {"saved_bytes": measure.saved_bytes(prepared, x)}
    if case.on_gpu:
        run()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return {**found, "peak_bytes": torch.cuda.max_memory_allocated() - before}
    return {**found, "peak_bytes": resident_growth(run)}


def resident_growth(run: Callable) -> int:
    """How far the process's resident set rises while `run` runs (Linux alone)."""
    run()  # so that code pages and threads' stacks are resident already
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to the current size
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
