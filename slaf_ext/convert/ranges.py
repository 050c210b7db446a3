"""The ranges of inputs and outputs of every SLAF on data, and what happens where a polynomial is left to itself."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import check_model
from ..functional import basis_values
from ..kan import KANLinear
from ..nn import SLAF, coefficient_rows
from .calibration import Batches
from .discovery import copy_of, walk, why_not_polynomial
from .tracing import NOT_POLYNOMIAL, FunctionCalls

GROWTH = 10.0
PAIRS = ("domain", "inputs", "outputs")


@dataclass(frozen=True)
class Range:
    """One SLAF on data.

    Attributes:
        name: of the module.
        domain: the range that it was made for: its domain, or without one the basis's window.
        inputs, outputs: the smallest and the largest.
        elements: how many inputs there were.
        outside: how many of them were outside the domain.
        largest: max |p| over the domain, of all groups.
        blown: how many outputs were larger than ten times that, or not finite.
    """

    name: str
    domain: tuple[float, float]
    inputs: tuple[float, float]
    outputs: tuple[float, float]
    elements: int
    outside: int
    largest: float
    blown: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinities: those are strings."""
        pairs = {key: [*map(_plain, getattr(self, key))] for key in PAIRS}
        return {**asdict(self), **pairs, "largest": _plain(self.largest)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Range:
        pairs = {key: tuple(map(float, fields[key])) for key in PAIRS}
        return cls(**{**fields, **pairs, "largest": float(fields["largest"])})


def _plain(t: float) -> float | str:
    return t if math.isfinite(t) else str(t)


@dataclass
class RangeReport:
    """What :func:`check` found. ``str(report)`` is a table.

    Attributes:
        layers: a :class:`Range` for each SLAF that ran, in order of execution.
        not_polynomial: (what, why) for everything else in the network that is known to be no polynomial.
        data: the name of the argument that the data came by.
    """

    layers: list[Range] = field(default_factory=list)
    not_polynomial: list[tuple[str, str]] = field(default_factory=list)
    data: str = "data"

    @property
    def outside(self) -> float:
        """The largest share of a SLAF's inputs that are outside its domain."""
        return max((layer.outside / layer.elements for layer in self.layers), default=0.0)

    @property
    def blows_up(self) -> list[str]:
        """The names of the SLAFs whose outputs grew beyond ten times the largest on the domain, the first one first."""
        return [layer.name for layer in self.layers if layer.blown]

    def table(self) -> str:
        """A row for each SLAF, and what blows up."""
        head = f"{'layer':<11}{'domain':>15} {'inputs':>21} {'outside':>8} {'outputs':>22}"
        lines = [head, "-" * len(head)]
        for layer in self.layers:
            name = layer.name if len(layer.name) <= 10 else "…" + layer.name[-9:]
            domain, inputs, outputs = (f"{lo:.3g} … {hi:.3g}" for lo, hi in (layer.domain, layer.inputs, layer.outputs))
            percent = 100 * layer.outside / layer.elements
            share = "<0.01 %" if 0 < percent < 0.01 else f"{percent:.2f} %"
            lines.append(f"{name:<11}{domain:>15} {inputs:>21} {share:>8} {outputs:>22}")
        blown = [layer for layer in self.layers if layer.blown]
        if not blown:
            lines.append(f"no output is beyond {GROWTH:.0f} times the largest in its domain")
        for layer in blown[:1]:
            lines += [
                f"{layer.name or 'SLAF'} blows up first: {layer.blown:,} of {layer.elements:,} outputs are beyond",
                f"  {GROWTH:.0f} times the largest in its domain, {layer.largest:.3g}"
                + (f"; {len(blown) - 1} more after it" if blown[1:] else ""),
            ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return "\n".join([self.table(), *(f"not polynomial: {what}: {why}" for what, why in self.not_polynomial)])


def check(model: nn.Module, data: Tensor | Iterable) -> RangeReport:
    """Runs a network in the clear as an encrypted evaluation would: every SLAF extrapolates, in evaluation mode.

    Args:
        model: any module that maps a tensor to a tensor. It is not changed.
        data: held-out inputs: a batch or an iterable of batches, as for :func:`slaf_ext.convert`.

    Returns:
        A :class:`RangeReport`: for each SLAF the range that it was made for, the ranges of its inputs and outputs, how
        many inputs were outside, and where outputs blow up; and what else in the network is known to be no polynomial,
        such as max pooling, with what can take its place.

    Raises:
        TypeError: the model is not an nn.Module, or data holds no batches.
        ValueError: there is no data, it is not finite, or the model fails on it; or no SLAF ran.

    Example:
        >>> import torch, slaf_ext
        >>> nn = torch.nn
        >>> net = nn.Sequential(nn.Linear(1, 2), slaf_ext.SLAF(3, domain=(-1, 1), init="relu"), nn.MaxPool1d(2))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.fill_(1.0), net[0].bias.fill_(0.0)
        >>> report = slaf_ext.export.check(net, torch.tensor([[0.5], [0.5], [8.0], [0.5]]))
        >>> layer, = report.layers
        >>> layer.outside, layer.elements, report.blows_up
        (2, 8, ['1'])
        >>> report.not_polynomial[0][0]
        '2'
    """
    check_model(model)
    extrapolated = copy_of(model).eval()
    for module in extrapolated.modules():
        if isinstance(module, (SLAF, KANLinear)):
            module.outside = "extrapolate"
    batches = Batches(data, "data")
    batches.try_on(extrapolated)
    report = ranges_of(extrapolated, batches)
    if not report.layers:
        raise ValueError("no SLAF ran when the model did; slaf_ext.convert puts them in place of its activations")
    return report


def ranges_of(model: nn.Module, batches: Batches) -> RangeReport:
    """The ranges in a network in evaluation mode, as it is, on batches that it accepts."""
    seen: dict[str, _Seen] = {}

    def see(name: str, module: SLAF, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], out: Tensor) -> None:
        x = args[0] if args else kwargs["x"]
        if x.numel():
            if name not in seen:
                seen[name] = _Seen(module)
            seen[name].add(x, out)

    named = [(name, module) for name, module in model.named_modules() if isinstance(module, SLAF)]
    hooks = [module.register_forward_hook(partial(see, name), with_kwargs=True) for name, module in named]
    parts = [(name, module, why_not_polynomial(module, found)) for name, module, found in walk(model)]
    calls = FunctionCalls(model, [model], [module for _, module, why in parts if why])
    with calls:
        for _ in batches.run(model):
            pass
    for hook in hooks:
        hook.remove()
    report = RangeReport([each.range(name) for name, each in seen.items()], data=batches.name)
    report.not_polynomial = [(name or type(module).__name__, why) for name, module, why in parts if why]
    for name, call in calls.found:
        what = call if isinstance(call, str) else call.__name__
        why = NOT_POLYNOMIAL.get(call, "called as a function")
        report.not_polynomial.append((f"{name}: {what}" if name else what, why))
    return report


class _Seen:
    """What one SLAF has seen so far."""

    def __init__(self, module: SLAF) -> None:
        self.domain = module.domain or module.basis.domain
        x = torch.linspace(*self.domain, 501, dtype=torch.float64, device="cpu")
        phi = basis_values(x, module.degree, module.basis, domain=module.domain)
        self.largest = float((phi @ torch.from_numpy(coefficient_rows(module)).T).abs().max())
        self.ends: list[Tensor] = []
        self.elements = self.outside = self.blown = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        lo, hi = self.domain
        self.ends.append(torch.stack([*x.aminmax(), *y.aminmax()]).double())
        self.elements += x.numel()
        self.outside += int(((x >= lo) & (x <= hi)).logical_not().sum())
        held = y.isfinite() & (y.double().abs() <= GROWTH * self.largest)
        self.blown += y.numel() - int(held.sum())

    def range(self, name: str) -> Range:
        lows, highs = torch.stack(self.ends).amin(0).tolist(), torch.stack(self.ends).amax(0).tolist()
        return Range(
            name,
            self.domain,
            (lows[0], highs[1]),
            (lows[2], highs[3]),
            self.elements,
            self.outside,
            self.largest,
            self.blown,
        )
