"""The two kinds of parameters, coefficients and weights, and how to train them separately."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from .. import bases
from ..arguments import check_model
from ..nn import SLAF


def slafs(model: nn.Module) -> list[SLAF]:
    """The SLAF modules of a model, each once.

    Raises:
        ValueError: the model has none.
    """
    check_model(model)
    found = [module for module in model.modules() if isinstance(module, SLAF)]
    if not found:
        raise ValueError("the model holds no SLAF; slaf_ext.convert or training.replace_activations puts them in")
    return found


def coefficients(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model's SLAFs: their coefficients, and their gates if they have any."""
    return list({id(p): p for module in slafs(model) for p in module.parameters()}.values())


def weights(model: nn.Module) -> list[nn.Parameter]:
    """All other parameters of a model."""
    excluded = {id(p) for p in coefficients(model)}
    return [p for p in model.parameters() if id(p) not in excluded]


def param_groups(model: nn.Module, lr: float, *, coeffs_lr: float | None = None, **options: Any) -> list[dict]:
    """Two learning rates: parameter groups for an optimiser, the weights first, the coefficients second.

    Args:
        model: any module with SLAFs.
        lr: the weights' rate.
        coeffs_lr: the coefficients' rate; None for five times `lr`.
        options: for both groups, except `weight_decay`, which is for the weights only; for the coefficients there is
            :func:`coefficient_penalty`.

    Example:
        >>> import torch, slaf_ext
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), slaf_ext.SLAF(4))
        >>> optimizer = torch.optim.Adam(param_groups(net, lr=1e-3))
        >>> [(group["lr"], len(group["params"])) for group in optimizer.param_groups]
        [(0.001, 2), (0.005, 1)]

    Source: the authors' code of arXiv:1906.09529, "two learning rates", with that factor.
    """
    wanted = "a finite number from 0 up"
    lr = bases.check_real(lr, "lr", lambda t: 0 <= t < math.inf, wanted)
    if coeffs_lr is not None:
        coeffs_lr = bases.check_real(coeffs_lr, "coeffs_lr", lambda t: 0 <= t < math.inf, wanted)
    rate = 5 * lr if coeffs_lr is None else coeffs_lr
    return [
        {"params": weights(model), "lr": lr, **options},
        {"params": coefficients(model), "lr": rate, **options, "weight_decay": 0.0},
    ]


def freeze_weights(model: nn.Module, frozen: bool = True) -> None:
    """The second of two phases: train the coefficients only. ``frozen=False`` trains the weights again.

    Phase one trains with an ordinary activation; :func:`slaf_ext.convert` replaces it by SLAFs; phase two trains these
    briefly. Also call ``model.eval()`` if running statistics of BatchNorm must not change. ``frozen=False`` unfreezes
    all weights, including those that were frozen elsewhere.

    Example:
        >>> import torch, slaf_ext
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), slaf_ext.SLAF(4))
        >>> freeze_weights(net)
        >>> [name for name, p in net.named_parameters() if p.requires_grad]
        ['1.coeffs']

    Source: B. Pulido-Gaytan, A. Tchernykh, *Self-learning activation functions to increase accuracy of
    privacy-preserving convolutional neural networks with homomorphic encryption*, PLOS ONE 19(7), 2024.
    """
    _freeze(weights(model), frozen)


def freeze_coefficients(model: nn.Module, frozen: bool = True) -> None:
    """Trains the weights only: the opposite of :func:`freeze_weights`.

    Example:
        >>> import torch, slaf_ext
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), slaf_ext.SLAF(4))
        >>> freeze_coefficients(net)
        >>> [name for name, p in net.named_parameters() if p.requires_grad]
        ['0.weight', '0.bias']
    """
    _freeze(coefficients(model), frozen)


def _freeze(parameters: list[nn.Parameter], frozen: bool) -> None:
    for p in parameters:
        p.requires_grad_(not frozen)
        if frozen:
            p.grad = None


def alternate(model: nn.Module, step: int, period: int) -> bool:
    """Trains weights and coefficients in turn, `period` steps each; call it at the start of every step.

    The optimiser may hold all parameters: it skips those that have no gradient in this step.

    Returns:
        Whether the coefficients are trained in this step.

    Example:
        >>> import torch, slaf_ext
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), slaf_ext.SLAF(4))
        >>> [alternate(net, step, period=2) for step in range(6)]
        [False, False, True, True, False, False]

    Source: this project's own; the authors of arXiv:1906.09529 update both together.
    """
    step, period = bases.check_integer(step, "step", 0), bases.check_integer(period, "period", 1)
    train_coefficients = step // period % 2 == 1
    freeze_weights(model, train_coefficients)
    freeze_coefficients(model, not train_coefficients)
    return train_coefficients
