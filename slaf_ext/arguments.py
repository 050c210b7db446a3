"""The arguments of the operators: their checks, and `Spec`, which holds those that are not tensors."""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from . import bases
from .bases import Basis
from .torch_private import without_functionalization

# The modes of `outside`, and their codes in the operators' arguments. ZERO occurs only in derivatives.
OUTSIDE = {"extrapolate": 0, "clamp": 2, "linear": 3}
ZERO = 1
# The mode of the derivative in x: outside the domain that of "linear" is constant, and that of "clamp" is zero.
DERIVATIVE = {0: 0, ZERO: ZERO, OUTSIDE["clamp"]: ZERO, OUTSIDE["linear"]: OUTSIDE["clamp"]}

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# The smallest normal and the largest float32.
SMALLEST, LARGEST = (float(t) for t in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


class _Fields(NamedTuple):
    recurrence: Sequence[float]  # A_0, B_0, C_0, A_1, …, evaluated at x − center
    dim: int
    center: float
    lo: float
    hi: float
    outside: int


class Spec(_Fields):
    """The arguments of the operators after the tensors, in the order of their schemas."""

    @functools.cached_property
    def packed(self) -> Tensor:
        """The same in one float64 tensor, which is faster to pass."""
        recurrence, *scalars = self
        return _packed(array("d", [*scalars, *recurrence]).tobytes())


@functools.lru_cache(maxsize=1024)
def _packed(values: bytes) -> Tensor:
    # The tensor outlives this call, so numpy makes it: torch's factories obey modes that are active now, such as a
    # default device.
    with without_functionalization():
        return torch.from_numpy(np.frombuffer(values).copy())


def spec(coeffs: Tensor, basis: str | Basis, dim: int, domain: tuple[float, float] | None, outside: str) -> Spec:
    """The arguments of :func:`slaf_ext.slaf`, checked, as the operators take them."""
    check_dense(coeffs, "coeffs")
    check_shape(coeffs)
    return spec_of_degree(int(coeffs.shape[-1]) - 1, basis, dim, domain, outside)


def spec_of_degree(degree: int, basis: str | Basis, dim: int, domain: tuple[float, float] | None, outside: str) -> Spec:
    """The same for a degree, which is right."""
    # Only plain values may be keys of the cache: a tensor whose values change keeps its hash.
    if domain is not None and not (
        type(domain) is tuple and len(domain) == 2 and type(domain[0]) is type(domain[1]) is float
    ):
        domain = bases.check_interval(domain, "domain")
    if type(dim) is not int:
        dim = check_dim(dim)
    if type(outside) is not str:
        check_outside(outside)
    # torch.compile can trace the function but not its cache.
    make = _spec.__wrapped__ if is_compiling() else _spec
    return make(bases.get(basis), degree, dim, domain, outside)


@functools.lru_cache(maxsize=1024)
def _spec(basis: Basis, degree: int, dim: int, domain: tuple[float, float] | None, outside: str) -> Spec:
    code = OUTSIDE[check_outside(outside)]
    mapped = bases.mapped(basis, degree, domain)
    return Spec(mapped.rows, dim, mapped.center, mapped.lo, mapped.hi, code)


def check_outside(outside: str) -> str:
    """`outside`, if it is the name of a mode."""
    if not (isinstance(outside, str) and outside in OUTSIDE):
        raise ValueError(f"outside is {outside!r}; it must be one of {', '.join(map(repr, OUTSIDE))}")
    return outside


def check_eps(eps: float) -> float:
    """`eps` as a float, if it can be added to a variance."""
    return bases.check_real(eps, "eps", lambda t: 0 < t < math.inf, "a finite number greater than 0")


def check_dim(dim: int) -> int:
    """`dim` as an int, if it is an integer; numpy's integers are accepted."""
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
        raise TypeError(f"dim is {dim!r}; it must be an integer")
    return int(dim)


def check_arguments(
    x: Tensor, coeffs: Tensor, recurrence: Sequence[float], dim: int, center: float, lo: float, hi: float, outside: int
) -> None:
    """The kernels' own checks, for code that runs without them. Symbolic sizes pass.

    Raises:
        ValueError: an argument is wrong; the message is the kernels'.
    """
    check_tensors(x, coeffs)
    K = coeffs.shape[-1]
    if _is_known(K) and len(recurrence) != 3 * (K - 1):
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


def _check_float32(recurrence: Sequence[float], center: float, lo: float, hi: float) -> None:
    """Checks that float32, which computes all dtypes but float64, can represent the map from x onto the basis."""
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
    """The checks that need no recurrence: dtypes, devices and layouts of x and coeffs, and the shape of coeffs."""
    check_dense(x)
    check_dense(coeffs, "coeffs")
    check_floating(x)
    check_dtype(x, coeffs=coeffs)
    check_device(x, coeffs=coeffs)
    check_shape(coeffs)


def check_kan(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """The tensors of a layer with a polynomial on every edge."""
    named = {"weight": weight, **({} if bias is None else {"bias": bias})}
    for name, tensor in (("x", x), *named.items()):
        check_tensor(tensor, name)
        if tensor.layout is not torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise ValueError(f"{name} is {kind}; kan_linear needs a dense tensor")
    check_floating(x)
    if weight.dim() != 3 or 0 in weight.shape:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; it must be (out_features, in_features, degree), each at least 1"
        )
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; the last dimension of x must be the "
            f"weight's in_features, {weight.shape[1]}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)} and weight {tuple(weight.shape)}; bias must be ({weight.shape[0]},)"
        )
    check_dtype(x, **named)
    check_device(x, **named)


def check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")


def check_tensor(value: Tensor, name: str = "x") -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a tensor")


def check_floating(tensor: Tensor, name: str = "x") -> None:
    check_tensor(tensor, name)
    if tensor.dtype not in DTYPES:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} is {kind}; slaf needs float16, bfloat16, float32 or float64")


def check_dense(tensor: Tensor, name: str = "x") -> None:
    check_tensor(tensor, name)
    if tensor.layout is torch.strided and not tensor.is_nested:
        return
    verb = "is" if name == "x" else "are"
    if tensor.is_nested:
        raise ValueError(f"{name} {verb} nested; slaf needs a dense tensor, such as {name}.values() of a jagged one")
    kind = str(tensor.layout).removeprefix("torch.")
    raise ValueError(f"{name} {verb} {kind}; slaf needs a dense tensor, such as {name}.to_dense()")


def check_shape(coeffs: Tensor) -> None:
    shape = coeffs.shape
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(
            f"coeffs have shape {tuple(shape)}; they must be (K,) or (G, K) with G and K at least 1, K = degree + 1"
        )


def check_dtype(x: Tensor, **parameters: Tensor) -> None:
    """Parameters have x's dtype, or stay float32 beside half-precision x."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    for name, tensor in parameters.items():
        if tensor.dtype != x.dtype and not (half and tensor.dtype == torch.float32):
            verb = "are" if name == "coeffs" else "is"
            names = [str(t.dtype).removeprefix("torch.") for t in (tensor, x)]
            raise ValueError(
                f"{name} {verb} {names[0]} and x is {names[1]}; convert one: {name} must have x's dtype"
                + (" or be float32" if half else "")
            )


def check_device(x: Tensor, **others: Tensor) -> None:
    for name, tensor in others.items():
        if tensor.device != x.device:
            verb = "are" if name == "coeffs" else "is"
            raise ValueError(f"{name} {verb} on {tensor.device} and x is on {x.device}; move one to the other's device")


def check_groups(x: Tensor, coeffs: Tensor, dim: int) -> None:
    """Checks that the rows of coeffs divide x along `dim`."""
    if coeffs.dim() == 1:
        return
    if not -x.dim() <= dim < x.dim():
        raise ValueError(
            f"dim is {dim} and x has {x.dim()} dimensions, shape {tuple(x.shape)}; "
            "dim must name one of them, or coeffs be of shape (K,)"
        )
    groups, size = coeffs.shape[0], x.shape[dim]
    if _is_known(groups) and _is_known(size) and size % groups:
        raise ValueError(
            f"coeffs have G = {groups} rows and x, of shape {tuple(x.shape)}, has size {size} "
            f"along dim {dim % x.dim()}; that must be a multiple of G"
        )


def _is_known(size: int) -> bool:
    """Whether a size is an int, not a symbol of torch.compile or torch.export."""
    return isinstance(size, int)
