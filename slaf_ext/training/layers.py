"""Additions to a network for training: gates and masks on the coefficients, and max scaling."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import bases
from .parameters import slafs


class _Gate(nn.Module):
    """coeffs → sigmoid(g) ⊙ coeffs, except for the constant; all groups share g."""

    def __init__(self, coeffs: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(coeffs.shape[-1] - 1, dtype=coeffs.dtype, device=coeffs.device))

    def forward(self, coeffs: Tensor) -> Tensor:
        return torch.cat([coeffs[..., :1], torch.sigmoid(self.logits) * coeffs[..., 1:]], dim=-1)


def gate(model: nn.Module) -> int:
    """Gives every SLAF a trained gate for each degree: f uses sigmoid(g_k) a_k for k ≥ 1, where g starts as N(0, 1).

    Call it before creating the optimiser, because it adds parameters. All groups of a module share its gates.
    :func:`ungate` folds the gates into the coefficients.

    Returns:
        The number of parameters added.

    Example:
        >>> import torch, slaf_ext
        >>> f = slaf_ext.SLAF(4, 8)
        >>> gate(f), sum(p.numel() for p in f.parameters())
        (4, 44)

    Source: the authors' code of arXiv:1906.09529, "gated".
    """
    added = 0
    for module in slafs(model):
        _check_free(module)
        gates = _Gate(module.coeffs)
        parametrize.register_parametrization(module, "coeffs", gates)
        added += gates.logits.numel()
    return added


def ungate(model: nn.Module) -> None:
    """Multiplies the gates of :func:`gate`, or the masks of :func:`parity`, into the coefficients, and removes them.

    Example:
        >>> import torch, slaf_ext
        >>> f = slaf_ext.SLAF(4)
        >>> _ = gate(f)
        >>> ungate(f)
        >>> [name for name, _ in f.named_parameters()]
        ['coeffs']
    """
    for module in slafs(model):
        if parametrize.is_parametrized(module, "coeffs"):
            parametrize.remove_parametrizations(module, "coeffs", leave_parametrized=True)


class _Mask(nn.Module):
    """coeffs → the same with zeros except for k = first, first + 2, …"""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(self, coeffs: Tensor) -> Tensor:
        return torch.where(torch.arange(coeffs.shape[-1], device=coeffs.device) % 2 == self.first, coeffs, 0)


def parity(model: nn.Module, kind: str) -> None:
    """Makes every SLAF an odd or an even function, and keeps it one: the other coefficients are 0 whatever is trained.

    An odd polynomial of degree n has half as many coefficients, as those that approximate a sign or tanh; an even one
    needs x² alone. The masked coefficients get no gradient. :func:`ungate` removes the masks and leaves zeros.

    Args:
        model: any module with SLAFs. Nothing is changed if one of them cannot have a parity.
        kind: "odd" or "even".

    Raises:
        ValueError: another kind; a SLAF whose φ_k are not even and odd in turn, as those of Laguerre are not, or whose
            domain is not centred at 0; a normalised one, for "odd", because its means add a constant; or one that has
            gates or a mask already.

    Example:
        >>> import torch, slaf_ext
        >>> f = slaf_ext.SLAF(5, init="gelu")
        >>> parity(f, "odd")
        >>> f.coeffs.detach().round(decimals=2)
        tensor([0., 2., 0., -0., 0., 0.])

    Source: composite polynomials for the sign function under homomorphic encryption are odd; see :func:`gate` for how
    the mask is attached.
    """
    if kind not in ("odd", "even"):
        raise ValueError(f"kind is {kind!r}; it must be 'odd' or 'even'")
    for module in slafs(model):
        _check_free(module)
        mapped = bases.mapped(module.basis, module.degree, module.domain)
        has_edges = module.outside != "extrapolate" and mapped.lo != -mapped.hi
        if mapped.center != 0 or any(mapped.rows[1::3]) or has_edges:
            raise ValueError(
                f"{module} has no parity: φ_k(−x) = (−1)^k φ_k(x) needs a basis with B_k = 0, such as 'chebyshev', and "
                "a domain centred at 0, or without one such a window"
            )
        if module.normalize and kind == "odd":
            raise ValueError(f"{module} is normalised, and its means add a constant; use 'even', or fold it")
    for module in slafs(model):
        parametrize.register_parametrization(module, "coeffs", _Mask(1 if kind == "odd" else 0))


def _check_free(module: nn.Module) -> None:
    if parametrize.is_parametrized(module, "coeffs"):
        raise ValueError(f"a SLAF of degree {module.degree} has gates already, or a mask; ungate the model first")


class MaxScale(nn.Module):
    """Max scaling before the powers: x / (m · max |x| + n), m and n trained.

    Without `num_channels` the maximum is taken over each sample. With it, the maximum is taken for each channel over
    the batch and all other axes, evaluation uses a running average, and no gradient flows through it.

    Args:
        num_channels: None, or the size of dim 1.
        m, n: the initial values.
        decay: running = decay · running + (1 − decay) · batch.

    Shape:
        (N, …), or (N, num_channels, …); the output has the same.

    Example:
        >>> import torch
        >>> MaxScale()(torch.tensor([[1.0, -4.0]])).detach().round(decimals=3)
        tensor([[ 0.1250, -0.5000]])

    Source: the authors' code of arXiv:1906.09529, "max scaling", for the form, m = 2 and the decay; here n is small
    and not zero, so that a sample of zeros gives zeros.
    """

    running_max: Tensor

    def __init__(
        self, num_channels: int | None = None, *, m: float = 2.0, n: float = 1e-5, decay: float = 0.99
    ) -> None:
        super().__init__()
        self.num_channels = None if num_channels is None else bases.check_integer(num_channels, "num_channels", 1)
        self.decay = bases.check_real(decay, "decay", lambda t: 0 <= t <= 1, "a number from 0 to 1")
        self.m, self.n = (
            nn.Parameter(torch.tensor(bases.check_real(value, name, math.isfinite, "a finite number")))
            for name, value in (("m", m), ("n", n))
        )
        if num_channels is not None:
            self.register_buffer("running_max", torch.ones(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.num_channels is None:
            largest = x.abs().flatten(1).amax(1).view(-1, *[1] * (x.dim() - 1))
        else:
            if x.dim() < 2 or x.shape[1] != self.num_channels:
                raise ValueError(f"x has shape {tuple(x.shape)}; its dim 1 must hold {self.num_channels} channels")
            channels = self.running_max
            if self.training and x.numel():
                channels = x.detach().abs().movedim(1, 0).flatten(1).amax(1)
                self.running_max.lerp_(channels.to(self.running_max), 1 - self.decay)
            largest = channels.view(-1, *[1] * (x.dim() - 2))
        return x / (self.m * largest + self.n)
