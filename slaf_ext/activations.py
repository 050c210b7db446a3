"""What counts as an activation: modules known by class, and functions that a model calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

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

# What is an activation, or serves as one, and is not converted: the report says so.
OTHERS: set[Callable | str] = {
    *(F.rrelu, F.rrelu_, F.prelu, torch.prelu, F.threshold, torch.threshold_, F.hardshrink, F.glu),
    *(F.softmax, F.softmin, F.log_softmax, F.gumbel_softmax, torch.softmax, torch.log_softmax, "softmax"),
    *("log_softmax", torch.clamp, torch.clamp_, "clamp", "clamp_", "clamp_min", "clamp_max", torch.maximum),
    *(torch.minimum, torch.max, torch.min, "max", "min", torch.abs, abs, "abs", torch.exp, "exp", torch.log, "log"),
    *(torch.sqrt, "sqrt", torch.rsqrt, "rsqrt", torch.sin, "sin", torch.cos, "cos", torch.where, torch.sign, "sign"),
}
