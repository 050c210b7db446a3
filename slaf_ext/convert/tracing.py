"""Activations that a model calls as functions: torch.fx finds those that it can trace, a watched run the others."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..activations import FUNCTIONAL
from ..nn import SLAF
from .calibration import Batches
from .discovery import CLOSED, walk, works_in_place

if TYPE_CHECKING:
    from .report import ConversionReport

Target = str | type[nn.Module]
UNKNOWN = "not a known elementwise function"

# Calls that serve as activations and are not converted; the report lists them.
OTHERS: set[Callable | str] = {
    *(F.rrelu, F.rrelu_, F.prelu, torch.prelu, F.threshold, torch.threshold_, F.hardshrink, F.glu),
    *(F.softmax, F.softmin, F.log_softmax, F.gumbel_softmax, torch.softmax, torch.log_softmax, "softmax"),
    *("log_softmax", torch.clamp, torch.clamp_, "clamp", "clamp_", "clamp_min", "clamp_max", torch.maximum),
    *(torch.minimum, torch.max, torch.min, "max", "min", torch.abs, abs, "abs", torch.exp, "exp", torch.log, "log"),
    *(torch.sqrt, "sqrt", torch.rsqrt, "rsqrt", torch.sin, "sin", torch.cos, "cos", torch.where, torch.sign, "sign"),
    *(torch.erf, torch.special.erf, "erf", torch.erfc, "erfc", torch.expm1, "expm1", torch.log1p, "log1p"),
    *(torch.sinh, "sinh", torch.cosh, "cosh", torch.atan, "atan", torch.reciprocal, "reciprocal", torch.clip, "clip"),
    *(torch.logaddexp, "logaddexp", torch.logsumexp, "logsumexp", "where", F.scaled_dot_product_attention),
    *(F.multi_head_attention_forward, "hardshrink", "prelu", torch.rrelu, torch.rrelu_),
}

# Calls that are no activations, and keep a network from being a polynomial; and what to do.
NOT_POLYNOMIAL: dict[Callable | str, str] = {
    **dict.fromkeys(
        [
            *(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
            *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, F.max_pool1d_with_indices),
            *(F.max_pool2d_with_indices, F.max_pool3d_with_indices, F.fractional_max_pool2d, F.fractional_max_pool3d),
        ],
        "a maximum; call avg_pool instead, and train again",
    ),
    **dict.fromkeys([torch.amax, "amax", torch.amin, "amin", torch.topk, "topk"], "the largest or the smallest"),
    **dict.fromkeys(
        [
            *(F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm, F.local_response_norm, F.normalize),
            *(F.lp_pool1d, F.lp_pool2d, torch.norm, "norm", torch.std, "std", torch.linalg.vector_norm),
        ],
        "takes a root, or divides by a function of its input",
    ),
}


def matches(target: Target, name: str, module: nn.Module) -> bool:
    return name == target if isinstance(target, str) else isinstance(module, target)


def functions_as_modules(
    model: nn.Module, chosen: list[Target] | None, batches: Batches, report: ConversionReport
) -> tuple[nn.Module, fx.Graph | None, str]:
    """The model with its functional activations as modules, and its graph; or no graph and the reason."""
    leaves = [module for _, module, found in walk(model) if found]
    for name, module in model.named_modules(remove_duplicate=False):
        if any(matches(target, name, module) for target in chosen or ()):
            leaves.append(module)
    traced, reason = _traced(model, leaves, batches)
    if traced is None:
        return model, None, reason
    changed = False
    for node in list(traced.graph.nodes):
        if node.op == "call_module":
            module = model.get_submodule(node.target)
            in_place = getattr(module, "inplace", False) or (module in leaves and works_in_place(module))
            changed |= in_place and _redirect_later_readers(node, node.args[0], node)
        elif node.op in ("call_function", "call_method"):
            if node.target in FUNCTIONAL:
                changed |= _call_to_module(traced, node, report)
            elif node.target in OTHERS:
                report.not_converted.append((node.name, UNKNOWN))
    if not changed:
        return model, traced.graph, ""
    traced.graph.lint()
    traced.recompile()
    return traced, traced.graph, ""


class _Tracer(fx.Tracer):
    """Keeps `leaves` and SLAFs whole, where they are called with one argument."""

    def __init__(self, leaves: list[nn.Module]) -> None:
        super().__init__()
        self.leaves = leaves
        self.has_one_argument = True

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.has_one_argument = len(args) == 1 and not kwargs
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, SLAF) or (m in self.leaves and self.has_one_argument)
        return whole or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module, leaves: list[nn.Module], batches: Batches) -> tuple[fx.GraphModule | None, str]:
    """The model as torch.fx traces it, or None and the reason why it cannot."""
    parameters = inspect.signature(model.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    # A proxy is never None, so a model that tests whether an argument was given may need the defaults instead.
    for fixed in [None, defaults] if defaults else [None]:
        try:
            traced = fx.GraphModule(model, _Tracer(leaves).trace(model, fixed))
            batches.try_on(traced)
            return traced, ""
        except Exception as error:  # the model's own code may raise anything when it gets a proxy
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return None, reason


def _call_to_module(traced: fx.GraphModule, node: fx.Node, report: ConversionReport) -> bool:
    """Replaces a functional activation in the graph by a call of its module. Whether it could."""
    kind = FUNCTIONAL[node.target]
    kwargs = {k: v for k, v in node.kwargs.items() if k not in ("input", "inplace")}
    source = node.args[0] if node.args else node.kwargs["input"]
    # These take no argument but `inplace`.
    arguments = node.args[1:] if kind not in (nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Mish) else ()
    try:
        module = kind(*arguments, **kwargs)
    except TypeError as error:
        report.not_converted.append((node.name, f"its arguments are not those of nn.{kind.__name__} ({error})"))
        return False
    name = node.name
    while hasattr(traced, name):
        name += "_call"
    traced.add_submodule(name, module.eval())
    with traced.graph.inserting_before(node):
        call = traced.graph.call_module(name, (source,))
    if node.kwargs.get("inplace") or str(getattr(node.target, "__name__", node.target)).endswith("_"):
        _redirect_later_readers(node, source, call)
    node.replace_all_uses_with(call)
    traced.graph.erase_node(node)
    return True


def _redirect_later_readers(node: fx.Node, source: Any, result: fx.Node) -> bool:
    """Makes what reads `source` after `node`, which works in place, read its result. Whether anything did."""
    order = {each: i for i, each in enumerate(node.graph.nodes)}
    late = [user for user in source.users if order[user] > order[node]]
    for user in late:
        user.replace_input_with(source, result)
    return bool(late)


class FunctionCalls(TorchFunctionMode):
    """Records the activations that a model calls as functions while it runs, and the module that calls each.

    Args:
        model: what is watched, as long as the mode is on.
        included: modules whose calls count, and those of the modules that they hold.
        excluded: the exceptions.

    Attributes:
        found: (name of the module, key of FUNCTIONAL, OTHERS or NOT_POLYNOMIAL), each once, in order of execution.
    """

    def __init__(self, model: nn.Module, included: list[nn.Module], excluded: list[nn.Module]) -> None:
        super().__init__()
        self.found: list[tuple[str, Callable | str]] = []
        self._stack = [("", False)]  # the modules that are running, and whether their calls count
        self._hooks = []
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks, and hides its calls
                continue
            counts = True if module in included else None  # None: as in the module that calls it
            if module in excluded or isinstance(module, CLOSED):
                counts = False
            self._hooks += [
                module.register_forward_pre_hook(partial(self._enter, name, counts)),
                module.register_forward_hook(self._leave, always_call=True),
            ]

    def _enter(self, name: str, counts: bool | None, module: nn.Module, args: Any) -> None:
        self._stack.append((name, self._stack[-1][1] if counts is None else counts))

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self._stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, counts = self._stack[-1]
        if counts and any(isinstance(a, Tensor) and a.is_floating_point() for a in (*args, *kwargs.values())):
            own = getattr(func, "__name__", "")
            call = own if getattr(Tensor, own, None) is func else func  # methods by name, as torch.fx has them
            if (call in FUNCTIONAL or call in OTHERS or call in NOT_POLYNOMIAL) and (name, call) not in self.found:
                self.found.append((name, call))
        return func(*args, **kwargs)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
