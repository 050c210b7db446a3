"""How a variant is checked and timed."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer

from slaf_ext import bases

from . import environment, oracle, variants
from .cases import DTYPES, PRODUCT_SIDE, Case, Entry, Unit
from .variants import Prepared, Unavailable

# An error, as a fraction of the largest true value, beyond which a variant does not compute the polynomial at all; the
# error itself stands in the table. In fp32 up to 2e-5 was seen, of the stacked form's sum over a million elements.
LIMITS = {"fp64": 1e-12, "fp32": 1e-4, "fp16": 2e-2, "bf16": 6e-2}
# Coefficients that were converted to powers of x cancel each other, and lose digits as the degree grows.
LIMITS_IN_POWERS = {**LIMITS, "fp64": 1e-8, "fp32": 1e-2}

BLOCK_SECONDS = 0.01  # calls in a row before the next variant has its turn
LEAST_ROUNDS, MOST_ROUNDS = 7, 101
MOST_IN_TURN = 64


class Wrong(Exception):
    """The variant computes something else."""


def inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x, uniform on the basis's own interval, and grad_output, of the case's layout."""
    generator = torch.Generator(case.device).manual_seed(seed)
    lo, hi = bases.get(case.recurrence).domain
    order = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format

    def draw(make: Callable) -> Tensor:
        t = make(case.shape, generator=generator, device=case.device).to(DTYPES[case.dtype])
        return t.contiguous(memory_format=order)

    return (draw(torch.rand) * (hi - lo) + lo).requires_grad_(), draw(torch.randn)


def action(prepared: Prepared, x: Tensor, grad_output: Tensor, passes: str) -> Callable[[], dict[str, Tensor]]:
    """The call to be timed. It returns y and the gradients, whichever the pass has."""
    wanted = (x, *prepared.params)

    def gradients(y: Tensor, **options) -> dict[str, Tensor]:
        # A constant polynomial does not depend on x: materialize_grads.
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
    """One that calls the next of them each time."""
    turns = itertools.cycle(runs)
    return runs[0] if len(runs) == 1 else lambda: next(turns)()


def tensors_in_turn(case: Case) -> int:
    """How many pairs of x and grad_output take turns, so that a GPU's L2 has forgotten each when its turn comes again.

    Between two turns at least twice what it holds is read; of less than some MiB, which would need thousands, no more
    than MOST_IN_TURN take part.
    """
    l2 = torch.cuda.get_device_properties(case.device).L2_cache_size
    return min(MOST_IN_TURN, 1 + math.ceil(2 * l2 / case.nbytes))


@contextlib.contextmanager
def compiling(entry: Entry) -> Iterator[None]:
    """The first calls of an entry.

    Raises:
        Wrong: torch.compile made no graph of it, so that its time would be that of the eager form.
    """
    stats = torch._dynamo.utils.counters["stats"]
    before = stats["unique_graphs"]
    yield
    if entry.is_compiled and stats["unique_graphs"] == before:
        raise Wrong("torch.compile compiled nothing, and fell back to the eager form")


def check(entry: Entry, prepared: Prepared, x: Tensor, grad_output: Tensor, outputs: dict[str, Tensor]) -> dict:
    """The errors against float64.

    Raises:
        Wrong: one of them is beyond what rounding explains.
    """
    case = entry.case
    outputs = {name: t.detach() for name, t in outputs.items()}
    if prepared.basis is None:
        found = _errors_by_definition(prepared, x, grad_output, outputs, case.passes)
    else:
        true = case, variants.coefficients(case), bases.get(case.recurrence), x.detach(), grad_output, outputs
        if prepared.normalized:
            found = oracle.normalized_errors(*true, variants.SLAF_EPS)
        else:
            found = oracle.errors(*true, prepared.basis)
    is_converted = prepared.basis is not None and prepared.basis.name != case.basis
    limit = (LIMITS_IN_POWERS if is_converted else LIMITS)[case.dtype]
    for name, error in found.items():
        if not error <= limit:
            raise Wrong(f"{name} is off by {error:.1e} of its largest value; the limit for {case.dtype} is {limit:.0e}")
    y = outputs.get("y")
    if y is not None and (y.dtype, y.shape) != (x.dtype, x.shape):
        raise Wrong(f"y is {y.dtype} of shape {tuple(y.shape)}, x {x.dtype} of shape {tuple(x.shape)}")
    return found


def _errors_by_definition(prepared: Prepared, x: Tensor, grad_output: Tensor, outputs: dict[str, Tensor], passes: str):
    """What computes another function is compared with its definition in float64; torch's own operators are one."""
    params = tuple(p.detach().double().requires_grad_() for p in prepared.params)
    wide = Prepared(prepared.definition or prepared.forward, params)
    true = action(wide, x.detach().double().requires_grad_(), grad_output.double(), passes)()
    worst = oracle.Worst()
    for name, t in true.items():
        worst.note(name, outputs[name], t.detach())
    return worst.relative()


def saved_bytes(prepared: Prepared, x: Tensor) -> int:
    """Bytes that the forward pass keeps for the backward, each storage once."""
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = prepared.forward(x, *prepared.params)
    del y
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def launches(entry: Entry, run: Callable) -> int | None:
    """Calls of operators, of which a GPU has a kernel or more each; compiled code starts its own unseen."""
    if entry.is_compiled:
        return None
    with OperatorCount() as found:
        run()
    return found.count


class OperatorCount(TorchDispatchMode):
    """Counts calls of operators that compute: neither views nor allocations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (func.is_view or func.overloadpacket.__name__ in NO_WORK)
        return func(*args, **(kwargs or {}))


NO_WORK = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}


def copy_action(x: Tensor) -> Callable[[], Tensor]:
    """A copy into memory that exists already: the bandwidth that is to be had at this size."""
    source, target = x.detach(), torch.empty_like(x, requires_grad=False)
    return functools.partial(target.copy_, source)


def product_action(case: Case) -> Callable[[], Tensor]:
    """A product of matrices, in what the case is computed in: the rate of multiply-adds that is to be had."""
    dtype = torch.float64 if case.dtype == "fp64" else torch.float32
    a, b, out = (torch.ones(PRODUCT_SIDE, PRODUCT_SIDE, dtype=dtype, device=case.device) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


class Clock:
    """Seconds a call, of a block of calls, with the case's number of threads; on a GPU until the last has ended."""

    by_host = True  # whether another process that holds the cores shows

    def __init__(self, run: Callable, case: Case) -> None:
        self.case = case
        self.timer = Timer("run()", globals={"run": run}, num_threads=case.threads)
        once = min(self.timer.timeit(1).median for _ in range(2))
        self.calls = max(1, min(10_000, round(BLOCK_SECONDS / once)))

    def seconds(self) -> float:
        return self.timer.timeit(self.calls).median


class Replays(Clock):
    """Seconds of a GPU a call, of a block of calls that were captured in a graph: the host starts them all at once."""

    by_host = False

    def __init__(self, run: Callable, case: Case, turns: int) -> None:
        super().__init__(run, case)
        self.calls = turns * math.ceil(self.calls / turns)  # each replay begins with the same tensors
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
            for _ in range(self.calls):
                run()

    def seconds(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.graph.replay()  # meanwhile the host gets ahead
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / self.calls


def times(unit: Unit, tick: Callable[[str], None]) -> list[dict]:
    """Checks the entries and measures them in rounds: a block of each, then of each again, …

    So whatever else the machine does meets all variants alike, and a ratio is taken within a round.

    Returns:
        A record for every entry, and for every case one of each of `cases.ROOFS`, of which a GPU has the copy alone.
    """
    torch._dynamo.reset()  # what was compiled for other units is not needed any more
    # Autograd runs a backward on the stream of its forward, and a graph captures one stream, not the default one.
    case = unit.entries[0].case
    stream = torch.cuda.stream(torch.cuda.Stream(case.device)) if unit.of_kernels else contextlib.nullcontext()
    records: list[dict] = []
    clocks: list[Clock | None] = []
    tensors: dict[Case, list[tuple[Tensor, Tensor]]] = {}
    with stream:
        for entry in unit.entries:
            case = entry.case
            enter(case)
            tick(entry.variant)
            turns = tensors_in_turn(case) if unit.of_kernels else 1
            clock = functools.partial(Replays, turns=turns) if unit.of_kernels else Clock
            if case not in tensors:
                tensors[case] = [inputs(case, seed) for seed in range(turns)]
                roofs = {"copy": in_turn([copy_action(x) for x, _ in tensors[case]])}
                if not case.on_gpu:
                    roofs["product"] = product_action(case)
                for roof, run in roofs.items():
                    records.append({**entry.as_json(), "variant": roof})
                    clocks.append(clock(run, case))
            record, timed = _checked(entry, tensors[case], clock)
            records.append({**entry.as_json(), **record})
            clocks.append(timed)
        interleave(records, clocks, unit.seconds, tick)
    return records


def run_once(unit: Unit) -> None:
    """Each entry's call, once, for a profiler to look at."""
    for entry in unit.entries:
        action(variants.prepare(entry.variant, entry.case), *inputs(entry.case), entry.case.passes)()


def _checked(entry: Entry, pairs: list[tuple[Tensor, Tensor]], clock: Callable) -> tuple[dict, Clock | None]:
    """What is to be said of an entry before it is timed, and a clock if it is right."""
    case = entry.case
    x, grad_output = pairs[0]
    start = perf_counter()
    try:
        with warnings.catch_warnings(), compiling(entry):
            warnings.simplefilter("ignore")  # the compilers' and the peers', about themselves
            prepared = variants.prepare(entry.variant, case)
            run = in_turn([action(prepared, *pair, case.passes) for pair in pairs])
            outputs = run()
        record = {"first_call_seconds": perf_counter() - start}
        record["errors"] = check(entry, prepared, x, grad_output, outputs)
        del outputs
        if case.passes != "forward":
            record["saved_bytes"] = saved_bytes(prepared, x)
        record["launches"] = launches(entry, run)
        return record, clock(run, case)
    except Unavailable as reason:
        return {"skipped": str(reason)}, None
    except Wrong as reason:
        return {"refused": str(reason)}, None
    except Exception as reason:  # torch's, its compilers' and the peers': one variant that fails must not end the run
        return {"skipped": first_line(reason)}, None


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def enter(case: Case) -> None:
    """Puts the process into the state that the case asks for."""
    torch.set_num_threads(case.threads)
    environment.return_freed_memory() if case.memory == "fresh" else environment.keep_freed_memory()


def interleave(
    records: list[dict], clocks: Sequence[Clock | None], seconds: float, tick: Callable[[str], None]
) -> None:
    """Adds to each record that has a clock the seconds of a call, round by round, and how disturbed each block was."""
    timed = [(record, clock) for record, clock in zip(records, clocks, strict=True) if clock is not None]
    for record, clock in timed:
        record.update(calls=clock.calls, seconds=[], waited=[])
    deadline = perf_counter() + seconds
    for round_ in _rounds(deadline, deadline + 2 * seconds):
        for i in range(len(timed)):  # a different one begins each time, so that none always follows the same
            record, clock = timed[(i + round_) % len(timed)]
            tick(record["variant"])
            enter(clock.case)
            start, waited = perf_counter(), waiting_seconds()
            record["seconds"].append(clock.seconds())
            record["waited"].append(clock.by_host * (waiting_seconds() - waited) / (perf_counter() - start))


def _rounds(deadline: float, at_last: float) -> Iterator[int]:
    """Until the deadline, but LEAST_ROUNDS; after `at_last`, on a machine that has other work, three will do."""
    for round_ in range(MOST_ROUNDS):
        now = perf_counter()
        if (round_ >= LEAST_ROUNDS and now > deadline) or (round_ >= 3 and now > at_last):
            return
        yield round_


def waiting_seconds() -> float:
    """How long this process's threads have been ready to run while something else held the core.

    Known to the nanosecond, on Linux; elsewhere 0, and every block counts.
    """
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):  # a thread may end meanwhile
            total += int(path.read_text().split()[1])
    return total / 1e9
