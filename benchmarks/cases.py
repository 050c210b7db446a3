"""What is measured: the cases, and the presets that put them together."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

import torch

from slaf_ext import bases
from slaf_ext.bases import Basis

from . import CORES

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARINGS = ("layer", "group", "channel", "feature")
LAYOUTS = ("contiguous", "channels_last")
PASSES = ("both", "forward", "backward")
JACOBI = bases.jacobi(0.5, 1.0)  # all three terms of its recurrence are non-zero and change with k

THREADS = min(2, CORES)  # the bars are written for two threads
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0

ROOFS = ("copy", "product")  # measured beside every case: memory bandwidth, and multiply-adds of a matrix product
PRODUCT_SIDE = 512
COMPILED = ("compiled horner", "compiled clenshaw", "autotuned horner", "autotuned clenshaw", "compiled naive")
EAGER = ("naive", "horner", "clenshaw")
NORMALIZING = ("normalized", "batchnorm + relu")
KAN = ("kan", "kan product", "chebykan")


@dataclass(frozen=True)
class Case:
    """One input and one thing to do with it. The channel is x's dimension 1, the feature its last one."""

    shape: tuple[int, ...] = (2**20,)
    degree: int = 8
    basis: str = "chebyshev"
    sharing: str = (
        "layer"  # what shares a polynomial: the layer, each of 8 groups of channels, each channel or feature;
    )
    # or "edge": none does, in a layer of as many outputs
    layout: str = "contiguous"
    dtype: str = "fp32"
    passes: str = "both"  # or "forward", without a graph, or "backward" alone
    threads: int = THREADS
    device: str = "cpu"
    memory: str = "kept"  # malloc keeps freed memory for the next call; "fresh": it returns it to the system

    @property
    def recurrence(self) -> Basis:
        return JACOBI if self.basis == JACOBI.name else bases.get(self.basis)

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
        """slaf's `dim`."""
        return {"layer": 0, "feature": -1}.get(self.sharing, 1)

    @property
    def groups(self) -> int:
        return {"layer": 1, "group": 8}.get(self.sharing) or self.shape[self.dim]


@dataclass(frozen=True)
class Entry:
    """A variant (variants.py) on a case, or in a network (networks.py; "compiled …" compiles the whole network)."""

    variant: str
    case: Case
    network: str | None = None

    @property
    def is_compiled(self) -> bool:
        return any(name.startswith(("compiled", "autotuned")) for name in (self.variant, self.network or ""))

    @property
    def moved_bytes(self) -> int:
        """The least memory traffic: x and y forward; x, grad_output and dx backward.

        Statistics over x need a second sweep over the inputs of each pass.
        """
        if self.variant == "copy":
            return 2 * self.case.nbytes
        forward, backward = (3, 5) if self.variant in NORMALIZING else (2, 3)
        passes = {"forward": forward, "backward": backward, "both": forward + backward}
        return passes[self.case.passes] * self.case.nbytes

    @property
    def least_multiply_adds(self) -> int:
        """Of a polynomial, for each element and degree: one forward, and two backward (the basis, its sum with D a).

        With a polynomial on every edge, as many for each output: one matrix product forward, and two backward.
        """
        if self.variant not in ("fused", *EAGER, *COMPILED, *KAN):
            return 0
        outputs = self.case.shape[-1] if self.variant in KAN else 1
        return {"forward": 1, "backward": 2, "both": 3}[self.case.passes] * self.case.degree * self.case.numel * outputs

    def as_json(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_json(data: dict) -> Entry:
        case = {**data["case"], "shape": tuple(data["case"]["shape"])}
        return Entry(data["variant"], Case(**case), data.get("network"))


@dataclass(frozen=True)
class Unit:
    """Entries measured in the same rounds, so that they can be compared."""

    suite: str
    kind: str  # "times", "memory" or "network"
    entries: tuple[Entry, ...]
    seconds: float  # how long to repeat rounds, beyond a minimum number of them

    @property
    def expected_seconds(self) -> float:
        """A rough forecast: rounds, checks and compilation, on two idle cores or an H100."""
        case, compiled = self.entries[0].case, sum(entry.is_compiled for entry in self.entries)
        if case.on_gpu:
            return self.seconds + 0.2 * len(self.entries) + 7 * compiled
        each, graphs = (5.0, 4) if self.kind == "network" else (0.4 + 0.1 * case.numel / 2**20, 1)
        return self.seconds + each * len(self.entries) + (6 + 0.4 * case.degree) * graphs * compiled


def times(suite: str, case: Case, variants: Iterable[str], seconds: float) -> Unit:
    return Unit(suite, "times", tuple(Entry(v, case) for v in dict.fromkeys(variants)), seconds)


def headline(*, full: bool = False) -> Iterator[Unit]:
    """The cases that have bars."""
    seconds = 15 if full else 3
    for degree in (3, 8, 16):
        compiled = COMPILED[:4] if full else COMPILED[: 1 + (degree < 16)]  # to limit compile time
        variants = ["relu", "gelu", "prelu", "fused", *compiled, *EAGER]
        yield times("headline", Case(degree=degree), variants, seconds)
    yield times("headline", Case(shape=(2**24,)), ["relu", "gelu", "fused"], seconds)
    few = ["relu", "gelu", "prelu", "fused", "horner", *(("naive", *COMPILED[:2]) if full else ())]
    images = [Case(shape=(32, 64, 56, 56), sharing="channel", layout=layout) for layout in LAYOUTS]
    for case in (Case(memory="fresh"), *images, Case(shape=(4096, 768), sharing="feature"), Case(shape=(4096,))):
        yield times("headline", case, few, seconds)
    for case in images:
        yield times("headline", replace(case, degree=5), ["relu", *NORMALIZING], seconds)


def memory(*, full: bool = False) -> Iterator[Unit]:
    """Peak memory and what is saved for backward."""
    for degree in (3, 8, 16):
        case = Case(shape=(2**24,), degree=degree)
        variants = ("relu", "fused", "naive", *((*EAGER[1:], *COMPILED[:2]) if full and degree == 8 else ()))
        yield Unit("memory", "memory", tuple(Entry(v, case) for v in variants), 0)


def networks() -> Iterator[Unit]:
    """A training step of three networks."""
    for network, batch in (("mlp", 256), ("resnet", 16), ("vit", 16)):
        case = Case(shape=(batch,), degree=5)
        entries = tuple(Entry(v, case, network) for v in ("relu", "gelu", "fused", "compiled horner", "naive"))
        yield Unit("networks", "network", entries, 40)


def kan() -> Iterator[Unit]:
    """KANLinear, its matrix products alone, and ChebyKAN."""
    for shape, degree in (((4096, 256), 3), ((4096, 256), 5), ((4096, 256), 8), ((1024, 1024), 3)):
        case = Case(shape=shape, degree=degree, sharing="edge")
        yield times("kan", case, KAN, 10)
        yield Unit("kan", "memory", tuple(Entry(v, case) for v in (KAN[0], KAN[2])), 0)


def sizes() -> Iterator[Unit]:
    """Time against the number of elements."""
    for log in range(10, 27, 2):
        if log <= 20 or 24 * 4 * 2**log < MEMORY:  # eager forms hold 24 tensors
            eager = EAGER if log <= 24 else ()
            yield times("sizes", Case(shape=(2**log,)), ["relu", "fused", "compiled horner", *eager], 6)


def degrees() -> Iterator[Unit]:
    """Time against the degree."""
    for degree in (0, 1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32):
        rivals = ["horner", "clenshaw"] + ["naive"] * (degree <= 16)
        rivals += ["compiled horner"] * (degree in (1, 2, 3, 4, 8, 16, 32))  # to limit compile time
        yield times("degrees", Case(degree=degree), ["relu", "fused", *rivals], 6)


def threads() -> Iterator[Unit]:
    """Time against the number of threads."""
    counts = sorted({1, *(2**i for i in range(1, 10) if 2**i <= CORES), CORES})
    for count, log in itertools.product(counts, (20, 24)):
        yield times("threads", Case(shape=(2**log,), threads=count), ["relu", "fused", "horner"], 6)


def every_basis() -> Iterator[Unit]:
    """Every registered basis."""
    for name in bases.names():
        yield times("bases", Case(basis=name), ["relu", "fused", "clenshaw", "naive"], 4)


def forms() -> Iterator[Unit]:
    """Passes, dtypes, sharing and layout."""
    image = Case(shape=(32, 64, 56, 56))
    flat = [Case(dtype=dtype, passes=passes) for dtype in DTYPES for passes in PASSES]
    images = [replace(image, sharing=sharing, layout=layout) for sharing in SHARINGS[:3] for layout in LAYOUTS]
    for case in (*flat, *images):
        yield times("forms", case, ["relu", "fused", "horner"], 4)


# The GPU's bars: cases of 2^26 elements, their degrees, and the least share of a copy's bandwidth, of fp32 forward and
# backward and of 16 bits. The normalised form may take 1.15 and 1.35 times as long as a copy of what it moves.
_ROW, _ROWS = Case(shape=(2**26,), device="cuda"), Case(shape=(16384, 4096), sharing="feature", device="cuda")
_IMAGE = Case(shape=(334, 64, 56, 56), sharing="channel", device="cuda")
_NHWC = replace(_IMAGE, layout="channels_last")
_DENSE, _APART, _GENERAL = (0.96, 0.96, 0.94, 0.95), (0.93, 0.91, 0.86, 0.83), (0.95, 0.95, 0.90, 0.90)
_STATISTICS = (1 / 1.15, 1 / 1.15, 1 / 1.35, 1 / 1.35)
_FLOOR: tuple[tuple[str, Case, tuple[int, ...], tuple[float, ...]], ...] = (
    ("one row", _ROW, (8, 5), _DENSE),
    ("one row", _ROW, (16,), (0.95, 0.95, 0.76, 0.76)),
    ("per channel", _IMAGE, (8, 5), _DENSE),
    ("channels last", _NHWC, (8, 5), _APART),
    ("per feature", _ROWS, (8, 5), _APART),
    ("legendre", replace(_ROW, basis="legendre"), (5,), _GENERAL),
    ("jacobi", replace(_ROW, basis=JACOBI.name), (5,), _GENERAL),
    ("normalised, per channel", _IMAGE, (5,), _STATISTICS),
    ("normalised, channels last", _NHWC, (5,), _STATISTICS),
)


def floor() -> Iterator[tuple[str, Entry, float]]:
    """Each of these cases in each dtype and pass, with its name and its least share."""
    for name, case, degrees, shares in _FLOOR:
        variant = "normalized" if shares is _STATISTICS else "fused"
        dtypes = ("fp32", "bf16", "fp16")[: 2 if shares is _STATISTICS else 3]
        for degree, dtype, passes in itertools.product(degrees, dtypes, PASSES[1:]):
            share = shares[2 * (dtype != "fp32") + (passes == "backward")]
            yield name, Entry(variant, replace(case, degree=degree, dtype=dtype, passes=passes)), share


def gpu() -> Iterator[Unit]:
    """Kernels on a GPU, and the cost of a call."""
    of: dict[Case, list[str]] = {}
    for _, entry, _ in floor():
        of.setdefault(entry.case, []).append(entry.variant)
    for case, variants in of.items():
        yield times("gpu", case, variants, 0.25)
    yield times("calls", replace(_ROW, shape=(4096,)), ["relu", "prelu", "python function", "fused"], 1)
    for dtype, passes in itertools.product(("fp32", "bf16"), ("forward", "both")):
        naive = ["compiled naive"] if (dtype, passes) == ("fp32", "both") else []  # bf16 cannot hold its powers
        variants = ["relu", "gelu", "prelu", "fused", "compiled clenshaw", *naive]
        yield times("rivals", replace(_ROW, dtype=dtype, passes=passes), variants, 0.5)


def gpu_networks() -> Iterator[Unit]:
    """A training step of two blocks in bf16, also compiled."""
    for network, batch, yardstick in (("mlp block", 16384, "gelu"), ("resnet block", 256, "relu")):
        case = Case(shape=(batch,), degree=5, dtype="bf16", device="cuda")
        for name, variants in ((network, ("relu", "gelu", "fused")), (f"compiled {network}", (yardstick, "fused"))):
            yield Unit("networks", "network", tuple(Entry(v, case, name) for v in variants), 2)


def quick() -> Iterator[Unit]:
    """Headline and memory, each shorter."""
    return itertools.chain(headline(), memory())


def full() -> Iterator[Unit]:
    """All of the CPU's presets."""
    parts = networks(), kan(), sizes(), degrees(), threads(), every_basis(), forms()
    return itertools.chain(headline(full=True), memory(full=True), *parts)


_ALL = quick, full, headline, memory, networks, kan, sizes, degrees, threads, every_basis, forms, gpu, gpu_networks
PRESETS = {{"every_basis": "bases"}.get(f.__name__, f.__name__.replace("_", "-")): f for f in _ALL}


def select(preset: str, device: str | None = None, wanted: dict[str, list] | None = None) -> list[Unit]:
    """A preset's units on a device, with the entries that have one of the wanted values for each filter."""

    def keep(entry: Entry) -> bool:
        own = {**vars(entry.case), "numel": entry.case.numel, "variant": entry.variant}
        return all(own[name] in values for name, values in (wanted or {}).items())

    chosen = []
    for unit in PRESETS[preset]():
        kept = filter(keep, unit.entries)
        entries = tuple(replace(e, case=replace(e.case, device=device or e.case.device)) for e in kept)
        chosen += [replace(unit, entries=entries)] if entries else []
    return chosen
