"""The definition in plain PyTorch: what the kernels are held to, and what torch.func differentiates.

Every function here is made of ordinary tensor operations, so it composes with autograd, torch.func,
forward-mode differentiation, vmap and torch.compile. It is slower than the kernels and saves a tensor for
every step of the recurrence.
"""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import bases
from .bases import Basis

# What happens outside the domain, and the number by which the operators know it. A mode's derivative in x is
# the mode before it: the tangent's slope is constant (clamp), a constant's is zero.
OUTSIDE = {"extrapolate": 0, "clamp": 2, "linear": 3}
ZERO = 1

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# The ends of float32's range.
SMALLEST, LARGEST = (float(t) for t in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


class _Numbers(NamedTuple):
    recurrence: Sequence[float]  # A_0, B_0, C_0, A_1, …, walked at x − center
    dim: int
    center: float
    lo: float
    hi: float
    outside: int


class Spec(_Numbers):
    """The arguments of the operators after the tensors."""

    @functools.cached_property
    def packed(self) -> Tensor:
        """The same as one tensor, which is quicker to pass."""
        recurrence, *numbers = self
        return _packed(array("d", [*numbers, *recurrence]).tobytes())


@functools.lru_cache(maxsize=1024)
def _packed(numbers: bytes) -> Tensor:
    # By numpy and without functionalization: torch's factories heed the modes of the moment, and this is kept for all.
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)
    with torch._C._ExcludeDispatchKeyGuard(keys):
        return torch.from_numpy(np.frombuffer(numbers).copy())


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


def basis_values(
    x: Tensor, degree: int, basis: str | Basis = "chebyshev", *, domain: tuple[float, float] | None = None
) -> Tensor:
    """φ_0(x) … φ_degree(x), stacked along a new last dimension; see :func:`slaf_ext.basis_values`."""
    check_dense(x)
    check_floating(x)
    mapped = bases.mapped(bases.get(basis), bases.check_degree(degree), domain)
    t = _widen(x) - mapped.center
    return torch.stack(list(_walk(t, mapped.rows)), dim=-1).to(x.dtype)


def naive(x: Tensor, coeffs: Tensor | Sequence[Tensor]) -> Tensor:
    """Σ_k coeffs[k] · x**k, written as people write it: the baseline of the benchmarks.

    Example:
        >>> import torch
        >>> naive(torch.tensor([2.0]), torch.tensor([1.0, 0.0, 3.0]))
        tensor([13.])
    """
    return sum(coeffs[k] * x**k for k in range(len(coeffs)))  # type: ignore[return-value]


def spec(coeffs: Tensor, basis: str | Basis, dim: int, domain: tuple[float, float] | None, outside: str) -> Spec:
    """The arguments of :func:`slaf`, checked, as the operators take them."""
    check_dense(coeffs, "coeffs")
    check_shape(coeffs)
    # The cache is to see plain values alone: to it a tensor would be the same after its numbers have changed.
    if domain is not None and not (
        type(domain) is tuple and len(domain) == 2 and type(domain[0]) is type(domain[1]) is float
    ):
        domain = bases.check_interval(domain, "domain")
    if type(dim) is not int:
        dim = check_dim(dim)
    if type(outside) is not str:
        check_outside(outside)
    # torch.compile traces the function, not its cache.
    make = _spec.__wrapped__ if is_compiling() else _spec
    return make(bases.get(basis), int(coeffs.shape[-1]) - 1, dim, domain, outside)


@functools.lru_cache(maxsize=1024)
def _spec(basis: Basis, degree: int, dim: int, domain: tuple[float, float] | None, outside: str) -> Spec:
    number = OUTSIDE[check_outside(outside)]
    mapped = bases.mapped(basis, degree, domain)
    return Spec(mapped.rows, dim, mapped.center, mapped.lo, mapped.hi, number)


def check_outside(outside: str) -> str:
    """`outside`, if it is the name of a mode."""
    if not (isinstance(outside, str) and outside in OUTSIDE):
        raise ValueError(f"outside is {outside!r}; it must be one of {', '.join(map(repr, OUTSIDE))}")
    return outside


def check_eps(eps: float) -> float:
    """`eps` as a float, if it can be added to a variance."""
    return bases.check_real(eps, "eps", lambda t: 0 < t < math.inf, "a finite number greater than 0")


def check_dim(dim: int) -> int:
    """`dim` as an int, if it is an integer, numpy's among them."""
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
        raise TypeError(f"dim is {dim!r}; it must be an integer")
    return int(dim)


def expand(
    x: Tensor, coeffs: Tensor, recurrence: Sequence[float], dim: int, center: float, lo: float, hi: float, outside: int
) -> Tensor:
    """Σ_k a_k φ_k(x) with the arguments that the operators take."""
    check_arguments(x, coeffs, recurrence, dim, center, lo, hi, outside)
    t = _widen(x)
    rows = _along(coeffs.to(t.dtype), x, dim)
    inside = _inside(t, lo, hi, outside)
    y = _clenshaw(inside - center, rows, recurrence)
    if outside == ZERO:
        y = torch.where((t < lo) | (t > hi), 0.0, y)
    if outside == OUTSIDE["linear"]:
        for edge, beyond in ((lo, torch.where(t < lo, t - lo, 0.0)), (hi, torch.where(t > hi, t - hi, 0.0))):
            # What has slope 0 is flat at infinity too, where 0 · inf would be NaN: a φ_k, or the tangent.
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
    """grad_output Σ_k a_k φ_k'(x), by the differentiated recurrence: the gradient in x, differentiable in all three."""
    check_arguments(x, coeffs, recurrence, dim, center, lo, hi, outside)
    wide = _widen(x)
    rows = _along(coeffs.to(wide.dtype), x, dim)
    t = _inside(wide, lo, hi, outside) - center
    phi = list(_walk(t, recurrence))
    y = before = now = torch.zeros_like(t)
    for k in range(len(recurrence) // 3):
        a, b, c = recurrence[3 * k : 3 * k + 3]
        before, now = now, a * phi[k] + ((a * t + b) * now - c * before if k else 0.0)
        y = y + rows[..., k + 1] * now
    if outside in (ZERO, OUTSIDE["clamp"]):
        y = torch.where((wide < lo) | (wide > hi), 0.0, y)
    return (_widen(grad_output) * y).to(x.dtype)


def _inside(t: Tensor, lo: float, hi: float, outside: int) -> Tensor:
    """t, or the edge that it lies beyond."""
    return t if outside == OUTSIDE["extrapolate"] else torch.where(t < lo, lo, torch.where(t > hi, hi, t))


def coeffs_gradient(
    grad_output: Tensor, x: Tensor, coeffs: Tensor, recurrence: Sequence[float], dim: int, *window
) -> Tensor:
    """Σ over elements of grad_output φ_k(x): the gradient in coeffs, differentiable in both tensors."""
    wide = _widen(x)
    ones = torch.eye(coeffs.shape[-1], dtype=wide.dtype, device=coeffs.device)
    per_element = [_widen(grad_output) * expand(wide, one, recurrence, dim, *window) for one in ones]
    if coeffs.dim() == 1:
        return torch.stack([g.sum() for g in per_element]).to(coeffs.dtype)
    groups = coeffs.shape[0]
    return torch.stack([g.movedim(dim, 0).reshape(groups, -1).sum(1) for g in per_element], dim=-1).to(coeffs.dtype)


def normalized(
    x: Tensor, coeffs: Tensor, recurrence: Sequence[float], dim: int, *window, eps: float, sync: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """β + Σ_k w_k (φ_k(x) − μ_k) / sqrt(v_k + eps), and its μ and v, with β, w_1, w_2, … the columns of coeffs.

    μ_k and v_k are the mean and the biased variance of φ_k(x) over the elements of a group, with `sync` those of all
    ranks. Gradients flow through them. All is computed in float64, so that a mean far from zero costs no digits; μ and
    v are returned in it.
    """
    check_arguments(x, coeffs, recurrence, dim, *window)
    rows = _along(coeffs.double(), x, dim)
    groups = coeffs.shape[0] if coeffs.dim() == 2 else 1
    members = x.numel() // groups

    def average(values: Tensor) -> Tensor:
        by_group = values.movedim(dim, 0) if coeffs.dim() == 2 else values
        return by_group.reshape(groups, members).sum(1) / max(members, 1)

    def spread(statistic: Tensor) -> Tensor:
        return _along(statistic.reshape(*coeffs.shape[:-1], -1), x, dim)

    t = x.double()
    ones = torch.eye(coeffs.shape[-1], dtype=t.dtype, device=t.device)
    phi = [expand(t, one, recurrence, dim, *window) for one in ones[1:]]
    mean = variance = t.new_zeros(groups, 0)
    if phi:
        mean = torch.stack([average(p) for p in phi], -1)
        around = spread(mean)
        variance = torch.stack([average((p - around[..., k]).square()) for k, p in enumerate(phi)], -1)
    if sync:
        mean, variance = _merged(mean, variance, members)
    around, deviation = spread(mean), (spread(variance) + eps).sqrt()
    y = (torch.zeros_like(t) if phi else _zeros_of(t)) + rows[..., 0]
    for k, p in enumerate(phi):
        y = y + rows[..., k + 1] * (p - around[..., k]) / deviation[..., k]
    shape = (*coeffs.shape[:-1], coeffs.shape[-1] - 1)
    return y.to(x.dtype), mean.reshape(shape), variance.reshape(shape)


@torch.library.custom_op("slaf_ext::sum_over_ranks", mutates_args=())
def _sum_over_ranks(values: Tensor) -> Tensor:
    # An operator, because torch.compile's inductor (2.13) gets wrong sums from a collective that it fuses with others.
    total = values.clone(memory_format=torch.contiguous_format)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total


@_sum_over_ranks.register_fake
def _(values):
    return torch.empty_like(values, memory_format=torch.contiguous_format)


class _SumOverRanks(torch.autograd.Function):
    """Its gradient is the sum of all ranks' gradients, for the loss of each depends on it."""

    @staticmethod
    def forward(ctx, values):
        return _sum_over_ranks(values)

    @staticmethod
    def backward(ctx, grad_output):
        return _SumOverRanks.apply(grad_output)


def _merged(mean: Tensor, variance: Tensor, members: int) -> tuple[Tensor, Tensor]:
    """The statistics of all ranks' elements from those of each, by Chan's rule, which does not cancel.

    A rank without elements takes part, or the others would wait for it. NaN where no rank has any.
    """
    share = torch.full_like(mean[:, :1], members)
    totals = _SumOverRanks.apply(torch.cat([share, share * mean], -1))
    assert isinstance(totals, Tensor)
    number, mean_of_all = totals[:, :1], totals[:, 1:] / totals[:, :1]
    squares = _SumOverRanks.apply(share * (variance + (mean - mean_of_all).square()))
    return mean_of_all, squares / number


def fold(coeffs: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """The a_k of the plain form that equals the normalised one with these statistics, in float64.

    A φ_k that is constant as far as coeffs' precision tells gets no weight: it stands at its mean, and what is left of
    it would be rounding, as large as μ_k / sqrt(eps) allows.
    """
    weights = coeffs[..., 1:].double() / (variance.double() + eps).sqrt()
    weights = torch.where(variance.isinf(), torch.nan, weights)  # 0 would drop the term without a word
    rounding = torch.finfo(torch.promote_types(coeffs.dtype, torch.float32)).eps * mean.double().abs()
    weights = torch.where(variance.double() <= rounding.square(), 0.0, weights)
    constant = coeffs[..., :1].double() - (weights * mean.double()).sum(-1, keepdim=True)
    return torch.cat([constant, weights], dim=-1)


def check_tensor(value: Tensor, name: str = "x") -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a tensor")


def check_floating(tensor: Tensor, name: str = "x") -> None:
    check_tensor(tensor, name)
    if tensor.dtype not in DTYPES:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} is {kind}; slaf needs float16, bfloat16, float32 or float64")


def check_arguments(
    x: Tensor, coeffs: Tensor, recurrence: Sequence[float], dim: int, center: float, lo: float, hi: float, outside: int
) -> None:
    """What the kernels check, in their words, for what computes without them. Sizes that are symbols pass.

    Raises:
        ValueError: something is wrong.
    """
    check_tensors(x, coeffs)
    K = coeffs.shape[-1]
    if _is_number(K) and len(recurrence) != 3 * (K - 1):
        raise ValueError(
            f"the recurrence holds {len(recurrence)} numbers and coeffs have K = {K} columns; "
            f"it must hold A, B, C for each k < K - 1, {3 * (K - 1)} numbers"
        )
    for i in range(0, len(recurrence), 3):
        a, b, c = recurrence[i], recurrence[i + 1], recurrence[i + 2] if i else 0.0
        if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c) and a != 0):
            raise ValueError(
                f"row {i // 3} of the recurrence is ({a}, {b}, {c}); all three must be finite and A not zero"
            )
    check_groups(x, coeffs, dim)
    bases.check_interval((lo, hi), "domain")
    if not math.isfinite(center):
        raise ValueError(f"center is {center}; it must be finite")
    if x.dtype != torch.float64:
        _check_float32(recurrence, center, lo, hi)
    if outside not in (*OUTSIDE.values(), ZERO):
        raise ValueError(f"outside is {outside}; it must be 0 (extrapolate), 1 (zero), 2 (clamp) or 3 (linear)")


def check_dense(tensor: Tensor, name: str = "x") -> None:
    check_tensor(tensor, name)
    if tensor.layout is torch.strided and not tensor.is_nested:
        return
    verb = "is" if name == "x" else "are"
    if tensor.is_nested:
        raise ValueError(f"{name} {verb} nested; slaf needs a dense tensor, such as {name}.values() of a jagged one")
    kind = str(tensor.layout).removeprefix("torch.")
    raise ValueError(f"{name} {verb} {kind}; slaf needs a dense tensor, such as {name}.to_dense()")


def _check_float32(recurrence: Sequence[float], center: float, lo: float, hi: float) -> None:
    """Whether float32, in which all but float64 is computed, can hold what maps x onto the basis."""
    is_resolved = hi - lo > 2.0**-24 * max(abs(lo), abs(hi)) and lo < LARGEST and hi > -LARGEST
    if not (is_resolved and abs(center) <= LARGEST):
        raise ValueError(f"domain is ({lo}, {hi}), which float32 does not resolve; convert x and coeffs to float64")
    for i in range(0, len(recurrence), 3):
        a, b, c = recurrence[i], recurrence[i + 1], recurrence[i + 2] if i else 0.0
        if not (SMALLEST <= abs(a) <= LARGEST and abs(b) <= LARGEST and abs(c) <= LARGEST):
            raise ValueError(
                f"row {i // 3} of the recurrence is ({a}, {b}, {c}), with the map from the domain ({lo}, {hi}) in it, "
                "which float32 does not hold; widen the domain, or convert x and coeffs to float64"
            )


def check_tensors(x: Tensor, coeffs: Tensor) -> None:
    """The dtypes, devices and layouts of x and coeffs, and the shape of coeffs, which no recurrence changes."""
    check_dense(x)
    check_dense(coeffs, "coeffs")
    check_floating(x)
    half = x.dtype in (torch.float16, torch.bfloat16)
    if coeffs.dtype != x.dtype and not (half and coeffs.dtype == torch.float32):
        names = [str(t.dtype).removeprefix("torch.") for t in (coeffs, x)]
        raise ValueError(
            f"coeffs are {names[0]} and x is {names[1]}; convert one: coeffs must have x's dtype"
            + (" or be float32" if half else "")
        )
    check_device(x, coeffs=coeffs)
    check_shape(coeffs)


def check_shape(coeffs: Tensor) -> None:
    shape = coeffs.shape
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(
            f"coeffs have shape {tuple(shape)}; they must be (K,) or (G, K) with G and K at least 1, K = degree + 1"
        )


def check_device(x: Tensor, **others: Tensor) -> None:
    for name, tensor in others.items():
        if tensor.device != x.device:
            verb = "are" if name == "coeffs" else "is"
            raise ValueError(f"{name} {verb} on {tensor.device} and x is on {x.device}; move one to the other's device")


def check_groups(x: Tensor, coeffs: Tensor, dim: int) -> None:
    """Whether the rows of coeffs fit x along `dim`."""
    if coeffs.dim() == 1:
        return
    if not -x.dim() <= dim < x.dim():
        raise ValueError(
            f"dim is {dim} and x has {x.dim()} dimensions, shape {tuple(x.shape)}; "
            "dim must name one of them, or coeffs be of shape (K,)"
        )
    groups, size = coeffs.shape[0], x.shape[dim]
    if _is_number(groups) and _is_number(size) and size % groups:
        raise ValueError(
            f"coeffs have G = {groups} rows and x, of shape {tuple(x.shape)}, has size {size} "
            f"along dim {dim % x.dim()}; that must be a multiple of G"
        )


def _is_number(size: int) -> bool:
    """Whether a size is known, and no symbol of torch.compile's or torch.export's."""
    return isinstance(size, int)


def _zeros_of(t: Tensor) -> Tensor:
    """Zeros that depend on t as a constant does, so that its gradient is 0 instead of none."""
    return t.masked_fill(torch.ones_like(t, dtype=torch.bool), 0.0)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _along(coeffs: Tensor, x: Tensor, dim: int) -> Tensor:
    """coeffs with a row for every index of x along `dim`, shaped to broadcast against x, K last."""
    if coeffs.dim() == 1:
        return coeffs
    dim %= x.dim()
    rows = coeffs.repeat_interleave(x.shape[dim] // coeffs.shape[0], dim=0)
    return rows.reshape(*(x.shape[d] if d == dim else 1 for d in range(x.dim())), coeffs.shape[-1])


def _walk(t: Tensor, recurrence: Sequence[float]) -> Iterator[Tensor]:
    """φ_0(t), φ_1(t), … as tensors."""
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
    """Σ_k rows[…, k] φ_k(t), summed from the far end as numpy.polynomial does."""
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
