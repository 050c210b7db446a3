"""What is measured: cases, and the suites that put them together."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace

import torch

from slaf_ext import bases
from slaf_ext.bases import Basis

from . import CORES

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARINGS = ("layer", "group", "channel", "feature")
LAYOUTS = ("contiguous", "channels_last")
PASSES = ("both", "forward", "backward")
JACOBI = bases.jacobi(0.5, 1.0)  # its recurrence has all three terms, and differs from row to row

# The bars are written for two threads, so that is what is measured wherever there are two cores.
THREADS = min(2, CORES)
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


@dataclass(frozen=True)
class Case:
    """One input and one thing to do with it.

    Attributes:
        shape: of x; the channel is dimension 1, the feature the last one.
        sharing: which elements share a polynomial: all of the "layer", 8 "group"s of channels, each "channel",
            or each "feature".
        passes: "forward" alone without a graph, "backward" alone, or "both".
        memory: whether what is freed is "kept" for the next call or comes "fresh" from the system, see environment.py.
    """

    shape: tuple[int, ...] = (2**20,)
    degree: int = 8
    basis: str = "chebyshev"
    sharing: str = "layer"
    layout: str = "contiguous"
    dtype: str = "fp32"
    passes: str = "both"
    threads: int = THREADS
    device: str = "cpu"
    memory: str = "kept"

    @property
    def recurrence(self) -> str | Basis:
        """The basis as slaf takes it: by its name, if it is registered."""
        return JACOBI if self.basis == JACOBI.name else self.basis

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPES[self.dtype].itemsize

    @property
    def dim(self) -> int:
        """The dimension along which the coefficients' rows lie, slaf's `dim`."""
        return {"layer": 0, "feature": -1}.get(self.sharing, 1)

    @property
    def groups(self) -> int:
        return {"layer": 1, "group": 8}.get(self.sharing) or self.shape[self.dim]


@dataclass(frozen=True)
class Entry:
    """A variant (see variants.py, networks.py) on a case. `network` names a network, or "compiled …", all of one."""

    variant: str
    case: Case
    network: str | None = None

    @property
    def is_compiled(self) -> bool:
        return any(name.startswith(("compiled", "autotuned")) for name in (self.variant, self.network or ""))

    @property
    def moved_bytes(self) -> int:
        """The least that must move: x and y forward; x, grad_output and dx backward.

        What takes means over x reads it twice forward, and x and grad_output twice backward. clone's backward hands
        grad_output on as it is. A copy is one whatever the pass.
        """
        if self.variant == "copy":
            return 2 * self.case.nbytes
        forward, backward = {"clone": (2, 0)}.get(self.variant, (3, 5) if self.variant in NORMALIZING else (2, 3))
        of = {"forward": forward, "backward": backward, "both": forward + backward}
        return of[self.case.passes] * self.case.nbytes

    @property
    def least_multiply_adds(self) -> int:
        """Of a polynomial: one for each degree forward, and two backward, for the basis and for its sum with D a."""
        each = {"forward": 1, "backward": 2, "both": 3}[self.case.passes]
        return each * self.case.degree * self.case.numel

    def as_json(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_json(data: dict) -> Entry:
        case = {**data["case"], "shape": tuple(data["case"]["shape"])}
        return Entry(data["variant"], Case(**case), data.get("network"))


@dataclass(frozen=True)
class Unit:
    """Entries measured in the same rounds, so that they can be compared; the step by which a run resumes.

    Attributes:
        kind: "times", "memory" or "network".
        seconds: how long rounds go on; every unit gets a least number of rounds, whatever it takes. None of "memory".
    """

    suite: str
    kind: str
    entries: tuple[Entry, ...] = field(repr=False)
    seconds: float

    @property
    def key(self) -> tuple:
        return self.suite, self.kind, self.entries

    @property
    def of_kernels(self) -> bool:
        """Whether kernels alone are timed, on a GPU, and not calls as a user makes them, the host's part included."""
        return self.entries[0].case.on_gpu and self.suite != "calls"

    @property
    def expected_seconds(self) -> float:
        """How long it takes with nothing compiled before, roughly: rounds, checks, compilers. On the CPU: two cores."""
        if self.kind == "memory":
            return 1.0 * len(self.entries)
        case = self.entries[0].case
        each = 0.2 if case.on_gpu else 4.0 if self.kind == "network" else 0.2 + 0.2 * case.numel / 2**20
        return self.seconds + sum(each + _compile_seconds(entry) for entry in self.entries)


def _compile_seconds(entry: Entry) -> float:
    """What was seen, as a function of the degree. A network has a graph for every shape of its activations."""
    if not entry.is_compiled or entry.case.on_gpu:
        return 7 * entry.is_compiled  # on a GPU: a guess that was not measured yet
    degree = entry.case.degree
    once = 5 + (0.12 * degree**2 if entry.variant.endswith("clenshaw") else 0.4 * degree)
    return once * (1 if entry.network is None else 4)


# Measured beside every case: what memory gives, and what arithmetic gives, by a product of matrices this wide.
ROOFS = ("copy", "product")
PRODUCT_SIDE = 512
YARDSTICKS = ("clone", "relu")
EAGER = ("naive", "stacked", "horner", "clenshaw")
COMPILED = ("compiled horner", "compiled clenshaw", "autotuned horner", "autotuned clenshaw", "compiled naive")
NORMALIZING = ("normalized", "batchnorm + relu")
PEERS = ("torch_activation", "rational_activations", "liger_kernel")  # the last takes rows alone
BATCHES = {"mlp": 256, "resnet": 16, "vit": 16}
NETWORKS = tuple(BATCHES)


def times(suite: str, case: Case, variants: Iterable[str], seconds: float) -> Unit:
    return Unit(suite, "times", tuple(Entry(v, case) for v in dict.fromkeys(variants)), seconds)


def headline(device: str, *, full: bool = False) -> Iterator[Unit]:
    """The cases that have bars."""
    seconds = 15 if full else 4
    case = Case(device=device)
    for degree in (3, 8, 16):
        at = replace(case, degree=degree)
        compiled = COMPILED[:4] if full else COMPILED[:2]
        if degree == 16 and not full:
            compiled = COMPILED[:1]  # Clenshaw is half a minute in the compiler, and not the faster one
        eager = EAGER if full else ("naive", "horner", "clenshaw")  # the stacked form would take half of each round
        variants = [*YARDSTICKS, "gelu", "prelu", "fused", *compiled, *eager, *(PEERS[:2] if full else ())]
        unit = times("headline", at, variants, seconds)
        half = tuple(Entry(v, replace(at, dtype="bf16")) for v in ("relu", "fused"))
        yield replace(unit, entries=unit.entries + half)
    few = [*YARDSTICKS, "prelu", "fused", "horner", *(("naive", *COMPILED[:2]) if full else ())]
    yield times("headline", replace(case, memory="fresh"), few, seconds)
    image = replace(case, shape=(32, 64, 56, 56), sharing="channel")
    for layout in LAYOUTS:
        yield times("headline", replace(image, layout=layout), few, seconds)
    yield times(
        "headline", replace(case, shape=(4096, 768), sharing="feature"), [*few, *(PEERS[2:] if full else ())], seconds
    )
    yield times("headline", replace(case, shape=(4096,)), [*few, "naive"], seconds)
    for layout in LAYOUTS:
        at = replace(image, degree=5, layout=layout)
        yield times("headline", at, [*YARDSTICKS, *NORMALIZING], seconds)


def memory(device: str, *, full: bool = False) -> Iterator[Unit]:
    """Peak memory and what is saved for backward."""
    for degree in (3, 8, 16):
        case = Case(shape=(2**24,), degree=degree, device=device)
        variants = ("relu", "fused", "naive", *((*EAGER[1:], *COMPILED[:2]) if full and degree == 8 else ()))
        yield Unit("memory", "memory", tuple(Entry(v, case) for v in variants), 0)


def sizes(device: str) -> Iterator[Unit]:
    """Time against the number of elements."""
    for log in (log for log in range(10, 27, 2) if log <= 20 or 24 * 4 * 2**log < MEMORY):  # checks hold 24 tensors
        yield times("sizes", Case(shape=(2**log,), device=device), [*YARDSTICKS, "fused", "compiled horner"]
                    + (["naive", "horner", "clenshaw"] if log <= 24 else []), 6)  # fmt: skip


def degrees(device: str) -> Iterator[Unit]:
    """Time against the degree."""
    for degree in (0, 1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32):
        variants = [*YARDSTICKS, "fused", "horner", "clenshaw"] + (["naive"] if degree <= 16 else [])
        # The compilers' time grows with the square of the degree.
        compiled = ["compiled horner"] if degree in (1, 2, 3, 4, 8, 16, 32) else []
        yield times("degrees", Case(degree=degree, device=device), variants + compiled, 6)


def channels(device: str) -> Iterator[Unit]:
    """Time against channels, a polynomial each."""
    for count in (1, 4, 16, 64, 256, 1024, 4096):
        for layout in LAYOUTS:
            side = 2 ** ((20 - count.bit_length() + 1) // 2)
            shape = (2**20 // (count * side * side), count, side, side)
            case = Case(shape=shape, sharing="channel", layout=layout, device=device)
            yield times("channels", case, [*YARDSTICKS, "fused", "horner"], 4)


def threads(device: str) -> Iterator[Unit]:
    """Time against the number of threads."""
    counts = sorted({1, *(2**i for i in range(1, 10) if 2**i <= CORES), CORES})
    for count in counts if device == "cpu" else ():
        for log in (20, 24):
            variants = [*YARDSTICKS, "fused", "horner"]
            yield times("threads", Case(shape=(2**log,), threads=count), variants, 6)


def every_basis(device: str) -> Iterator[Unit]:
    """Every basis that is registered."""
    for name in bases.names():
        yield times("bases", Case(basis=name, device=device), ["relu", "fused", "clenshaw", "naive"], 4)


def forms(device: str) -> Iterator[Unit]:
    """Passes, dtypes, sharing and layout."""
    image = Case(shape=(32, 64, 56, 56), device=device)
    for dtype in DTYPES:
        for passes in PASSES:
            case = Case(dtype=dtype, passes=passes, device=device)
            yield times("forms", case, [*YARDSTICKS, "fused", "horner"], 4)
    for sharing in SHARINGS[:3]:
        for layout in LAYOUTS:
            case = replace(image, sharing=sharing, layout=layout)
            yield times("forms", case, [*YARDSTICKS, "fused", "horner"], 4)


def networks(device: str) -> Iterator[Unit]:
    """A step of training, and its peak memory."""
    for network in NETWORKS:
        case = Case(shape=(BATCHES[network],), degree=5, device=device)
        entries = tuple(Entry(v, case, network) for v in ("relu", "gelu", "fused", "compiled horner", "naive"))
        yield Unit("networks", "network", entries, 40)
        yield Unit("networks", "memory", entries, 0)


# What a GPU is held to (bars.py): cases of 2^26 elements by their names, and degrees.
_ROW, _ROWS = Case(shape=(2**26,)), Case(shape=(16384, 4096), sharing="feature")
_IMAGE = Case(shape=(334, 64, 56, 56), sharing="channel")
_LAST = replace(_IMAGE, layout="channels_last")
FLOOR: dict[str, tuple[Case, tuple[int, ...]]] = {
    "one row": (_ROW, (8, 5, 16)),
    "per channel": (_IMAGE, (8, 5)),
    "channels last": (_LAST, (8, 5)),
    "per feature": (_ROWS, (8, 5)),
    "legendre": (replace(_ROW, basis="legendre"), (5,)),
    "jacobi": (replace(_ROW, basis=JACOBI.name), (5,)),
    "normalised, per channel": (_IMAGE, (5,)),
    "normalised, channels last": (_LAST, (5,)),
}


def floor() -> Iterator[tuple[str, Entry]]:
    """Each case of FLOOR in each dtype and pass, by its name."""
    for name, (case, degrees) in FLOOR.items():
        variant, dtypes = "fused", ("fp32", "bf16", "fp16")
        if name.startswith("normalised"):
            variant, dtypes = NORMALIZING[0], dtypes[:2]
        for degree, dtype, passes in itertools.product(degrees, dtypes, PASSES[1:]):
            yield name, Entry(variant, replace(case, degree=degree, dtype=dtype, passes=passes))


def gpu(device: str) -> Iterator[Unit]:
    """Kernels on a GPU, and the cost of a call."""
    of: dict[Case, list[str]] = {}
    for _, entry in floor():
        of.setdefault(replace(entry.case, device=device), []).append(entry.variant)
    for case, variants in of.items():
        yield times("gpu", case, variants, 0.25)
    yield times("calls", Case(shape=(4096,), device=device), ["relu", "prelu", "python function", "fused"], 1)
    for dtype, passes in itertools.product(("fp32", "bf16"), ("forward", "both")):
        naive = ["compiled naive"] if (dtype, passes) == ("fp32", "both") else []  # of powers, which bf16 cannot hold
        variants = ["relu", "gelu", "prelu", "fused", "compiled clenshaw", *naive]
        yield times("rivals", replace(_ROW, dtype=dtype, passes=passes, device=device), variants, 0.5)


def gpu_networks(device: str) -> Iterator[Unit]:
    """A step of two blocks in bf16, also compiled."""
    for network, batch, yardstick in (("mlp block", 16384, "gelu"), ("resnet block", 256, "relu")):
        case = Case(shape=(batch,), degree=5, dtype="bf16", device=device)
        for name, variants in ((network, ("relu", "gelu", "fused")), (f"compiled {network}", (yardstick, "fused"))):
            yield Unit("networks", "network", tuple(Entry(v, case, name) for v in variants), 2)


def full(device: str) -> Iterator[Unit]:
    """Everything below."""
    yield from headline(device, full=True)
    yield from memory(device, full=True)
    for suite in (networks, sizes, degrees, channels, threads, every_basis, forms):
        yield from suite(device)


def quick(device: str) -> Iterator[Unit]:
    """Headline and memory, each shorter."""
    yield from headline(device)
    yield from memory(device)


PRESETS = {
    "quick": quick,
    "full": full,
    "headline": headline,
    "memory": memory,
    "sizes": sizes,
    "degrees": degrees,
    "channels": channels,
    "threads": threads,
    "bases": every_basis,
    "forms": forms,
    "networks": networks,
    "gpu": gpu,
    "gpu-networks": gpu_networks,
}
ON_GPU = ("gpu", "gpu-networks")  # the others are measured on the CPU, unless --device says otherwise


# What a unit's entries can be chosen by.
FILTERS: dict[str, Callable[[Entry], object]] = {
    "dtype": lambda entry: entry.case.dtype,
    "basis": lambda entry: entry.case.basis,
    "degree": lambda entry: entry.case.degree,
    "sharing": lambda entry: entry.case.sharing,
    "layout": lambda entry: entry.case.layout,
    "size": lambda entry: entry.case.numel,
    "pass": lambda entry: entry.case.passes,
    "variant": lambda entry: entry.variant,
}


def select(units: Iterable[Unit], wanted: dict[str, list]) -> list[Unit]:
    """What is left of the units by the filters: each a name of FILTERS, to the values to keep."""
    chosen = []
    for unit in units:
        entries = tuple(e for e in unit.entries if all(FILTERS[name](e) in kept for name, kept in wanted.items()))
        if entries:
            chosen.append(replace(unit, entries=entries))
    return chosen
