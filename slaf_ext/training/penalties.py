"""Penalties on the coefficients, and on inputs outside the domain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import bases
from ..nn import SLAF
from .parameters import slafs


@torch.no_grad()
def coefficient_penalty(
    model: nn.Module, strength: float, *, norm: int = 2, degree_weight: Callable[[int, int], float] | None = None
) -> None:
    """A decoupled penalty on the coefficients: a separate step, after ``optimizer.step()``.

    With s_k = strength · degree_weight(k, n) the step is a_k ← a_k − 2 s_k a_k for L2 (what gradient descent on
    s_k a_k² does) and a_k ← sign(a_k) max(|a_k| − s_k, 0) for L1 (soft thresholding, which reaches exact zeros).

    Args:
        model: any module with SLAFs. Frozen coefficients do not change.
        strength: from 0 up; it includes the learning rate.
        norm: 1 or 2.
        degree_weight: a function of (k, n), n the degree; None for 1. The authors' variant is
            ``lambda k, n: 2.0 ** (n + 1 - k)``.

    Raises:
        ValueError: a norm other than 1 or 2, a negative strength, or an L2 step that would overshoot zero.

    Example:
        >>> import torch, slaf_ext
        >>> f = slaf_ext.SLAF(2, init=torch.tensor([1.0, -0.05, 0.2]))
        >>> coefficient_penalty(f, 0.1, norm=1)
        >>> f.coeffs.detach().round(decimals=4)
        tensor([0.9000, -0.0000, 0.1000])

    Source: the authors' code of arXiv:1906.09529, "decoupled penalties", for the degree weights; soft thresholding is
    the proximal step of the L1 norm.
    """
    if norm not in (1, 2):
        raise ValueError(f"norm is {norm!r}; it must be 1 or 2")
    strength = _check_strength(strength)
    for module in slafs(model):
        n = module.degree
        strengths = [strength * (degree_weight(k, n) if degree_weight else 1.0) for k in range(n + 1)]
        if min(strengths) < 0:
            raise ValueError(f"degree_weight gives a strength of {min(strengths):.3g}; all must be from 0 up")
        if norm == 2 and max(strengths) > 0.5:
            raise ValueError(f"an L2 step of strength {max(strengths):.3g} overshoots zero; it must be at most 0.5")
        for p in [p for p in module.parameters() if p.requires_grad and p.shape[-1:] == (n + 1,)]:
            s = torch.tensor(strengths, dtype=p.dtype, device=p.device)
            p.copy_(torch.sign(p) * (p.abs() - s).clamp(min=0) if norm == 1 else p * (1 - 2 * s))


class RangeWatch:
    """Watches the inputs of SLAFs; made by :func:`range_penalty`."""

    def __init__(self, modules: list[SLAF], strength: float, interval: tuple[float, float] | None) -> None:
        self.strength = strength
        self.interval = interval
        self._first = modules[0]
        self._terms: list[Tensor] = []
        self._hooks = [module.register_forward_pre_hook(self._see, with_kwargs=True) for module in modules]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_terms": []}  # in a copy of a model: tensors with a graph cannot be copied

    def _see(self, module: SLAF, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        lo, hi = self.interval or module.domain or module.basis.domain
        x = args[0] if args else kwargs["x"]
        if x.numel() and torch.is_grad_enabled():
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            self._terms.append((wide - wide.clamp(lo, hi)).square().mean())

    def penalty(self) -> Tensor:
        """The penalty of the forward passes since the last call; zero if there were none."""
        terms, self._terms = self._terms, []
        if terms:
            return self.strength * torch.stack(terms).sum()
        coeffs = self._first.coeffs
        return torch.zeros((), dtype=torch.promote_types(coeffs.dtype, torch.float32), device=coeffs.device)

    def remove(self) -> None:
        """Stops watching."""
        for hook in self._hooks:
            hook.remove()


def range_penalty(
    model: nn.Module, strength: float = 1.0, *, interval: tuple[float, float] | None = None
) -> RangeWatch:
    """A penalty on inputs of SLAFs outside an interval, to add to the loss.

    Each module contributes the mean over the elements of x of (distance of x from the interval)². The returned object
    watches every forward pass that records gradients; its ``penalty()`` is `strength` times the sum of the
    contributions since the last call, and ``remove()`` stops watching. Create it once, before the training loop.

    Args:
        model: any module with SLAFs.
        strength: the factor.
        interval: (lo, hi) for every module; None for each module's domain, or without one its basis's window.

    Example:
        >>> import torch, slaf_ext
        >>> f = slaf_ext.SLAF(3, domain=(-2, 2))
        >>> seen = range_penalty(f)
        >>> _ = f(torch.tensor([1.0, 3.0, -4.0]))
        >>> seen.penalty()                           # (0 + 1² + 2²) / 3
        tensor(1.6667)

    Source: penalties on the range are common for networks that must be polynomial, as for homomorphic encryption; the
    squared hinge is this project's choice.
    """
    interval = None if interval is None else bases.check_interval(interval, "interval")
    return RangeWatch(slafs(model), _check_strength(strength), interval)


def _check_strength(strength: float) -> float:
    return bases.check_real(strength, "strength", lambda t: 0 <= t < math.inf, "a finite number from 0 up")
