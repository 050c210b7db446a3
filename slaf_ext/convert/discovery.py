"""The activations within a model: modules known by their class, or recognised by running them on trial inputs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ..activations import ACTIVATIONS, set_module
from ..nn import SLAF
from ..torch_private import BATCH_NORM

# The modules of torch.nn that define activations, or layers with activations inside.
NONLINEAR = (nn.ReLU.__module__, nn.LSTM.__module__)
MAX_POOLING = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.FractionalMaxPool2d, nn.FractionalMaxPool3d),
)
NORMALISING = (
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.LPPool1d, nn.LPPool2d, nn.LPPool3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)

# Modules whose members are not searched: their code cannot be changed, or they compute weights.
CLOSED = (SLAF, ParametrizationList, torch.jit.ScriptModule)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation: known by class, or free of parameters, elementwise and not affine.

    An nn.Sequential is not: its members are tested one by one.
    """
    if isinstance(module, ACTIVATIONS):
        return True
    if isinstance(module, (nn.Sequential, torch.jit.ScriptModule)) or any(True for _ in module.parameters()):
        return False
    trial = _trial(module)
    return trial is not None and not _is_affine(*trial)


def why_not_polynomial(module: nn.Module, found: bool) -> str | None:
    """What keeps a network with this module from being a polynomial; `found`: whether it is an activation."""
    name = type(module).__name__
    if isinstance(module, MAX_POOLING):
        return f"a maximum; put nn.{name.replace('Fractional', '').replace('Max', 'Avg')} in its place, and train again"
    if found:
        return f"{name} is an activation; slaf_ext.convert replaces it"
    if isinstance(module, NORMALISING):
        return f"{name} takes a root, or divides by a function of its input; BatchNorm is linear in evaluation mode"
    if isinstance(module, BATCH_NORM) and module.running_var is None:
        return f"{name} divides by a deviation of each batch; let it keep running statistics"
    return f"{name} is no polynomial" if type(module).__module__ in NONLINEAR else None


def is_elementwise(module: nn.Module) -> bool:
    """Whether each element of a module's output depends only on that element of its input, as far as trials show."""
    return _trial(module) is not None


def works_in_place(module: nn.Module) -> bool:
    """Whether an elementwise module writes its result into its input."""
    if not is_elementwise(module):
        return False
    x = _trial_inputs()
    in_float64(module)(x)
    return not torch.equal(x, _trial_inputs())


def in_float64(module: nn.Module) -> Callable[[Any], Tensor]:
    """A copy of a module as a function of float64 tensors or arrays on the CPU; what it creates is on the CPU too."""
    function = copy.deepcopy(module).double().cpu()

    def call(x: Any) -> Tensor:
        with torch.no_grad(), torch.device("cpu"):
            return function(torch.as_tensor(x))

    return call


def _trial_inputs() -> Tensor:
    # Asymmetric, so that no sum or mean is 0; with huge values, which reach every branch on the data; and shuffled.
    parts = np.linspace(-8, 8, 24), np.logspace(-3, 12, 12), -np.logspace(-2, 10, 12)
    return torch.from_numpy(np.concatenate(parts)[np.arange(48) * 29 % 48])


def _trial(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Trial inputs and a module's output for each; None if outputs in batches differ, or if it spoils its input."""
    x = _trial_inputs()
    try:
        function = in_float64(module)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about shapes that the module was not made for
            y = torch.cat([function(element.clone()) for element in x.split(1)])
            fits = y.shape == x.shape and y.is_floating_point()
            for shape in ((48,), (4, 12), (2, 4, 6), (3, 2, 2, 4)):
                given = x.clone().view(shape)
                out = function(given)
                fits &= out.shape == shape and torch.allclose(out.flatten(), y, equal_nan=True)
                fits &= torch.equal(given.flatten(), x) or torch.equal(given, out)
    except Exception:  # the module's own code may raise anything
        return None
    return (x, y) if fits else None


def _is_affine(x: Tensor, y: Tensor) -> bool:
    low, high, middle = x.argmin(), x.argmax(), x.abs().argmin()
    slope = (y[high] - y[low]) / (x[high] - x[low])
    return torch.allclose(y, (y[middle] + slope * (x - x[middle])).to(y), rtol=1e-6, atol=1e-6)


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """The name of each module within a model, the module, and whether it is an activation; each module once.

    The members of an activation belong to it. SLAFs and modules that compute weights (torch.nn.utils.parametrize) are
    left out.
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


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy that keeps the activations of nn.TransformerDecoderLayer; see `set_module`."""
    copied = copy.deepcopy(model)
    for old, new in zip(model.modules(), copied.modules(), strict=True):
        if isinstance(old, nn.TransformerDecoderLayer) and isinstance(old.activation, nn.Module):
            set_module(new, "activation", dict(new.named_children())["activation"])
    return copied


class _Function(nn.Module):
    """A function as a module, which can be found, hooked and replaced."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def _get_name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


def make_replaceable(model: nn.Module) -> nn.Module:
    """The model, with a module for every activation that is a mere attribute, or the model itself."""
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            function = module.activation
            set_module(module, "activation", function if isinstance(function, nn.Module) else _Function(function))
        # In evaluation torch has a fast path that skips these modules' code and computes relu or gelu in any case.
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    has_members = any(True for _ in model.children())
    return nn.Sequential(model) if not has_members and is_activation(model) else model
