"""The activations of torch.nn: one list, and how to replace one within a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Activation(NamedTuple):
    """An activation: its module, and the functions and methods that compute the same.

    The module takes the arguments of such a call after the input.
    """

    module: type[nn.Module]
    calls: tuple[Callable | str, ...] = ()


# By the name that `fit` and `SLAF(init=…)` take for them.
NAMED = {
    "relu": Activation(nn.ReLU, (F.relu, torch.relu, torch.relu_, "relu", "relu_")),
    "relu6": Activation(nn.ReLU6, (F.relu6,)),
    "leaky_relu": Activation(nn.LeakyReLU, (F.leaky_relu, F.leaky_relu_)),
    "elu": Activation(nn.ELU, (F.elu, F.elu_)),
    "selu": Activation(nn.SELU, (F.selu, torch.selu, torch.selu_)),
    "celu": Activation(nn.CELU, (F.celu, torch.celu, torch.celu_)),
    "gelu": Activation(nn.GELU, (F.gelu,)),
    "silu": Activation(nn.SiLU, (F.silu,)),
    "mish": Activation(nn.Mish, (F.mish,)),
    "softplus": Activation(nn.Softplus, (F.softplus,)),
    "softsign": Activation(nn.Softsign, (F.softsign,)),
    "logsigmoid": Activation(nn.LogSigmoid, (F.logsigmoid,)),
    "tanh": Activation(nn.Tanh, (torch.tanh, F.tanh, torch.tanh_, "tanh", "tanh_")),
    "sigmoid": Activation(
        nn.Sigmoid, (torch.sigmoid, F.sigmoid, torch.sigmoid_, torch.special.expit, "sigmoid", "sigmoid_")
    ),
    "hardtanh": Activation(nn.Hardtanh, (F.hardtanh, F.hardtanh_)),
    "hardsigmoid": Activation(nn.Hardsigmoid, (F.hardsigmoid,)),
    "hardswish": Activation(nn.Hardswish, (F.hardswish,)),
}
# Only `convert` and `training.replace_activations` know these.
UNNAMED = (
    Activation(nn.PReLU),
    Activation(nn.RReLU),
    Activation(nn.Softshrink, (F.softshrink,)),
    Activation(nn.Tanhshrink, (F.tanhshrink,)),
)

# Modules, calls and functions, each derived from the list.
ACTIVATIONS: tuple[type[nn.Module], ...] = tuple(each.module for each in (*NAMED.values(), *UNNAMED))
FUNCTIONAL: dict[Callable | str, type[nn.Module]] = {
    call: each.module for each in (*NAMED.values(), *UNNAMED) for call in each.calls
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: each.calls[0] for name, each in NAMED.items()},  # type: ignore[misc]
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "abs": torch.abs,
    "exp": torch.exp,
    "sin": torch.sin,
    "cos": torch.cos,
}


def replace_module(model: nn.Module, names: list[str], new: nn.Module) -> None:
    """Puts `new` in place of the submodules with these names."""
    for name in names:
        parent, _, attribute = name.rpartition(".")
        set_module(model.get_submodule(parent), attribute, new)


def set_module(parent: nn.Module, attribute: str, module: nn.Module) -> None:
    """Sets an attribute to a module, in a way that copies of the parent keep."""
    setattr(parent, attribute, module)
    if isinstance(parent, nn.TransformerDecoderLayer):
        # Its __setstate__ looks for the activation in the instance's dictionary alone, and otherwise puts relu there.
        vars(parent)[attribute] = module


def names_of(model: nn.Module, module: nn.Module) -> list[str]:
    """Every name that a module has within a model."""
    return [name for name, each in model.named_modules(remove_duplicate=False) if each is module]
