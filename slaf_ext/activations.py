"""What counts as an activation: modules known by class or by what they do, and functions that a model calls.

A function cannot be seen from outside, so :class:`FunctionCalls` watches a model run.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode

from .nn import SLAF

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Softsign,
    nn.LogSigmoid,
    nn.Tanh,
    nn.Sigmoid,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.RReLU,
    nn.Softshrink,
    nn.Tanhshrink,
)

# Functional calls, and the module that stands for each. Its arguments are those of the call after the input.
FUNCTIONAL: dict[Callable | str, type[nn.Module]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.relu_: nn.ReLU,
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    F.relu6: nn.ReLU6,
    F.leaky_relu: nn.LeakyReLU,
    F.leaky_relu_: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.elu_: nn.ELU,
    F.selu: nn.SELU,
    torch.selu: nn.SELU,
    torch.selu_: nn.SELU,
    F.celu: nn.CELU,
    torch.celu: nn.CELU,
    torch.celu_: nn.CELU,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.mish: nn.Mish,
    F.softplus: nn.Softplus,
    F.softsign: nn.Softsign,
    F.logsigmoid: nn.LogSigmoid,
    F.tanh: nn.Tanh,
    torch.tanh: nn.Tanh,
    torch.tanh_: nn.Tanh,
    "tanh": nn.Tanh,
    "tanh_": nn.Tanh,
    F.sigmoid: nn.Sigmoid,
    torch.sigmoid: nn.Sigmoid,
    torch.sigmoid_: nn.Sigmoid,
    torch.special.expit: nn.Sigmoid,
    "sigmoid": nn.Sigmoid,
    "sigmoid_": nn.Sigmoid,
    F.hardtanh: nn.Hardtanh,
    F.hardtanh_: nn.Hardtanh,
    F.hardsigmoid: nn.Hardsigmoid,
    F.hardswish: nn.Hardswish,
    F.softshrink: nn.Softshrink,
    F.tanhshrink: nn.Tanhshrink,
}

# Functional calls that serve as activations and are not converted: the report says so.
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

# Modules that are not looked into: their code cannot be changed, or computes weights.
CLOSED = (SLAF, ParametrizationList, torch.jit.ScriptModule)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation: known by class, or without parameters, element by element and not affine.

    An nn.Sequential is none: its members are looked at one by one.
    """
    if isinstance(module, ACTIVATIONS):
        return True
    if isinstance(module, (nn.Sequential, torch.jit.ScriptModule)) or any(True for _ in module.parameters()):
        return False
    answers = _answers(module)
    return answers is not None and not _affine(*answers)


def is_elementwise(module: nn.Module) -> bool:
    """Whether a module answers every number with one function of that number alone, as far as trials show."""
    return _answers(module) is not None


def works_in_place(module: nn.Module) -> bool:
    """Whether a module that works element by element leaves its result in its input."""
    if not is_elementwise(module):
        return False
    x = _numbers()
    in_float64(module)(x)
    return not torch.equal(x, _numbers())


def in_float64(module: nn.Module) -> Callable[[Any], Tensor]:
    """A copy of a module as a function of float64 tensors or arrays on the host. What it makes itself is there too."""
    function = copy.deepcopy(module).double().cpu()

    def call(x: Any) -> Tensor:
        with torch.no_grad(), torch.device("cpu"):
            return function(torch.as_tensor(x))

    return call


def _numbers() -> Tensor:
    # Lopsided, so that no sum or mean is 0; with huge ones, so that a branch on the data shows; and out of order.
    parts = np.linspace(-8, 8, 24), np.logspace(-3, 12, 12), -np.logspace(-2, 10, 12)
    return torch.from_numpy(np.concatenate(parts)[np.arange(48) * 29 % 48])


def _answers(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Numbers, and what a module makes of each; None where that depends on more, or where it spoils its input."""
    x = _numbers()
    try:
        function = in_float64(module)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about shapes that the module was not made for
            y = torch.cat([function(number.clone()) for number in x.split(1)])
            fits = y.shape == x.shape and y.is_floating_point()
            for shape in ((48,), (4, 12), (2, 4, 6), (3, 2, 2, 4)):
                given = x.clone().view(shape)
                out = function(given)
                fits &= out.shape == shape and torch.allclose(out.flatten(), y, equal_nan=True)
                fits &= torch.equal(given.flatten(), x) or torch.equal(given, out)
    except Exception:  # whatever the module's own code does with such inputs
        return None
    return (x, y) if fits else None


def _affine(x: Tensor, y: Tensor) -> bool:
    low, high, middle = x.argmin(), x.argmax(), x.abs().argmin()
    slope = (y[high] - y[low]) / (x[high] - x[low])
    return torch.allclose(y, (y[middle] + slope * (x - x[middle])).to(y), rtol=1e-6, atol=1e-6)


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """The name of each module within a model, the module, and whether it is an activation; each module once.

    What an activation holds belongs to it. SLAFs and what computes weights (torch.nn.utils.parametrize) are left out.
    """
    known: dict[nn.Module, bool] = {}
    closed: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if not name or name.startswith(tuple(closed)):
            continue
        new = module not in known
        if new:
            known[module] = is_activation(module)
        if known[module] or isinstance(module, CLOSED):
            closed.append(name + ".")
        if new and not isinstance(module, (SLAF, ParametrizationList)):
            yield name, module, known[module]


def put(parent: nn.Module, name: str, module: nn.Module) -> None:
    """Sets an attribute to a module, and so that copies of the parent have it."""
    setattr(parent, name, module)
    if isinstance(parent, nn.TransformerDecoderLayer):
        # Its __setstate__ looks for the activation here alone, and otherwise takes relu.
        vars(parent)[name] = module


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy that has the activations of the model."""
    copied = copy.deepcopy(model)
    for old, new in zip(model.modules(), copied.modules(), strict=True):
        if isinstance(old, nn.TransformerDecoderLayer) and isinstance(old.activation, nn.Module):
            put(new, "activation", dict(new.named_children())["activation"])
    return copied


class _Function(nn.Module):
    """A function as a module, which can be found, watched and replaced."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def _get_name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


def with_modules(model: nn.Module) -> nn.Module:
    """The model, changed where an activation stands that could not be replaced as it is."""
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            function = module.activation
            put(module, "activation", function if isinstance(function, nn.Module) else _Function(function))
        # In evaluation torch has a fast path around these modules' code, and computes relu or gelu whatever they hold.
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    has_members = any(True for _ in model.children())
    return nn.Sequential(model) if not has_members and is_activation(model) else model


class FunctionCalls(TorchFunctionMode):
    """Notes the activations that a model calls as functions while it runs, and the module that calls each.

    Args:
        model: what is watched, as long as the mode is on.
        entered: the modules whose calls count, and the calls of the modules that they hold.
        passed_over: the exceptions to that.

    Attributes:
        found: (name of the module, key of FUNCTIONAL or of OTHERS), each once, in the order of execution.
    """

    def __init__(self, model: nn.Module, entered: list[nn.Module], passed_over: list[nn.Module]) -> None:
        super().__init__()
        self.found: list[tuple[str, Callable | str]] = []
        self._inside = [("", False)]  # the modules that run, and whether their calls count
        self._hooks = []
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks, and shows no calls
                continue
            counts = True if module in entered else None  # None: as where it is called
            if module in passed_over or isinstance(module, CLOSED):
                counts = False
            self._hooks += [
                module.register_forward_pre_hook(partial(self._enter, name, counts)),
                module.register_forward_hook(self._leave, always_call=True),
            ]

    def _enter(self, name: str, counts: bool | None, module: nn.Module, args: Any) -> None:
        self._inside.append((name, self._inside[-1][1] if counts is None else counts))

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self._inside.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, counts = self._inside[-1]
        numbers = any(isinstance(a, Tensor) and a.is_floating_point() for a in (*args, *kwargs.values()))
        if counts and numbers:
            own = getattr(func, "__name__", "")
            call = own if getattr(Tensor, own, None) is func else func  # fx, too, has methods by name
            if (call in FUNCTIONAL or call in OTHERS) and (name, call) not in self.found:
                self.found.append((name, call))
        return func(*args, **kwargs)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
