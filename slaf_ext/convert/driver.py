"""The steps of a conversion, and the checks of its arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from .. import bases
from ..activations import ACTIVATIONS, FUNCTIONAL, names_of, replace_module
from ..arguments import check_model, check_outside
from ..bases import Basis
from ..fit import METHODS, fit
from ..nn import SLAF
from .bounds import lipschitz, measure, propagate_bounds
from .calibration import Batches
from .discovery import NONLINEAR, copy_of, in_float64, is_elementwise, make_replaceable, walk
from .ranges import ranges_of
from .report import ConversionReport, LayerReport
from .tracing import NOT_POLYNOMIAL, UNKNOWN, FunctionCalls, Target, functions_as_modules, matches

SAMPLES = 100_000
SCRIPTED = "the code of TorchScript cannot be seen or changed; convert the model before scripting it"
Part = tuple[str, nn.Module, bool]  # as `walk` yields them


def convert(
    model: nn.Module,
    calibration: Tensor | Iterable,
    *,
    degree: int,
    basis: str | Basis = "chebyshev",
    targets: Iterable[str | type[nn.Module]] | None = None,
    method: str = "minimax",
    margin: float = 0.0,
    quantile: float = 1.0,
    outside: str = "linear",
    held_out: Tensor | Iterable | None = None,
) -> tuple[nn.Module, ConversionReport]:
    """A copy of a trained network whose activations are SLAFs, fitted to them on the ranges of their inputs.

    The activations are taken in order of execution, and each is fitted on the range of its input in the network
    converted so far, so that the interval covers the values that the *converted* network reaches, or with `quantile`
    most of them. With h_l =
    σ(W_l h_{l−1} + b_l), σ L-Lipschitz and |σ − p| ≤ ε_l there, the error in the maximum norm obeys
    E_l ≤ L ‖W_l‖_∞ E_{l−1} + ε_l. The report gives this bound and the measured error.

    Activations are the modules that torch.nn has for it, and every other module without parameters that is elementwise
    and not affine, whatever its class (it is tried on values of all magnitudes). Such a module is replaced as a whole,
    with its members; in an nn.Sequential, and in the model itself, each member is replaced on its own. Functional calls
    (torch.relu, F.gelu, x.tanh(), …) are converted if torch.fx can trace the model, and the `activation` of
    nn.TransformerEncoderLayer and nn.TransformerDecoderLayer always. Other calls that calibration reaches stay, and the
    report names them with the module that makes each.

    Args:
        model: any module that maps a tensor to a tensor. It is not changed; a copy is converted, in evaluation mode.
        calibration: inputs like those that the network will see, on which ranges and errors are measured: a batch, or
            an iterable of them that can be iterated more than once, such as a DataLoader. If a batch is a tuple or a
            list, its first entry is the input. A model with more inputs needs a module around it that fills them in.
        degree: of every polynomial.
        basis: the φ_k.
        targets: which activations: names of modules (or of the nodes of functional calls, as in the report), or types
            of modules. None for all known activations that do not jump.
        method: how to fit, see :func:`slaf_ext.fit`.
        margin: how far the range is widened on each side, as a fraction of its width.
        quantile: the share of the inputs that the range covers, without the smallest and the largest in equal parts;
            1 for all. A few far outliers then do not cost all others their accuracy.
        outside: what the SLAFs do outside the range, see :func:`slaf_ext.slaf`. The default continues along the
            tangent, so values stay moderate, but the network is not polynomial there. "extrapolate" gives a network
            that is polynomial everywhere, as encrypted inference needs, but its values can grow without limit on inputs
            outside the range: choose the margin with care.
        held_out: inputs that the calibration has not seen, to report ranges on; None for the calibration data.

    Returns:
        The converted network, in evaluation mode, and a :class:`ConversionReport`. The network is an fx.GraphModule if
        functional calls were converted, an nn.Sequential if the model was itself an activation, and otherwise a copy of
        the model's own class. The report lists the activations that stay as they are, and with "extrapolate" what else
        is no polynomial, such as max pooling. (To put untrained SLAFs into a model, see
        :func:`slaf_ext.training.replace_activations`.)

    Raises:
        TypeError: the model is not an nn.Module, or is TorchScript; calibration holds no batches; a target is neither a
            name nor a type of modules.
        ValueError: another argument is out of range; there is no calibration or held-out data, it is not finite, or the
            model fails on it; the model does not return a tensor; a target is not found, or is not elementwise; the
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
    quantile = bases.check_real(quantile, "quantile", lambda t: 0 < t <= 1, "a number above 0, up to 1")
    unseen = None if held_out is None else Batches(held_out, "held_out")
    chosen = None if targets is None else _check_targets(targets)
    batches = Batches(calibration)
    report = ConversionReport(outside=outside)
    untouched = copy_of(model).eval()
    for data in filter(None, (batches, unseen)):
        data.try_on(untouched)
    original = make_replaceable(copy_of(untouched))
    original, graph, untraced = functions_as_modules(original, chosen, batches, report)
    parts = list(walk(original))
    names = _select(original, parts, chosen, report)
    order = _execution_order(original, parts, names, graph, untraced, batches, report)

    converted = copy_of(original)
    parameters = sum(p.numel() for p in original.parameters())
    for name in order:
        module = original.get_submodule(name)
        try:
            domain, like = _domain(converted, name, margin, quantile, batches)
            if math.isinf(lipschitz(module, domain)) and chosen is None:
                raise ValueError(f"it jumps, and no polynomial comes close; targets={name!r} converts it anyway")
            found = fit(in_float64(module), degree, basis, domain=domain, method=method)
        except (ValueError, RuntimeError) as error:
            if chosen is not None or isinstance(module, ACTIVATIONS):
                raise
            report.not_converted.append((name, str(error)))  # it was only recognised, not asked for
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
        replace_module(converted, names_of(original, module), slaf)
        report.layers.append(LayerReport(name, module._get_name(), domain, found.max_error))
    report.parameters_added = sum(p.numel() for p in converted.parameters()) - parameters
    inside = measure(untouched, original, converted, report, batches)
    if graph is not None:
        propagate_bounds(original, graph, report, inside)
    report.ranges = ranges_of(converted, unseen or batches)
    return converted, report


def _check(model: Any, degree: Any, basis: Any, method: Any, margin: Any, outside: Any) -> None:
    check_model(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model is a {type(model).__name__}: {SCRIPTED}")
    bases.check_integer(degree, "degree", 0)
    bases.get(basis)
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(map(repr, METHODS))}")
    if not (isinstance(margin, Real) and 0 <= float(margin) < math.inf):
        raise ValueError(f"margin is {margin!r}; it must be a finite number from 0 up")
    check_outside(outside)


def _check_targets(targets: Any) -> list[Target]:
    one = isinstance(targets, (str, type, nn.Module)) or not isinstance(targets, Iterable)
    chosen = [targets] if one else list(targets)
    for target in chosen:
        if not (isinstance(target, str) or (isinstance(target, type) and issubclass(target, nn.Module))):
            raise TypeError(f"target {target!r} is neither a module's name nor a type of modules, such as nn.GELU")
    if not chosen:
        raise ValueError("targets is empty; name what to convert, or leave it out for all activations")
    return chosen


def _select(model: nn.Module, parts: list[Part], chosen: list[Target] | None, report: ConversionReport) -> list[str]:
    """The names of the modules to convert; those that are not converted go into the report."""
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
            matching = [name for name, module in modules.items() if matches(target, name, module)]
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
            raise ValueError(f"target {name!r} does not work element by element; a SLAF replaces only what does")
        else:
            kept.append(name)
    return kept


def _execution_order(
    model: nn.Module,
    parts: list[Part],
    names: list[str],
    graph: fx.Graph | None,
    untraced: str,
    batches: Batches,
    report: ConversionReport,
) -> list[str]:
    """The names in the order in which the modules first run; calls that cannot be converted go into the report."""
    order: list[str] = []
    left: dict[str, str] = {}

    def see(name, module, args, kwargs):
        if kwargs or len(args) != 1:
            left[name] = "called with more arguments than its input, or by keyword; call it with the input alone"
        elif not args[0].is_floating_point():
            raise ValueError(
                f"the input of {name} is {args[0].dtype} on the calibration data; it must be floating-point"
            )
        elif name not in order:
            order.append(name)

    included = [model]
    if graph is not None:  # it shows all calls except those inside its modules
        included = [model.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"]
    excluded = [m for name, m, found in parts if found or name in names or type(m).__module__ in NONLINEAR]
    calls = FunctionCalls(model, included, excluded)
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
        if call in NOT_POLYNOMIAL:
            continue
        what = call if isinstance(call, str) else call.__name__
        why = UNKNOWN
        if call in FUNCTIONAL:
            where = f"torch.fx cannot trace ({untraced})" if untraced else "torch.nn holds"
            why = f"called as a function in code that {where}; call an nn.{FUNCTIONAL[call].__name__} there instead"
        report.not_converted.append((f"{name}: {what}" if name else what, why))
    return [name for name in order if name not in left]


def _domain(
    model: nn.Module, name: str, margin: float, quantile: float, batches: Batches
) -> tuple[tuple[float, float], Tensor]:
    """The interval to fit on: that share of a module's inputs, plus the margin; and a tensor of their dtype and device.

    The quantiles are those of at most 100,000 random inputs of every batch.
    """
    ends, samples, random = [], [], np.random.default_rng(0)

    def see(module, args):
        ends.append(torch.stack(args[0].aminmax()))
        if quantile < 1:
            flat = args[0].flatten()
            if flat.numel() > SAMPLES:
                flat = flat[torch.from_numpy(random.integers(flat.numel(), size=SAMPLES)).to(flat.device)]
            samples.append(flat.double().cpu().numpy())

    hook = model.get_submodule(name).register_forward_pre_hook(see)
    for _ in batches.run(model):
        pass
    hook.remove()
    every = torch.stack(ends)
    lo, hi = float(every[:, 0].min()), float(every[:, 1].max())
    if not (math.isfinite(lo) and math.isfinite(hi)):
        raise ValueError(f"the input of {name} ranges over ({lo}, {hi}) on the calibration data; it must be finite")
    if quantile < 1:
        lo, hi = np.quantile(np.concatenate(samples), [0.5 - 0.5 * quantile, 0.5 + 0.5 * quantile]).tolist()
    widening = margin * (hi - lo) if hi > lo else 1e-3 * max(abs(lo), 1.0)
    return (lo - widening, hi + widening), every
