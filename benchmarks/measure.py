"""How variants are timed: in interleaved rounds, after each has been checked."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from . import environment, variants
from .cases import DTYPES, PRODUCT_SIDE, Case, Entry, Unit
from .check import Wrong, check
from .variants import Prepared, Unavailable

BLOCK_SECONDS = 0.01  # length of a block of calls, before it is the next variant's turn
MIN_ROUNDS, MAX_ROUNDS = 7, 101
MAX_IN_TURN = 64


def inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x, uniform on the basis's own interval, and grad_output, of the case's layout."""
    generator = torch.Generator(case.device).manual_seed(seed)
    lo, hi = case.recurrence.domain
    order = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format

    def draw(make: Callable) -> Tensor:
        t = make(case.shape, generator=generator, device=case.device).to(DTYPES[case.dtype])
        return t.contiguous(memory_format=order)

    return (draw(torch.rand) * (hi - lo) + lo).requires_grad_(), draw(torch.randn)


def action(prepared: Prepared, x: Tensor, grad_output: Tensor, passes: str) -> Callable[[], dict[str, Tensor]]:
    """The call to be timed, which returns those of y and the gradients that the pass computes."""
    wanted = (x, *prepared.params)

    def gradients(y: Tensor, **options) -> dict[str, Tensor]:
        # materialize_grads: a constant polynomial does not depend on x
        found = torch.autograd.grad(y, wanted, grad_output, materialize_grads=True, **options)
        return dict(zip(prepared.gradients, found, strict=True))

    def both():
        y = prepared.forward(*wanted)
        return {"y": y, **gradients(y)}

    if passes == "both":
        return both
    if passes == "backward":
        return functools.partial(gradients, prepared.forward(*wanted), retain_graph=True)
    constant = [t.detach() for t in wanted]

    def forward():
        with torch.no_grad():
            return {"y": prepared.forward(*constant)}

    return forward


def in_turn(runs: Sequence[Callable]) -> Callable:
    """A function that calls the next of them each time."""
    turns = itertools.cycle(runs)
    return runs[0] if len(runs) == 1 else lambda: next(turns)()


def tensors_in_turn(case: Case) -> int:
    """How many pairs of x and grad_output take turns, so that at least twice the L2's size is read between two turns.

    Of tensors so small that this takes more than MAX_IN_TURN pairs the L2 may hold some.
    """
    l2 = torch.cuda.get_device_properties(case.device).L2_cache_size
    return min(MAX_IN_TURN, 1 + math.ceil(2 * l2 / case.nbytes))


@contextlib.contextmanager
def compiling(entry: Entry) -> Iterator[None]:
    """Refuses an entry of whose first calls torch.compile made no graph: the eager form would be timed."""
    stats = torch._dynamo.utils.counters["stats"]
    before = stats["unique_graphs"]
    yield
    if entry.is_compiled and stats["unique_graphs"] == before:
        raise Wrong("torch.compile compiled nothing and fell back to the eager form")


def saved_bytes(prepared: Prepared, x: Tensor) -> int:
    """Bytes that the forward pass saves for backward, counting each storage once."""
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = prepared.forward(x, *prepared.params)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    del y
    return sum(storages.values())


def roof_actions(case: Case, xs: list[Tensor]) -> dict[str, Callable]:
    """A copy into existing memory and, on the CPU, a matrix product in the type that the case computes in."""
    actions = {"copy": in_turn([functools.partial(torch.empty_like(x.detach()).copy_, x.detach()) for x in xs])}
    if not case.on_gpu:
        dtype = torch.float64 if case.dtype == "fp64" else torch.float32
        a, b, out = (torch.ones(PRODUCT_SIDE, PRODUCT_SIDE, dtype=dtype) for _ in range(3))
        actions["product"] = functools.partial(torch.mm, a, b, out=out)
    return actions


class Clock:
    """Seconds per call over a block of calls, until a GPU has finished the last one."""

    by_host = True  # whether processes that compete for the cores disturb it

    def __init__(self, run: Callable, case: Case) -> None:
        self.case = case
        self.timer = Timer("run()", globals={"run": run}, num_threads=case.threads)
        once = min(self.timer.timeit(1).median for _ in range(2))
        self.calls = max(1, min(10_000, round(BLOCK_SECONDS / once)))

    def seconds(self) -> float:
        return self.timer.timeit(self.calls).median


class Replays(Clock):
    """GPU seconds per call over a block of calls captured in a CUDA graph: kernels alone, without the host."""

    by_host = False

    def __init__(self, run: Callable, case: Case, turns: int) -> None:
        super().__init__(run, case)
        self.calls = turns * math.ceil(self.calls / turns)  # so that every replay begins with the same tensors
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
            for _ in range(self.calls):
                run()

    def seconds(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.graph.replay()  # keeps the GPU busy while the host enqueues the rest
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / self.calls


def times(unit: Unit, tick: Callable[[str], None]) -> list[dict]:
    """A record for each of `cases.ROOFS` (a GPU has the copy alone) and for each entry, measured in rounds."""
    torch._dynamo.reset()  # graphs of other units are not needed any more
    case = unit.entries[0].case
    turns, clock, stream = 1, Clock, contextlib.nullcontext()
    if case.on_gpu and unit.suite != "calls":
        # A graph captures one stream, not the default one, and autograd runs backward on the stream of its forward.
        turns, stream = tensors_in_turn(case), torch.cuda.stream(torch.cuda.Stream(case.device))
        clock = functools.partial(Replays, turns=turns)
    with stream:
        enter(case)
        pairs = [inputs(case, seed) for seed in range(turns)]
        roofs = {name: clock(run, case) for name, run in roof_actions(case, [x for x, _ in pairs]).items()}
        return in_rounds(unit, functools.partial(_checked, pairs=pairs, clock=clock), tick, roofs)


def in_rounds(
    unit: Unit, prepare: Callable[[Entry], tuple[dict, Clock]], tick: Callable[[str], None], roofs: dict[str, Clock]
) -> list[dict]:
    """Measures the entries in rounds, a block of each, so that whatever else the machine does meets all alike.

    `prepare` gives the part of an entry's record that comes before timing, and its clock; it raises if it is wrong.
    """
    records = [Entry(roof, unit.entries[0].case).as_json() for roof in roofs]
    clocks: list[Clock | None] = list(roofs.values())
    for entry in unit.entries:
        tick(entry.variant)
        try:
            record, clock = prepare(entry)
        except Exception as reason:  # one variant that fails must not end the run
            record, clock = failure(reason), None
        records.append({**entry.as_json(), **record})
        clocks.append(clock)
    interleave(records, clocks, unit.seconds, tick)
    return records


def run_once(units: Iterable[Unit]) -> None:
    """Calls each entry once, for a profiler."""
    for entry in (entry for unit in units for entry in unit.entries):
        action(variants.prepare(entry.variant, entry.case), *inputs(entry.case), entry.case.passes)()


def _checked(entry: Entry, pairs: list[tuple[Tensor, Tensor]], clock: Callable) -> tuple[dict, Clock]:
    case = entry.case
    start = perf_counter()
    with warnings.catch_warnings(), compiling(entry):
        warnings.simplefilter("ignore")  # the compilers' own
        prepared = variants.prepare(entry.variant, case)
        run = in_turn([action(prepared, *pair, case.passes) for pair in pairs])
        outputs = run()
    record = {"first_call_seconds": perf_counter() - start}
    record["errors"] = check(case, prepared, *pairs[0], outputs)
    del outputs
    if case.passes != "forward":
        record["saved_bytes"] = saved_bytes(prepared, pairs[0][0])
    return record, clock(run, case)


def failure(error: Exception) -> dict:
    """What a record says instead of times."""
    if isinstance(error, (Wrong, Unavailable)):
        return {"refused" if isinstance(error, Wrong) else "skipped": str(error)}
    return {"skipped": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}


def enter(case: Case) -> None:
    """Sets the process's threads and malloc as the case requires."""
    torch.set_num_threads(case.threads)
    environment.return_freed_memory() if case.memory == "fresh" else environment.keep_freed_memory()


def interleave(
    records: list[dict], clocks: Sequence[Clock | None], seconds: float, tick: Callable[[str], None]
) -> None:
    """Adds to each record with a clock, for every round, the seconds per call and the share of time spent waiting."""
    timed = [(record, clock) for record, clock in zip(records, clocks, strict=True) if clock is not None]
    for record, clock in timed:
        record.update(calls=clock.calls, seconds=[], waited=[])
    start = perf_counter()
    for round_ in range(MAX_ROUNDS):
        spent = perf_counter() - start
        if (round_ >= MIN_ROUNDS and spent > seconds) or (round_ >= 3 and spent > 3 * seconds):  # on a busy machine
            return
        for i in range(len(timed)):  # each round begins with another variant
            record, clock = timed[(i + round_) % len(timed)]
            tick(record["variant"])
            enter(clock.case)
            began, waited = perf_counter(), waiting_seconds()
            record["seconds"].append(clock.seconds())
            record["waited"].append(clock.by_host * (waiting_seconds() - waited) / (perf_counter() - began))


def waiting_seconds() -> float:
    """How long this process's threads have been ready to run while another process held the core.

    From Linux's scheduler; elsewhere 0, and every block counts as undisturbed.
    """
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):  # a thread may end meanwhile
            total += int(path.read_text().split()[1])
    return total / 1e9
