"""The definition in plain PyTorch, against which the kernels are tested.

Every function here is made of ordinary tensor operations, so it works under autograd, torch.func, forward-mode AD, vmap
and torch.compile. It is slower than the kernels and saves a tensor for every step of the recurrence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import bases, ranks
from .arguments import (
    OUTSIDE,
    ZERO,
    check_arguments,
    check_dense,
    check_floating,
    check_kan,
    spec,
    spec_of_degree,
)
from .bases import Basis


def slaf(
    x: Tensor,
    coeffs: Tensor,
    basis: str | Basis = "chebyshev",
    *,
    dim: int = 1,
    domain: tuple[float, float] | None = None,
    outside: str = "extrapolate",
) -> Tensor:
    """Σ_k a_k φ_k(x), as :func:`slaf_ext.slaf`, in plain PyTorch.

    Half-precision input is computed in float32, as the kernels do.

    Example:
        >>> import torch
        >>> slaf(torch.tensor([0.5]), torch.tensor([0.0, 0.0, 1.0]))     # T_2(x) = 2x² − 1
        tensor([-0.5000])
    """
    return expand(x, coeffs, *spec(coeffs, basis, dim, domain, outside))


def expand(
    x: Tensor, coeffs: Tensor, recurrence: Sequence[float], dim: int, center: float, lo: float, hi: float, outside: int
) -> Tensor:
    """Σ_k a_k φ_k(x), with the arguments that the operators take."""
    check_arguments(x, coeffs, recurrence, dim, center, lo, hi, outside)
    t = _widen(x)
    rows = _broadcastable(coeffs.to(t.dtype), x, dim)
    y = _clenshaw(_clamped(t, lo, hi, outside) - center, rows, recurrence)
    if outside == ZERO:
        y = torch.where((t < lo) | (t > hi), 0.0, y)
    if outside == OUTSIDE["linear"]:
        for edge, beyond in _beyond(t, lo, hi):
            # A slope of 0 adds nothing even at infinity, where 0 · inf would be NaN.
            slopes = {k: s for k, s in enumerate(_derivatives_at(edge - center, recurrence)) if s != 0}
            slope = sum((rows[..., k] * s for k, s in slopes.items()), torch.zeros_like(rows[..., 0]))
            y = y + slope * torch.where((slope == 0) & beyond.isinf(), 0.0, beyond)
    return y.to(x.dtype)


def input_gradient(
    grad_output: Tensor,
    x: Tensor,
    coeffs: Tensor,
    recurrence: Sequence[float],
    dim: int,
    center: float,
    lo: float,
    hi: float,
    outside: int,
) -> Tensor:
    """The gradient in x, grad_output Σ_k a_k φ_k'(x), by the differentiated recurrence; differentiable in all three."""
    check_arguments(x, coeffs, recurrence, dim, center, lo, hi, outside)
    wide = _widen(x)
    rows = _broadcastable(coeffs.to(wide.dtype), x, dim)
    t = _clamped(wide, lo, hi, outside) - center
    phi = list(_phi(t, recurrence))
    y = previous = current = torch.zeros_like(t)
    for k in range(len(recurrence) // 3):
        a, b, c = recurrence[3 * k : 3 * k + 3]
        previous, current = current, a * phi[k] + ((a * t + b) * current - c * previous if k else 0.0)
        y = y + rows[..., k + 1] * current
    if outside in (ZERO, OUTSIDE["clamp"]):
        y = torch.where((wide < lo) | (wide > hi), 0.0, y)
    return (_widen(grad_output) * y).to(x.dtype)


def coeffs_gradient(
    grad_output: Tensor, x: Tensor, coeffs: Tensor, recurrence: Sequence[float], dim: int, *window
) -> Tensor:
    """The gradient in coeffs, the sum over elements of grad_output φ_k(x); differentiable in grad_output and x."""
    wide = _widen(x)
    ones = torch.eye(coeffs.shape[-1], dtype=wide.dtype, device=coeffs.device)
    per_element = [_widen(grad_output) * expand(wide, one, recurrence, dim, *window) for one in ones]
    if coeffs.dim() == 1:
        return torch.stack([g.sum() for g in per_element]).to(coeffs.dtype)
    groups = coeffs.shape[0]
    return torch.stack([g.movedim(dim, 0).reshape(groups, -1).sum(1) for g in per_element], dim=-1).to(coeffs.dtype)


def gradients(grad_output: Tensor, x: Tensor, coeffs: Tensor, *spec_and_needs) -> tuple[Tensor, Tensor]:
    """Both, as `slaf_backward` returns them; a gradient that is not needed is empty."""
    *spec, need_x, need_coeffs = spec_and_needs
    dx = input_gradient(grad_output, x, coeffs, *spec) if need_x else x.new_empty(0)
    da = coeffs_gradient(grad_output, x, coeffs, *spec) if need_coeffs else coeffs.new_empty(0)
    return dx, da


def moments(x: Tensor, coeffs: Tensor, *spec) -> tuple[Tensor, Tensor]:
    """The mean and the biased variance of each φ_k(x), as `slaf_moments` returns them."""
    _, mean, variance = normalized(x, coeffs, *spec, eps=1.0)
    return mean, variance


def folded(coeffs: Tensor, mean: Tensor, variance: Tensor, eps: float, in_double: bool) -> Tensor:
    """:func:`fold` in the dtype in which `slaf_fold` returns it."""
    return fold(coeffs, mean, variance, eps).to(torch.float64 if in_double else torch.float32)


def normalized(
    x: Tensor, coeffs: Tensor, recurrence: Sequence[float], dim: int, *window, eps: float, sync: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """β + Σ_k w_k (φ_k(x) − μ_k) / sqrt(v_k + eps), then μ and v; β, w_1, w_2, … are the columns of coeffs.

    μ_k and v_k are the mean and the biased variance of φ_k(x) over the elements of a group, with `sync` over those of
    all ranks. Gradients flow through them. Everything is computed in float64, so that a mean far from zero costs no
    digits; μ and v are returned in float64.
    """
    check_arguments(x, coeffs, recurrence, dim, *window)
    rows = _broadcastable(coeffs.double(), x, dim)
    groups = coeffs.shape[0] if coeffs.dim() == 2 else 1
    count = x.numel() // groups

    def average(values: Tensor) -> Tensor:
        by_group = values.movedim(dim, 0) if coeffs.dim() == 2 else values
        return by_group.reshape(groups, count).sum(1) / max(count, 1)

    def broadcast(statistic: Tensor) -> Tensor:
        return _broadcastable(statistic.reshape(*coeffs.shape[:-1], -1), x, dim)

    t = x.double()
    ones = torch.eye(coeffs.shape[-1], dtype=t.dtype, device=t.device)
    phi = [expand(t, one, recurrence, dim, *window) for one in ones[1:]]
    mean = variance = t.new_zeros(groups, 0)
    if phi:
        mean = torch.stack([average(p) for p in phi], -1)
        centers = broadcast(mean)
        variance = torch.stack([average((p - centers[..., k]).square()) for k, p in enumerate(phi)], -1)
    if sync:
        mean, variance = ranks.merged(mean, variance, count)
    centers, deviations = broadcast(mean), (broadcast(variance) + eps).sqrt()
    y = (torch.zeros_like(t) if phi else _zeros_of(t)) + rows[..., 0]
    for k, p in enumerate(phi):
        y = y + rows[..., k + 1] * (p - centers[..., k]) / deviations[..., k]
    shape = (*coeffs.shape[:-1], coeffs.shape[-1] - 1)
    return y.to(x.dtype), mean.reshape(shape), variance.reshape(shape)


def fold(coeffs: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """The a_k, in float64, with which the plain form equals the normalised one that has these statistics.

    A φ_k that deviates from its mean by no more than rounding in coeffs' dtype is constant, and gets the weight 0: a
    weight of up to 1 / sqrt(eps) would amplify that rounding.
    """
    weights = coeffs[..., 1:].double() / (variance.double() + eps).sqrt()
    weights = torch.where(variance.isinf(), torch.nan, weights)  # 0 would silently drop the term
    rounding = torch.finfo(torch.promote_types(coeffs.dtype, torch.float32)).eps * mean.double().abs()
    weights = torch.where(variance.double() <= rounding.square(), 0.0, weights)
    constant = coeffs[..., :1].double() - (weights * mean.double()).sum(-1, keepdim=True)
    return torch.cat([constant, weights], dim=-1)


def kan_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    basis: str | Basis = "chebyshev",
    *,
    domain: tuple[float, float] | None = None,
    outside: str = "extrapolate",
) -> Tensor:
    """b_o + Σ_i Σ_k W[o, i, k] φ_k(x_i), as :func:`slaf_ext.kan_linear`, in plain PyTorch.

    Example:
        >>> import torch
        >>> kan_linear(torch.tensor([0.5, 2.0]), torch.ones(1, 2, 2), basis="monomial")       # x + x² of both
        tensor([6.7500])
    """
    check_kan(x, weight, bias)
    return kan(x, weight, bias, *spec_of_degree(int(weight.shape[-1]), basis, 0, domain, outside))


def kan(x: Tensor, weight: Tensor, bias: Tensor | None, recurrence: Sequence[float], _dim: int, *window) -> Tensor:
    """The same, with the arguments that the operator takes."""
    terms = torch.stack(kan_terms(_widen(x), recurrence, *window), -1).flatten(-2)
    y = terms @ weight.flatten(1).to(terms.dtype).T
    return (y if bias is None else y + bias).to(x.dtype)


def kan_terms(
    t: Tensor, recurrence: Sequence[float], center: float, lo: float, hi: float, outside: int
) -> list[Tensor]:
    """φ_1(t), φ_2(t), …, continued beyond the edges as `outside` says."""
    _, *terms = _phi(_clamped(t, lo, hi, outside) - center, recurrence)
    if outside == OUTSIDE["linear"]:
        for edge, beyond in _beyond(t, lo, hi):
            slopes = _derivatives_at(edge - center, recurrence)[1:]
            terms = [p if slope == 0 else p + slope * beyond for p, slope in zip(terms, slopes, strict=True)]
    return terms


def basis_values(
    x: Tensor, degree: int, basis: str | Basis = "chebyshev", *, domain: tuple[float, float] | None = None
) -> Tensor:
    """φ_0(x) … φ_degree(x), stacked along a new last dimension; see :func:`slaf_ext.basis_values`."""
    check_dense(x)
    check_floating(x)
    mapped = bases.mapped(bases.get(basis), bases.check_degree(degree), domain)
    t = _widen(x) - mapped.center
    return torch.stack(list(_phi(t, mapped.rows)), dim=-1).to(x.dtype)


def naive(x: Tensor, coeffs: Tensor | Sequence[Tensor]) -> Tensor:
    """Σ_k coeffs[k] · x**k, as people usually write it: the baseline of the benchmarks.

    Example:
        >>> import torch
        >>> naive(torch.tensor([2.0]), torch.tensor([1.0, 0.0, 3.0]))
        tensor([13.])
    """
    return sum(coeffs[k] * x**k for k in range(len(coeffs)))  # type: ignore[return-value]


def _phi(t: Tensor, recurrence: Sequence[float]) -> Iterator[Tensor]:
    """φ_0(t), φ_1(t), … by the recurrence."""
    previous, current = torch.zeros_like(t), torch.ones_like(t)
    yield current
    for k in range(len(recurrence) // 3):
        a, b, c = recurrence[3 * k : 3 * k + 3]
        following = (a * t + b) * current
        if k > 0 and c != 0:
            following = following - c * previous
        previous, current = current, following
        yield current


def _clenshaw(t: Tensor, rows: Tensor, recurrence: Sequence[float]) -> Tensor:
    """Σ_k rows[…, k] φ_k(t) by Clenshaw's recurrence, from the highest degree down."""
    table = [recurrence[i : i + 3] for i in range(0, len(recurrence), 3)]
    current, later = (torch.zeros_like(t) if table else _zeros_of(t)) + rows[..., -1], torch.zeros_like(t)
    for k in reversed(range(len(table))):
        a, b, _ = table[k]
        following = rows[..., k] + (a * t + b) * current
        if k + 1 < len(table) and table[k + 1][2] != 0:
            following = following - table[k + 1][2] * later
        current, later = following, current
    return current


def _derivatives_at(t: float, recurrence: Sequence[float]) -> list[float]:
    """φ_0'(t), φ_1'(t), … in float64, by the differentiated recurrence."""
    phi, slope = [0.0, 1.0], [0.0, 0.0]
    for k in range(len(recurrence) // 3):
        a, b, c = recurrence[3 * k : 3 * k + 3]
        slope.append(a * phi[-1] + (a * t + b) * slope[-1] - c * slope[-2])
        phi.append((a * t + b) * phi[-1] - c * phi[-2])
    return slope[1:]


def _clamped(t: Tensor, lo: float, hi: float, outside: int) -> Tensor:
    """t clamped to [lo, hi], unless the polynomial is extrapolated."""
    return t if outside == OUTSIDE["extrapolate"] else torch.where(t < lo, lo, torch.where(t > hi, hi, t))


def _beyond(t: Tensor, lo: float, hi: float) -> tuple[tuple[float, Tensor], ...]:
    """Each edge, and how far t lies beyond it."""
    return (lo, torch.where(t < lo, t - lo, 0.0)), (hi, torch.where(t > hi, t - hi, 0.0))


def _broadcastable(coeffs: Tensor, x: Tensor, dim: int) -> Tensor:
    """coeffs with one row for each index of x along `dim`, in a shape that broadcasts against x, with K last."""
    if coeffs.dim() == 1:
        return coeffs
    dim %= x.dim()
    rows = coeffs.repeat_interleave(x.shape[dim] // coeffs.shape[0], dim=0)
    return rows.reshape(*(x.shape[d] if d == dim else 1 for d in range(x.dim())), coeffs.shape[-1])


def _zeros_of(t: Tensor) -> Tensor:
    """Zeros that depend on t, so that the gradient in t is 0 instead of None."""
    return t.masked_fill(torch.ones_like(t, dtype=torch.bool), 0.0)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
