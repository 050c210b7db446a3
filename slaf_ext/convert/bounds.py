"""The error of a converted network: measured on the calibration data, and bounded layer by layer."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..activations import ACTIVATIONS
from ..batch_norm import batch_norm_map
from ..torch_private import BATCH_NORM, DROPOUT, POOLING
from .calibration import Batches
from .discovery import in_float64
from .report import ConversionReport

ADDING = {operator.add, operator.iadd, operator.sub, torch.add, torch.sub, "add", "add_", "sub"}
KEEPING = {
    torch.flatten,
    torch.reshape,
    torch.cat,
    torch.squeeze,
    torch.unsqueeze,
    torch.permute,
    torch.transpose,
    torch.mean,
    F.max_pool1d,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    operator.getitem,
    *("flatten", "reshape", "view", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "mean"),
}
NORM_ONE = (nn.Identity, nn.Flatten, nn.Unflatten, DROPOUT, *POOLING)


def measure(
    untouched: nn.Module, original: nn.Module, converted: nn.Module, report: ConversionReport, batches: Batches
) -> set[str]:
    """Fills in the measured errors. Returns the names of the layers whose converted input stays in the domain.

    `original` is the untouched model with modules for its functional calls, so that layers can be compared by name.
    """
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {layer.name: [] for layer in report.layers}

    def see(name):
        # Clones, because a later layer may work in place.
        return lambda module, args, out: seen[name].append((args[0].clone(), out.clone()))

    hooks = [m.get_submodule(name).register_forward_hook(see(name)) for m in (original, converted) for name in seen]
    inside = set(seen)
    report.output_error = report.output_scale = 0.0
    for layer in report.layers:
        layer.range, layer.error = (math.inf, -math.inf), 0.0
    for before, _, after in batches.run(untouched, original, converted):
        report.output_error = max(report.output_error, float((before - after).abs().max()))
        report.output_scale = max(report.output_scale, float(before.abs().max()))
        for layer in report.layers:
            calls = seen[layer.name]
            half = len(calls) // 2  # the original's, then the converted network's
            for (x, out), (x_converted, out_converted) in zip(calls[:half], calls[half:], strict=True):
                layer.error = max(layer.error, float((out - out_converted).abs().max()))
                lo, hi = float(x_converted.min()), float(x_converted.max())
                if lo < layer.domain[0] or hi > layer.domain[1]:
                    inside.discard(layer.name)
                layer.range = min(layer.range[0], lo, float(x.min())), max(layer.range[1], hi, float(x.max()))
            calls.clear()
    for hook in hooks:
        hook.remove()
    for layer in report.layers:
        layer.lipschitz = lipschitz(original.get_submodule(layer.name), layer.range)
    return inside


def propagate_bounds(model: nn.Module, graph: fx.Graph, report: ConversionReport, inside: set[str]) -> None:
    """Propagates the bound E in the maximum norm through the graph; None from a layer on whose norm is unknown."""
    layers = {id(model.get_submodule(layer.name)): layer for layer in report.layers}
    bounds: dict[fx.Node, float | None] = {}
    for node in graph.nodes:
        incoming = [bounds[n] for n in node.all_input_nodes]
        known = [e for e in incoming if e is not None]
        bound = None
        if node.op in ("placeholder", "get_attr"):
            bound = 0.0
        elif len(known) < len(incoming):
            bound = None
        elif node.op == "call_module":
            module = model.get_submodule(node.target)
            layer = layers.get(id(module))
            if layer is None:
                factor = _norm(module)
                bound = None if factor is None else factor * max(known)
            elif layer.name in inside and math.isfinite(layer.lipschitz):
                bound = layer.lipschitz * max(known) + layer.fit_error
                layer.bound = max(bound, layer.bound or 0.0)
        elif node.target in ADDING and all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs:  # no alpha
            bound = sum(bounds[a] or 0.0 for a in node.args)
        elif _has_norm_one(node) or node.op == "output":
            bound = max(known, default=0.0)
        bounds[node] = bound
        if node.op == "output":
            report.output_bound = bound


def lipschitz(module: nn.Module, interval: tuple[float, float]) -> float:
    """The largest slope between neighbours on a grid, enlarged a little for the points between; inf at a jump."""
    x = torch.linspace(*interval, 20_001, dtype=torch.float64, device="cpu")
    apart = 1e-3 * min(1e-3, float(x[1] - x[0]))
    bends = torch.linspace(-20, 20, 20_001, dtype=x.dtype, device="cpu").clamp(*interval)
    x = torch.cat([x, bends]).unique()
    x = x[torch.cat([x.diff() > apart, torch.ones_like(x[:1], dtype=torch.bool)])]  # drops duplicates up to rounding
    if x.numel() <= 8:
        return 0.0
    y = in_float64(module)(x.clone())  # it may work in place
    near, far = (float(((y[n:] - y[:-n]).abs() / (x[n:] - x[:-n])).max()) for n in (1, 8))
    return math.inf if near > 4 * far else near * (1 + 1e-6)


def _norm(module: nn.Module) -> float | None:
    """The Lipschitz constant of a layer in the maximum norm, or a bound for it; None if unknown."""
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        # Each output of a convolution is a sum of weights times inputs, so the norm is the sum of the |weights|.
        return float(module.weight.detach().double().flatten(1).abs().sum(1).max())
    if isinstance(module, BATCH_NORM) and module.running_var is not None:
        return float(batch_norm_map(module)[0].abs().max())
    if isinstance(module, ACTIVATIONS):
        if isinstance(module, nn.PReLU):
            return max(1.0, float(module.weight.detach().abs().max()))
        slope_far_out = 1.0 if isinstance(module, (nn.Softplus, nn.Hardtanh)) else 0.0
        return max(lipschitz(module, (-50.0, 50.0)), slope_far_out)
    own_divisor = getattr(module, "divisor_override", None) is not None
    return 1.0 if isinstance(module, NORM_ONE) and not own_divisor else None


def _has_norm_one(node: fx.Node) -> bool:
    """Whether a call cannot enlarge a difference."""
    if node.target is F.dropout:  # only where it does nothing
        return (node.args[2:] or (node.kwargs.get("training", True),))[0] is False
    return node.target in KEEPING and "divisor_override" not in node.kwargs and len(node.args) < 7
