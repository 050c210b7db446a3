"""Converting a trained network: its activations become polynomials, with an error that is bounded and measured."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .activations import ACTIVATIONS, FUNCTIONAL, OTHERS
from .bases import Basis
from .fit import fit
from .nn import SLAF


@dataclass
class LayerReport:
    """One activation that was converted.

    Attributes:
        name: the module's name; for a functional call, that of its node in the traced graph.
        activation: what it was.
        domain: the interval of the fit: the converted network's range with the margin.
        fit_error: max |σ − p| over the domain.
        range: the smallest and largest input that calibration showed to the original and to the converted network.
        lipschitz: the largest slope of σ on `range`.
        bound: what |σ(z) − p(z̃)| cannot exceed on the calibration data, z̃ the converted network's value, but for the
            rounding of its dtype; None where the norm of something before it is not known, or where an activation that
            is used twice leaves its domain the second time.
        error: the largest |σ(z) − p(z̃)| that calibration showed.
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
    """What :func:`convert` did. ``str(report)`` is a table.

    Attributes:
        layers: a :class:`LayerReport` for each converted activation, in the order of execution.
        output_error: the largest difference of the two networks' outputs on the calibration data.
        output_scale: the largest output of the original there.
        output_bound: what `output_error` cannot exceed, or None where it is not known.
        parameters_added: how many scalars the activations hold, less what those that they replace held.
        not_converted: (what, why) for each activation that was left as it was.
    """

    layers: list[LayerReport] = field(default_factory=list)
    output_error: float = math.nan
    output_scale: float = math.nan
    output_bound: float | None = None
    parameters_added: int = 0
    not_converted: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{'layer':<17}{'was':<11}{'domain':>18}{'fit error':>11}{'bound':>11}{'measured':>11}"
        lines = [head, "-" * len(head)]
        for layer in self.layers:
            name = layer.name if len(layer.name) <= 16 else "…" + layer.name[-15:]
            domain = f"{layer.domain[0]:.3g} … {layer.domain[1]:.3g}"
            lines.append(
                f"{name:<17}{layer.activation[:10]:<11}{domain:>18}{layer.fit_error:>11.2e}"
                f"{_number(layer.bound):>11}{layer.error:>11.2e}"
            )
        lines.append(f"{'output':<57}{_number(self.output_bound):>11}{self.output_error:>11.2e}")
        lines.append(f"largest output {self.output_scale:.3g}; {self.parameters_added} parameters added")
        lines.append("errors are maxima over the calibration data, and the bounds hold for it")
        lines += [f"not converted: {what}: {why}" for what, why in self.not_converted]
        return "\n".join(line.rstrip() for line in lines)


def convert(
    model: nn.Module,
    calibration: Tensor | Iterable,
    *,
    degree: int,
    basis: str | Basis = "chebyshev",
    targets: Iterable[str | type[nn.Module]] | None = None,
    method: str = "minimax",
    margin: float = 0.0,
    outside: str = "linear",
) -> tuple[nn.Module, ConversionReport]:
    """Replaces the activations of a trained network by SLAFs fitted to them on the ranges that they see.

    The activations are taken in the order of execution, and each is fitted on the range of its input in the network
    converted so far, so the interval holds for the values that the *converted* network reaches. With h_l =
    σ(W_l h_{l−1} + b_l), σ L-Lipschitz and |σ − p| ≤ ε_l there, the error in the maximum norm obeys
    E_l ≤ L ‖W_l‖_∞ E_{l−1} + ε_l. The report has this bound beside the error that was measured.

    Args:
        model: any module that maps a tensor to a tensor. It stays as it is; a copy is converted, in evaluation mode.
        calibration: a batch, or an iterable of them that can be walked more than once, such as a DataLoader. Of a
            batch that is a tuple or a list the first entry is the input.
        degree: of every polynomial.
        basis: the φ_k.
        targets: which activations: names of modules (or of the nodes of functional calls, as the report has them), or
            types of modules. None: all that are known.
        method: how to fit, see :func:`slaf_ext.fit`.
        margin: by how much the range is widened on either side, as a share of its width.
        outside: what the SLAFs do outside the range, see :func:`slaf_ext.slaf`.

    Returns:
        The converted network, in evaluation mode, and a :class:`ConversionReport`. Where the model calls activations
        as functions (torch.relu, F.gelu, x.tanh(), …) and torch.fx can trace it, it is an fx.GraphModule; otherwise a
        copy of the model's own class. The report lists the activations that stay as they are; max pooling stays too.

    Raises:
        ValueError: there is no calibration data; a target is not found; the input of an activation is not finite.
        RuntimeError: see :func:`slaf_ext.fit`.

    Example:
        >>> import torch, slaf_ext
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> converted, report = slaf_ext.convert(net, torch.randn(256, 2), degree=7)
        >>> converted[1].degree, report.output_error <= report.output_bound < 0.1
        (7, True)

    Source: the abstract of arXiv:1906.09529 states that such networks approximate every network with Lipschitz
    activations; the bound follows from the triangle inequality.
    """
    if margin < 0:
        raise ValueError(f"margin is {margin}; it must be from 0 up")
    batches = _Batches(calibration)
    report = ConversionReport()
    untouched = copy.deepcopy(model).eval()
    original, graph = _functions_as_modules(copy.deepcopy(untouched), report)
    names = _targets(original, targets, report)
    order = _order(original, names, batches)
    report.not_converted += [(name, "calibration never reached it") for name in names if name not in order]

    converted = copy.deepcopy(original)
    parameters = sum(p.numel() for p in original.parameters())
    for name in order:
        module = original.get_submodule(name)
        lo, hi, like = _range(converted, name, batches)
        if not (math.isfinite(lo) and math.isfinite(hi)):
            raise ValueError(f"the input of {name} ranges over ({lo}, {hi}) on the calibration data; it must be finite")
        widening = margin * (hi - lo) if hi > lo else 1e-3 * max(abs(lo), 1.0)
        domain = (lo - widening, hi + widening)
        function = copy.deepcopy(module).double().cpu()
        if not isinstance(module, ACTIVATIONS):
            _check_elementwise(name, function)
        found = fit(function, degree, basis, domain=domain, method=method)
        slaf = SLAF(
            degree,
            basis=basis,
            domain=domain,
            outside=outside,
            init=torch.from_numpy(found.coeffs),
            device=like.device,
            dtype=torch.promote_types(like.dtype, torch.float32),
        ).eval()
        _replace(converted, module, original, slaf)
        report.layers.append(LayerReport(name, type(module).__name__, domain, found.max_error))
    report.parameters_added = sum(p.numel() for p in converted.parameters()) - parameters
    inside = _measure(untouched, original, converted, report, batches)
    if graph is not None:
        _bounds(original, graph, report, inside)
    return converted, report


class _Batches:
    """The inputs of the calibration data, as often as they are asked for."""

    def __init__(self, data: Tensor | Iterable) -> None:
        if isinstance(data, Iterator):  # it could be walked once only
            data = list(data)
        self.data = [data] if isinstance(data, Tensor) else data

    def run(self, *models: nn.Module) -> Iterator[list[Tensor]]:
        seen = False
        with torch.no_grad():
            for batch in self.data:
                x = batch[0] if isinstance(batch, (tuple, list)) else batch
                if not isinstance(x, Tensor):
                    raise ValueError(
                        f"a calibration batch is a {type(x).__name__}; give tensors, or tuples that start with one"
                    )
                if x.numel():
                    seen = True
                    yield [model(x.clone()) for model in models]  # for one that works in place
        if not seen:
            raise ValueError("the calibration data holds no inputs; give a tensor, or an iterable of batches")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SLAF) or super().is_leaf_module(m, module_qualified_name)


def _functions_as_modules(model: nn.Module, report: ConversionReport) -> tuple[nn.Module, fx.Graph | None]:
    """The model with its functional activations turned into modules, where it has any, and its graph."""
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:  # whatever the model's own code does with a proxy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        report.not_converted.append(("functional calls, if any", f"torch.fx cannot trace the model ({reason})"))
        return model, None
    found = False
    for node in list(traced.graph.nodes):
        if node.op == "call_module":
            module = model.get_submodule(node.target)
            found |= getattr(module, "inplace", False) and _value_after(node, node.args[0], node)
        kind = FUNCTIONAL.get(node.target) if node.op in ("call_function", "call_method") else None
        if kind is None:
            if node.op in ("call_function", "call_method") and node.target in OTHERS:
                report.not_converted.append((node.name, "not known as a function of one number"))
            continue
        kwargs = {k: v for k, v in node.kwargs.items() if k not in ("input", "inplace")}
        source = node.args[0] if node.args else node.kwargs["input"]
        arguments = node.args[1:] if kind not in (nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Mish) else ()
        try:
            module = kind(*arguments, **kwargs)
        except TypeError as error:
            report.not_converted.append((node.name, f"its arguments are not those of nn.{kind.__name__} ({error})"))
            continue
        name = node.name
        while hasattr(traced, name):
            name += "_call"
        traced.add_submodule(name, module.eval())
        with traced.graph.inserting_before(node):
            call = traced.graph.call_module(name, (source,))
        if node.kwargs.get("inplace") or str(getattr(node.target, "__name__", node.target)).endswith("_"):
            _value_after(node, source, call)
        node.replace_all_uses_with(call)
        traced.graph.erase_node(node)
        found = True
    if not found:
        return model, traced.graph
    traced.graph.lint()
    traced.recompile()
    return traced, traced.graph


def _value_after(node: fx.Node, source: fx.Node, result: fx.Node) -> bool:
    """Lets what reads `source` after `node`, which works in place, read its result. Whether anything did."""
    order = {each: i for i, each in enumerate(node.graph.nodes)}
    late = [user for user in source.users if order[user] > order[node]]
    for user in late:
        user.replace_input_with(source, result)
    return bool(late)


def _check_elementwise(name: str, function: Callable) -> None:
    x = torch.linspace(-1, 1, 12, dtype=torch.float64)
    try:
        with torch.no_grad():
            y = function(x.clone())
            apart = torch.stack([function(part) for part in x.view(4, 3).clone()]).flatten()
        fits = y.shape == x.shape and torch.allclose(y, apart, equal_nan=True)
    except Exception:  # whatever the module's own code does with it
        fits = False
    if not fits:
        raise ValueError(f"target {name!r} does not work element by element; a SLAF can only replace what does")


def _targets(model: nn.Module, targets: Iterable[str | type[nn.Module]] | None, report: ConversionReport) -> list[str]:
    modules = dict(model.named_modules())
    if targets is None:
        names = [name for name, module in modules.items() if isinstance(module, ACTIVATIONS)]
        report.not_converted += [
            (name, f"{type(module).__name__} is not known as a function of one number")
            for name, module in modules.items()
            if type(module).__module__ == nn.ReLU.__module__ and name not in names
        ]
    else:
        names = []
        for target in [targets] if isinstance(targets, (str, type)) else targets:
            if isinstance(target, str):
                matching = [target] if target in modules else []
            else:
                matching = [name for name, module in modules.items() if isinstance(module, target)]
            if not matching:
                known = [name for name, module in modules.items() if isinstance(module, ACTIVATIONS)]
                raise ValueError(f"target {target!r} is not in the model; its activations are {', '.join(known)}")
            names += [name for name in matching if name not in names]
    kept = []
    for name in names:
        module = modules[name]
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            report.not_converted.append((name, f"PReLU with {module.num_parameters} slopes is not one function"))
        else:
            kept.append(name)
    return kept


def _order(model: nn.Module, names: list[str], batches: _Batches) -> list[str]:
    """The names in the order in which the modules first run."""
    order: list[str] = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: None if name in order else order.append(name)
        )
        for name in names
    ]
    for _ in batches.run(model):
        pass
    for hook in hooks:
        hook.remove()
    return order


def _range(model: nn.Module, name: str, batches: _Batches) -> tuple[float, float, Tensor]:
    """The smallest and the largest input of a module on the calibration data, and a tensor of its dtype and device."""
    ends = []

    def see(module, args):
        ends.append(torch.stack(args[0].aminmax()))

    hook = model.get_submodule(name).register_forward_pre_hook(see)
    for _ in batches.run(model):
        pass
    hook.remove()
    every = torch.stack(ends)
    return float(every[:, 0].min()), float(every[:, 1].max()), every


def _replace(converted: nn.Module, module: nn.Module, original: nn.Module, slaf: SLAF) -> None:
    """Puts `slaf` wherever `module`, which may have several names, stands in the original."""
    for name, candidate in original.named_modules(remove_duplicate=False):
        if candidate is module:
            parent, _, own = name.rpartition(".")
            setattr(converted.get_submodule(parent), own, slaf)


def _lipschitz(module: nn.Module, interval: tuple[float, float]) -> float:
    """The largest slope between neighbours on a grid, with a little more for what lies between."""
    function = copy.deepcopy(module).double().cpu()
    x = torch.linspace(*interval, 20_001, dtype=torch.float64)
    x = torch.cat([x, torch.linspace(-20, 20, 20_001, dtype=x.dtype).clamp(*interval)]).unique()  # where they bend
    with torch.no_grad():
        y = function(x.clone())  # it may work in place
    steps = x.diff()
    slopes = (y.diff().abs() / steps)[steps > 0]
    return float(slopes.max()) * (1 + 1e-6) if slopes.numel() else 0.0


def _measure(
    untouched: nn.Module, original: nn.Module, converted: nn.Module, report: ConversionReport, batches: _Batches
) -> set[str]:
    """Fills in what calibration shows. Returns the names whose converted input stays in its domain.

    `original` is the untouched model with modules for its functional calls, which have names to compare.
    """
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {layer.name: [] for layer in report.layers}

    def see(name):
        # Copies, for a layer further on may work in place.
        return lambda module, args, out: seen[name].append((args[0].clone(), out.clone()))

    hooks = [m.get_submodule(name).register_forward_hook(see(name)) for m in (original, converted) for name in seen]
    inside = set(seen)
    report.output_error = report.output_scale = 0.0
    for layer in report.layers:
        layer.range, layer.error = (math.inf, -math.inf), 0.0
    for ours, _, theirs in batches.run(untouched, original, converted):
        if not isinstance(ours, Tensor):
            raise ValueError(f"the model returns a {type(ours).__name__}; convert needs one that returns a tensor")
        report.output_error = max(report.output_error, float((ours - theirs).abs().max()))
        report.output_scale = max(report.output_scale, float(ours.abs().max()))
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
        layer.lipschitz = _lipschitz(original.get_submodule(layer.name), layer.range)
    return inside


def _bounds(model: nn.Module, graph: fx.Graph, report: ConversionReport, inside: set[str]) -> None:
    """Carries the bound E in the maximum norm through the graph; None where a norm is not known."""
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
            elif layer.name in inside:
                bound = layer.lipschitz * max(known) + layer.fit_error
                layer.bound = max(bound, layer.bound or 0.0)
        elif node.target in ADDING and all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs:  # no alpha
            bound = sum(bounds[a] or 0.0 for a in node.args)
        elif _keeps(node) or node.op == "output":
            bound = max(known, default=0.0)
        bounds[node] = bound
        if node.op == "output":
            report.output_bound = bound


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
NORM_ONE = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.modules.dropout._DropoutNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)


def _keeps(node: fx.Node) -> bool:
    """Whether a call lets no difference grow."""
    if node.target is F.dropout:  # only where it does nothing
        return (node.args[2:] or (node.kwargs.get("training", True),))[0] is False
    return node.target in KEEPING and "divisor_override" not in node.kwargs and len(node.args) < 7


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2e}"


def _norm(module: nn.Module) -> float | None:
    """The Lipschitz constant of a layer in the maximum norm, or a bound for it; None where it is not known."""
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        # Of a convolution every output is a sum of the kernel's weights times inputs: the sum of their sizes.
        return float(module.weight.detach().double().flatten(1).abs().sum(1).max())
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
        scale = (module.running_var.double() + module.eps).rsqrt()
        return float((scale if module.weight is None else scale * module.weight.detach().double().abs()).max())
    if isinstance(module, ACTIVATIONS):
        if isinstance(module, nn.PReLU):
            return max(1.0, float(module.weight.detach().abs().max()))
        steepest_far_out = 1.0 if isinstance(module, (nn.Softplus, nn.Hardtanh)) else 0.0
        return max(_lipschitz(module, (-50.0, 50.0)), steepest_far_out)
    own_divisor = getattr(module, "divisor_override", None) is not None
    return 1.0 if isinstance(module, NORM_ONE) and not own_divisor else None
