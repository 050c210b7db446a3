"""What a conversion reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .ranges import RangeReport

BEYOND = {
    "linear": "outside its domain a layer is linear, not polynomial",
    "clamp": "outside its domain a layer is constant, not polynomial",
    "extrapolate": "a polynomial everywhere, which grows outside its domain",
}

NAMES = {"calibration": "calibration", "held_out": "held-out"}


@dataclass
class LayerReport:
    """One activation that was converted.

    Attributes:
        name: the module's name; for a functional call, the name of its node in the traced graph.
        activation: what it was.
        domain: the interval of the fit: the range of its inputs in the converted network, or of the share that
            `quantile` asked for, plus the margin.
        fit_error: max |σ − p| over the domain.
        range: the smallest and largest input in the original and the converted network on the calibration data.
        lipschitz: the largest slope of σ on `range`.
        bound: an upper bound of |σ(z) − p(z̃)| on the calibration data, z̃ the converted network's value, up to rounding
            in its dtype; None if the norm of an earlier layer is unknown, or if inputs leave the domain, as with
            `quantile`, or the second time that an activation is used.
        error: the largest |σ(z) − p(z̃)| on the calibration data.
    """

    name: str
    activation: str
    domain: tuple[float, float]
    fit_error: float
    range: tuple[float, float] = (math.nan, math.nan)
    lipschitz: float = math.nan
    bound: float | None = None
    error: float = math.nan


@dataclass
class ConversionReport:
    """What :func:`slaf_ext.convert` did. ``str(report)`` is a table.

    Attributes:
        layers: a :class:`LayerReport` for each converted activation, in order of execution.
        output_error: the largest difference between the two networks' outputs on the calibration data.
        output_scale: the largest output of the original there.
        output_bound: an upper bound of `output_error`, or None if it is unknown.
        parameters_added: the number of scalars in the new activations, minus that in the activations they replace.
        not_converted: (what, why) for each activation that was left as it was. A functional call is named after the
            module that makes it and the function.
        outside: what the converted activations do outside their domains; inputs unlike the calibration data get there.
        ranges: the inputs and outputs of every SLAF in the converted network on held-out data, or without any on the
            calibration data; and what in it is no polynomial, a :class:`slaf_ext.export.RangeReport`.
    """

    layers: list[LayerReport] = field(default_factory=list)
    output_error: float = math.nan
    output_scale: float = math.nan
    output_bound: float | None = None
    parameters_added: int = 0
    not_converted: list[tuple[str, str]] = field(default_factory=list)
    outside: str = "linear"
    ranges: RangeReport = field(default_factory=RangeReport)

    def __str__(self) -> str:
        head = f"{'layer':<17}{'was':<11}{'domain':>18}{'fit error':>11}{'bound':>11}{'measured':>11}"
        lines = [head, "-" * len(head)]
        for layer in self.layers:
            name = layer.name if len(layer.name) <= 16 else "…" + layer.name[-15:]
            domain = f"{layer.domain[0]:.3g} … {layer.domain[1]:.3g}"
            lines.append(
                f"{name:<17}{layer.activation[:10]:<11}{domain:>18}{layer.fit_error:>11.2e}"
                f"{_formatted(layer.bound):>11}{layer.error:>11.2e}"
            )
        lines.append(f"{'output':<57}{_formatted(self.output_bound):>11}{self.output_error:>11.2e}")
        lines.append(f"largest output {self.output_scale:.3g}; {self.parameters_added} parameters added")
        lines.append("errors are maxima over the calibration data, and the bounds hold for it")
        if self.layers:
            lines.append(f"outside={self.outside!r}: {BEYOND[self.outside]}")
        lines += [f"not converted: {what}: {why}" for what, why in self.not_converted]
        if self.layers:
            lines += ["", f"ranges of the converted network on the {NAMES[self.ranges.data]} data:"]
            lines.append(self.ranges.table())
        if self.outside == "extrapolate":
            known = {what for what, _ in self.not_converted}
            lines += [f"not polynomial: {what}: {why}" for what, why in self.ranges.not_polynomial if what not in known]
        return "\n".join(line.rstrip() for line in lines)


def _formatted(bound: float | None) -> str:
    return "unknown" if bound is None else f"{bound:.2e}"
