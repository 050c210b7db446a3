"""Converting a trained network: its activations become polynomials, with an error that is bounded and measured."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from . import bases
from .activations import (
    ACTIVATIONS,
    FUNCTIONAL,
    OTHERS,
    FunctionCalls,
    copy_of,
    in_float64,
    is_elementwise,
    put,
    walk,
    with_modules,
    works_in_place,
)
from .arguments import check_outside
from .bases import Basis
from .fit import METHODS, fit
from .nn import SLAF

# The modules of torch.nn whose members are activations, or hold some.
NONLINEAR = (nn.ReLU.__module__, nn.LSTM.__module__)
UNKNOWN = "not known as a function of one number"
SCRIPTED = "the code of TorchScript cannot be seen or changed; convert the model before scripting it"
BEYOND = {
    "linear": "beyond its domain a layer is a tangent, and no polynomial",
    "clamp": "beyond its domain a layer is constant, and no polynomial",
    "extrapolate": "polynomial everywhere; beyond the domains it can blow up",
}
Part = tuple[str, nn.Module, bool]


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
        not_converted: (what, why) for each activation that was left as it was. What is called as a function has the
            name of the module that calls it, and that of the function.
        outside: what the converted activations do beyond their domains, which inputs unlike the calibration data reach.
    """

    layers: list[LayerReport] = field(default_factory=list)
    output_error: float = math.nan
    output_scale: float = math.nan
    output_bound: float | None = None
    parameters_added: int = 0
    not_converted: list[tuple[str, str]] = field(default_factory=list)
    outside: str = "linear"

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
        if self.layers:
            lines.append(f"outside={self.outside!r}: {BEYOND[self.outside]}")
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
    """A copy of a trained network whose activations are SLAFs, fitted to them on the ranges that they see.

    The activations are taken in the order of execution, and each is fitted on the range of its input in the network
    converted so far, so the interval holds for the values that the *converted* network reaches. With h_l =
    σ(W_l h_{l−1} + b_l), σ L-Lipschitz and |σ − p| ≤ ε_l there, the error in the maximum norm obeys
    E_l ≤ L ‖W_l‖_∞ E_{l−1} + ε_l. The report has this bound beside the error that was measured.

    What counts as an activation: the modules that torch.nn has for it, and every other module without parameters that
    works element by element and is not affine, whatever its class (trials on numbers of all sizes show it). Such a
    module is replaced as a whole, with what it holds; of an nn.Sequential, and of the model itself, each member is.
    Functional calls (torch.relu, F.gelu, x.tanh(), …) count where torch.fx can trace the model, and the `activation` of
    nn.TransformerEncoderLayer and nn.TransformerDecoderLayer everywhere. Other calls that calibration reaches stay, and
    the report names them with the module that makes each.

    Args:
        model: any module that maps a tensor to a tensor. It stays as it is; a copy is converted, in evaluation mode.
        calibration: inputs like those that the network will see, on which ranges and errors are measured: a batch, or
            an iterable of them that can be walked more than once, such as a DataLoader. Of a batch that is a tuple or
            a list the first entry is the input. A model with more inputs needs a module around it that fills them in.
        degree: of every polynomial.
        basis: the φ_k.
        targets: which activations: names of modules (or of the nodes of functional calls, as the report has them), or
            types of modules. None: all that are known, but for those that jump.
        method: how to fit, see :func:`slaf_ext.fit`.
        margin: by how much the range is widened on either side, as a share of its width.
        outside: what the SLAFs do beyond the range, see :func:`slaf_ext.slaf`. The default goes on along the tangent,
            so the network stays tame but is no polynomial there. "extrapolate" gives one that is polynomial everywhere,
            as encrypted inference needs, and can blow up on inputs beyond the range: mind the margin.

    Returns:
        The converted network, in evaluation mode, and a :class:`ConversionReport`. (For untrained SLAFs, put in place,
        see :func:`slaf_ext.training.replace_activations`.) The network is an fx.GraphModule where functional calls were
        converted; an nn.Sequential where the model was one activation; otherwise a copy of the model's own class. The
        report lists the activations that stay as they are; max pooling stays too.

    Raises:
        TypeError: the model is no nn.Module, or TorchScript; calibration holds no batches; a target is neither a name
            nor a type of modules.
        ValueError: another argument is out of its range; there is no calibration data, it is not finite, or the model
            fails on it; the model returns no tensor; a target is not found, or does not work element by element; the
            input of an activation is not finite.
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
    _check(model, degree, basis, method, margin, outside)
    chosen = None if targets is None else _check_targets(targets)
    batches = _Batches(calibration)
    report = ConversionReport(outside=outside)
    untouched = copy_of(model).eval()
    batches.try_on(untouched)
    original = with_modules(copy_of(untouched))
    original, graph, untraced = _functions_as_modules(original, chosen, batches, report)
    parts = list(walk(original))
    names = _targets(original, parts, chosen, report)
    order = _run_once(original, parts, names, graph, untraced, batches, report)

    converted = copy_of(original)
    parameters = sum(p.numel() for p in original.parameters())
    for name in order:
        module = original.get_submodule(name)
        try:
            domain, like = _domain(converted, name, margin, batches)
            if math.isinf(_lipschitz(module, domain)) and chosen is None:
                raise ValueError(f"it jumps, and no polynomial comes close; targets={name!r} converts it all the same")
            found = fit(in_float64(module), degree, basis, domain=domain, method=method)
        except (ValueError, RuntimeError) as error:
            if chosen is not None or isinstance(module, ACTIVATIONS):
                raise
            report.not_converted.append((name, str(error)))  # nobody asked for it by name
            continue
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
        report.layers.append(LayerReport(name, module._get_name(), domain, found.max_error))
    report.parameters_added = sum(p.numel() for p in converted.parameters()) - parameters
    inside = _measure(untouched, original, converted, report, batches)
    if graph is not None:
        _bounds(original, graph, report, inside)
    return converted, report


def _check(model: Any, degree: Any, basis: Any, method: Any, margin: Any, outside: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be an nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model is a {type(model).__name__}: {SCRIPTED}")
    bases.check_integer(degree, "degree", 0)
    bases.get(basis)
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(map(repr, METHODS))}")
    if not (isinstance(margin, Real) and 0 <= float(margin) < math.inf):
        raise ValueError(f"margin is {margin!r}; it must be a finite number from 0 up")
    check_outside(outside)


def _check_targets(targets: Any) -> list[str | type[nn.Module]]:
    one = isinstance(targets, (str, type, nn.Module)) or not isinstance(targets, Iterable)
    chosen = [targets] if one else list(targets)
    for target in chosen:
        if not (isinstance(target, str) or (isinstance(target, type) and issubclass(target, nn.Module))):
            raise TypeError(f"target {target!r} is neither a module's name nor a type of modules, such as nn.GELU")
    if not chosen:
        raise ValueError("targets is empty; name what to convert, or leave it out for all activations")
    return chosen


class _Batches:
    """The inputs of the calibration data, as often as they are asked for."""

    def __init__(self, data: Any) -> None:
        if isinstance(data, (str, Mapping)) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
            raise TypeError(
                f"calibration is a {type(data).__name__}; it must be inputs like those that the model will see, to "
                "measure ranges and errors on: a tensor, or an iterable of batches, such as a DataLoader"
            )
        if isinstance(data, Iterator):  # it could be walked once only
            data = list(data)
        self.data = [data] if isinstance(data, Tensor) else data

    def __iter__(self) -> Iterator[Tensor]:
        seen = False
        for batch in self.data:
            x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(x, Tensor):
                raise ValueError(
                    f"a calibration batch is a {type(x).__name__}; give tensors, or tuples that start with one. For a "
                    "model with more inputs, convert a module around it that takes one and fills in the others"
                )
            if not x.isfinite().all():
                raise ValueError(f"a calibration batch of shape {tuple(x.shape)} holds nan or inf; it must be finite")
            if x.numel():
                seen = True
                yield x
        if not seen:
            raise ValueError("the calibration data holds no inputs; give a tensor, or an iterable of batches")

    def try_on(self, model: nn.Module) -> None:
        """Whether the model takes the first batch and returns what can be compared."""
        x = next(iter(self))
        try:
            with torch.no_grad():
                out = model(x.clone())
        except Exception as error:  # whatever the model's own code does with it
            raise ValueError(
                f"the model fails on a calibration batch of shape {tuple(x.shape)} and {x.dtype}: {error}"
            ) from error
        if not isinstance(out, Tensor):
            raise ValueError(f"the model returns a {type(out).__name__}; convert needs one that returns a tensor")

    def run(self, *models: nn.Module) -> Iterator[list[Tensor]]:
        with torch.no_grad():
            for x in self:
                yield [model(x.clone()) for model in models]  # for one that works in place


class _Tracer(fx.Tracer):
    def __init__(self, leaves: list[nn.Module]) -> None:
        super().__init__()
        self.leaves = leaves
        self.replaceable = True

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.replaceable = len(args) == 1 and not kwargs
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, SLAF) or (m in self.leaves and self.replaceable)
        return ours or super().is_leaf_module(m, module_qualified_name)


def _matches(target: str | type[nn.Module], name: str, module: nn.Module) -> bool:
    return name == target if isinstance(target, str) else isinstance(module, target)


def _traced(model: nn.Module, leaves: list[nn.Module], batches: _Batches) -> tuple[fx.GraphModule | None, str]:
    """The model as torch.fx sees it, or None and why it cannot be."""
    parameters = inspect.signature(model.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    # A proxy is never None, so a model that asks whether an argument is given may need the defaults instead.
    for fixed in [None, defaults] if defaults else [None]:
        try:
            traced = fx.GraphModule(model, _Tracer(leaves).trace(model, fixed))
            batches.try_on(traced)
            return traced, ""
        except Exception as error:  # whatever the model's own code does with a proxy
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return None, reason


def _functions_as_modules(
    model: nn.Module, chosen: list[str | type[nn.Module]] | None, batches: _Batches, report: ConversionReport
) -> tuple[nn.Module, fx.Graph | None, str]:
    """The model with functional activations turned into modules, and its graph, or None and why it has none."""
    leaves = [module for _, module, found in walk(model) if found]
    for name, module in model.named_modules(remove_duplicate=False):
        if any(_matches(target, name, module) for target in chosen or ()):
            leaves.append(module)
    traced, reason = _traced(model, leaves, batches)
    if traced is None:
        return model, None, reason
    found = False
    for node in list(traced.graph.nodes):
        if node.op == "call_module":
            module = model.get_submodule(node.target)
            in_place = getattr(module, "inplace", False) or (module in leaves and works_in_place(module))
            found |= in_place and _value_after(node, node.args[0], node)
        kind = FUNCTIONAL.get(node.target) if node.op in ("call_function", "call_method") else None
        if kind is None:
            if node.op in ("call_function", "call_method") and node.target in OTHERS:
                report.not_converted.append((node.name, UNKNOWN))
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
        return model, traced.graph, ""
    traced.graph.lint()
    traced.recompile()
    return traced, traced.graph, ""


def _value_after(node: fx.Node, source: fx.Node, result: fx.Node) -> bool:
    """Lets what reads `source` after `node`, which works in place, read its result. Whether anything did."""
    order = {each: i for i, each in enumerate(node.graph.nodes)}
    late = [user for user in source.users if order[user] > order[node]]
    for user in late:
        user.replace_input_with(source, result)
    return bool(late)


def _targets(
    model: nn.Module, parts: list[Part], chosen: list[str | type[nn.Module]] | None, report: ConversionReport
) -> list[str]:
    """The names of the modules to convert. Those of torch.nn and TorchScript that are left are reported."""
    known = [name for name, _, found in parts if found]
    modules = dict(model.named_modules(remove_duplicate=False))
    if chosen is None:
        names = known
        for name, module, found in parts:
            if isinstance(module, torch.jit.ScriptModule):
                report.not_converted.append((name, SCRIPTED))
            elif type(module).__module__ in NONLINEAR and not found:
                report.not_converted.append((name, f"{type(module).__name__} is {UNKNOWN}"))
    else:
        names = []
        for target in chosen:
            matching = [name for name, module in modules.items() if _matches(target, name, module)]
            if not matching:
                raise ValueError(f"target {target!r} is not in the model; its activations are {', '.join(known)}")
            names += [name for name in matching if modules[name] not in [modules[other] for other in names]]
        names = [name for name in names if not name.startswith(tuple(f"{outer}." for outer in names))]
    within = {part: name for name in names for part in modules[name].modules() if part is not modules[name]}
    kept = []
    for name in names:
        module = modules[name]
        if module in within:
            report.not_converted.append((name, f"it is a part of {within[module]} as well; use one for each"))
        elif isinstance(module, nn.PReLU) and module.num_parameters > 1:
            report.not_converted.append((name, f"PReLU with {module.num_parameters} slopes is not one function"))
        elif isinstance(module, torch.jit.ScriptModule):
            report.not_converted.append((name, SCRIPTED))
        elif not (name in known or is_elementwise(module)):
            raise ValueError(f"target {name!r} does not work element by element; a SLAF can only replace what does")
        else:
            kept.append(name)
    return kept


def _run_once(
    model: nn.Module,
    parts: list[Part],
    names: list[str],
    graph: fx.Graph | None,
    untraced: str,
    batches: _Batches,
    report: ConversionReport,
) -> list[str]:
    """The names in the order in which the modules first run. What cannot be converted as it is called is reported."""
    order: list[str] = []
    left: dict[str, str] = {}

    def see(name, module, args, kwargs):
        if kwargs or len(args) != 1:
            left[name] = "called with more than its input, or by keyword; call it with the input alone"
        elif not args[0].is_floating_point():
            raise ValueError(
                f"the input of {name} is {args[0].dtype} on the calibration data; it must be floating-point"
            )
        elif name not in order:
            order.append(name)

    entered = [model]
    if graph is not None:  # the graph shows all calls but those within its modules
        entered = [model.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"]
    named = [m for name, m, found in parts if found or name in names or type(m).__module__ in NONLINEAR]
    calls = FunctionCalls(model, entered, named)
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(partial(see, name), with_kwargs=True) for name in names
    ]
    with calls:
        for _ in batches.run(model):
            pass
    for hook in hooks:
        hook.remove()
    for name in names:
        if name not in order:
            left.setdefault(name, "calibration never reached it")
    report.not_converted += left.items()
    for name, call in calls.found:
        what = call if isinstance(call, str) else call.__name__
        why = UNKNOWN
        if call in FUNCTIONAL:
            where = f"torch.fx cannot trace ({untraced})" if untraced else "torch.nn holds"
            why = f"called as a function in code that {where}; call an nn.{FUNCTIONAL[call].__name__} there instead"
        report.not_converted.append((f"{name}: {what}" if name else what, why))
    return [name for name in order if name not in left]


def _domain(model: nn.Module, name: str, margin: float, batches: _Batches) -> tuple[tuple[float, float], Tensor]:
    """The range of a module's input on the calibration data with the margin, and a tensor of its dtype and device."""
    ends = []

    def see(module, args):
        ends.append(torch.stack(args[0].aminmax()))

    hook = model.get_submodule(name).register_forward_pre_hook(see)
    for _ in batches.run(model):
        pass
    hook.remove()
    every = torch.stack(ends)
    lo, hi = float(every[:, 0].min()), float(every[:, 1].max())
    if not (math.isfinite(lo) and math.isfinite(hi)):
        raise ValueError(f"the input of {name} ranges over ({lo}, {hi}) on the calibration data; it must be finite")
    widening = margin * (hi - lo) if hi > lo else 1e-3 * max(abs(lo), 1.0)
    return (lo - widening, hi + widening), every


def _replace(converted: nn.Module, module: nn.Module, original: nn.Module, slaf: SLAF) -> None:
    """Puts `slaf` wherever `module`, which may have several names, stands in the original."""
    for name, candidate in original.named_modules(remove_duplicate=False):
        if candidate is module:
            parent, _, own = name.rpartition(".")
            put(converted.get_submodule(parent), own, slaf)


def _lipschitz(module: nn.Module, interval: tuple[float, float]) -> float:
    """The largest slope between neighbours on a grid, with a little more for what lies between; inf at a jump."""
    x = torch.linspace(*interval, 20_001, dtype=torch.float64, device="cpu")
    apart = 1e-3 * min(1e-3, float(x[1] - x[0]))
    bends = torch.linspace(-20, 20, 20_001, dtype=x.dtype, device="cpu").clamp(*interval)
    x = torch.cat([x, bends]).unique()
    x = x[torch.cat([x.diff() > apart, torch.ones_like(x[:1], dtype=torch.bool)])]  # twins differ by rounding
    if x.numel() <= 8:
        return 0.0
    y = in_float64(module)(x.clone())  # it may work in place
    near, far = (float(((y[n:] - y[:-n]).abs() / (x[n:] - x[:-n])).max()) for n in (1, 8))
    return math.inf if near > 4 * far else near * (1 + 1e-6)


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
            elif layer.name in inside and math.isfinite(layer.lipschitz):
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
