"""Recipes: an activation with the optimiser and the schedule that train it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import bases
from ..nn import SLAF
from .parameters import param_groups


class _BatchNorm(nn.BatchNorm1d):
    """BatchNorm over dim 1 of x, for any number of dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"x has shape {tuple(input.shape)}; its dim 1 must hold {self.num_features} channels")


@dataclass(frozen=True)
class Recipe:
    """How to build and train a network with SLAFs; made by :func:`recipe`, changed by ``dataclasses.replace``.

    Attributes:
        name, use, fails: its name, what it is for, and where it fails.
        degree: of every SLAF.
        options: the other arguments of :class:`slaf_ext.SLAF`.
        batch_norm: whether there is a BatchNorm before every SLAF.
        lr, coeffs_lr: the peak learning rates of the weights and of the coefficients.
        warmup: the fraction of the steps in which the rates rise to their peaks; afterwards they fall to almost zero.
        clip: for ``torch.nn.utils.clip_grad_norm_``.
        weight_decay: of the weights, decoupled; the coefficients have none.
        range_penalty: the strength for :func:`range_penalty`; 0 for none.
    """

    name: str
    use: str
    fails: str
    degree: int
    options: dict[str, Any]
    batch_norm: bool = False
    lr: float = 1e-2
    coeffs_lr: float = 1e-2
    warmup: float = 0.3
    clip: float = 5.0
    weight_decay: float = 0.0
    range_penalty: float = 0.0

    def activation(self, channels: int) -> nn.Module:
        """A SLAF with one polynomial for each channel of x, (N, channels, …), after a BatchNorm if there is one."""
        slaf = SLAF(self.degree, bases.check_integer(channels, "channels", 1), **self.options)
        return nn.Sequential(_BatchNorm(channels), slaf) if self.batch_norm else slaf

    def optimizer(
        self, model: nn.Module, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """AdamW with two learning rates, and a one-cycle schedule: call ``schedule.step()`` after every batch."""
        steps = bases.check_integer(epochs, "epochs", 1) * bases.check_integer(steps_per_epoch, "steps_per_epoch", 1)
        groups = param_groups(model, self.lr, coeffs_lr=self.coeffs_lr, weight_decay=self.weight_decay)
        optimizer = torch.optim.AdamW(groups)
        rates = [self.lr, self.coeffs_lr]
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rates, total_steps=steps + 1, pct_start=self.warmup
        )


_RECIPES = {
    r.name: r
    for r in (
        Recipe(
            "polynomial",
            use="targets that are polynomials, or nearly so: a low degree in few layers",
            fails="gradually, with every layer beyond two; on targets that oscillate or have kinks",
            degree=2,
            options={"basis": "hermite_e", "domain": None, "init": "noisy_identity"},
        ),
        Recipe(
            "bounded",
            use="irregular targets of few inputs: a high degree, normalised, and constant outside its domain",
            fails="with more than three layers; with small batches, whose statistics are noisy",
            degree=7,
            options={
                "domain": (-3.0, 3.0),
                "outside": "clamp",
                "normalize": True,
                "momentum": 0.1,
                "init": "noisy_identity",
            },
        ),
        Recipe(
            "drop-in",
            use="in place of ReLU or GELU, after a BatchNorm, in deep networks too",
            fails="without large batches, as BatchNorm does; where a polynomial is needed everywhere",
            degree=5,
            options={"domain": (-3.0, 3.0), "outside": "linear", "init": "gelu"},
            batch_norm=True,
            weight_decay=1e-4,
        ),
        Recipe(
            "encrypted",
            use="networks that must be polynomial everywhere: BatchNorm folds into the layer before it",
            fails="where inputs leave the range seen in training; with many layers, because degrees multiply",
            degree=2,
            options={"basis": "hermite_e", "domain": (-4.0, 4.0), "outside": "extrapolate", "init": "gelu"},
            batch_norm=True,
            lr=3e-3,
            coeffs_lr=3e-3,
            weight_decay=1e-4,
            range_penalty=0.1,
        ),
        Recipe(
            "herpn",
            use="the same, with every term normalised by itself, so that no BatchNorm is needed before it",
            fails="as encrypted does, and with small batches; its start is for degree 2 alone",
            degree=2,
            options={
                "basis": "hermite_e_normalized",
                "domain": None,
                "outside": "extrapolate",
                "normalize": True,
                "momentum": 0.1,
                # ReLU's coefficients in this basis: E[max(X, 0) φ_k(X)] for a standard normal X.
                "init": (1 / math.sqrt(2 * math.pi), 0.5, 0.5 / math.sqrt(math.pi)),
            },
            lr=3e-3,
            coeffs_lr=3e-3,
            weight_decay=1e-4,
        ),
    )
}


def recipe(name: str) -> Recipe:
    """A recipe by name: "polynomial", "bounded", "drop-in", "encrypted" or "herpn".

    | recipe | for | where it fails |
    |---|---|---|
    | polynomial | targets that are polynomials | oscillations and kinks; many layers |
    | bounded | irregular targets of few inputs | more than three layers, small batches |
    | drop-in | in place of ReLU or GELU, at any depth | where BatchNorm does |
    | encrypted | networks that must be polynomial everywhere | inputs beyond the range seen, many layers |
    | herpn | the same, each Hermite term normalised | the same; small batches |

    Raises:
        ValueError: another name.

    Example:
        >>> import torch
        >>> r = recipe("drop-in")
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), r.activation(8), torch.nn.Linear(8, 1))
        >>> optimizer, schedule = r.optimizer(net, epochs=2, steps_per_epoch=10)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     net(torch.randn(16, 4)).square().mean().backward()
        ...     _ = torch.nn.utils.clip_grad_norm_(net.parameters(), r.clip)
        ...     optimizer.step()
        ...     schedule.step()
        >>> r.fails
        'without large batches, as BatchNorm does; where a polynomial is needed everywhere'

    Source: this project's experiments, ``python -m examples.experiments``; "herpn" is the activation of AESPA
    (arXiv:2201.06699), a Hermite expansion of ReLU whose terms are normalised one by one.
    """
    if not isinstance(name, str) or name not in _RECIPES:
        raise ValueError(f"recipe is {name!r}; it must be one of {', '.join(_RECIPES)}")
    found = _RECIPES[name]
    return replace(found, options=dict(found.options))
