"""The initial coefficients of a SLAF. Every `init` has its place here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from . import bases
from .activations import FUNCTIONS
from .bases import Basis
from .fit import fit
from .functional import basis_values

Init = str | Tensor | Callable


def as_init(init: str | Tensor | np.ndarray | Sequence | Callable) -> Init:
    """`init` as a name, a function or a tensor of its own."""
    if isinstance(init, str) or (callable(init) and not isinstance(init, Tensor)):
        return init
    if isinstance(init, Tensor):
        return init.detach().clone()
    try:
        array = np.array(init, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if array.ndim == 0:
        raise ValueError(
            f"init is {init!r}; it must be a name, a function of x, or a tensor or an array of coefficients"
        )
    return torch.from_numpy(array)


def initial_coeffs(init: Init, degree: int, basis: Basis, domain: tuple[float, float] | None, coeffs: Tensor) -> Tensor:
    """The values that `init` names, for a parameter like `coeffs`."""
    if isinstance(init, Tensor):
        if init.shape not in (coeffs.shape, coeffs.shape[-1:]):
            raise ValueError(
                f"init is a tensor of shape {tuple(init.shape)}; it must have that of the coefficients, "
                f"{tuple(coeffs.shape)}, or be one row of them, {tuple(coeffs.shape[-1:])}"
            )
        return init.to(coeffs).expand_as(coeffs)
    identity = torch.from_numpy(identity_coeffs(degree, basis, domain)).to(coeffs).expand_as(coeffs)
    if init == "identity":
        return identity
    if init == "noisy_identity":
        noisy = identity + torch.randn_like(coeffs)
        noisy[..., 0] = identity[..., 0] + 0.1
        return noisy
    if init == "variance_preserving":
        return variance_preserving(degree, basis, domain, coeffs)
    if not callable(init) and init not in FUNCTIONS:
        raise ValueError(
            f"init is {init!r}; it must be 'identity', 'noisy_identity', 'variance_preserving', a tensor, a function "
            f"or the name of one: {', '.join(FUNCTIONS)}"
        )
    return torch.from_numpy(fit(init, degree, basis, domain=domain).coeffs).to(coeffs).expand_as(coeffs)


def initial_normalized(
    init: Init, degree: int, basis: Basis, domain: tuple[float, float] | None, coeffs: Tensor
) -> Tensor:
    """The β and w_k that `init` names. The normalised terms have unit variance, so basis and domain do not matter."""
    if isinstance(init, Tensor):
        return initial_coeffs(init, degree, basis, domain, coeffs)
    if init not in ("identity", "noisy_identity"):
        raise ValueError(
            f"init is {init!r} and normalize is True; the coefficients weigh normalised terms then, so init must be "
            "'identity', 'noisy_identity' or a tensor of (β, w_1, …)"
        )
    start = torch.zeros_like(coeffs) if init == "identity" else torch.randn_like(coeffs)
    start[..., 0] = 0.0 if init == "identity" else 0.1
    start[..., 1:2] += 1
    return start


def identity_coeffs(degree: int, basis: Basis, domain: tuple[float, float] | None) -> np.ndarray:
    """The a_k of f(x) = x; at degree 0, the constant nearest to it, the middle of the domain."""
    mapped = bases.mapped(basis, degree, domain)
    coeffs = np.zeros(degree + 1)
    if degree == 0:
        coeffs[0] = mapped.center if domain is not None else 0.5 * math.fsum(basis.domain)
        return coeffs
    # φ_1 = A_0 (x − center) + B_0
    a, b, _ = mapped.rows[:3]
    coeffs[:2] = mapped.center - b / a, 1 / a
    return coeffs


def variance_preserving(
    degree: int, basis: Basis, domain: tuple[float, float] | None, coeffs: Tensor, inputs: int = 64
) -> Tensor:
    """Random rows with E f(X) = 0 and E f(X)² = 1 for a standard normal X, by Gauss-Hermite quadrature.

    Every φ_k, k ≥ 1, is divided by its standard deviation and given a standard normal weight; the sum is then shifted
    and scaled.
    """
    if degree == 0:
        raise ValueError("init='variance_preserving' needs degree 1 or more; a constant has no variance")
    x, weights = np.polynomial.hermite_e.hermegauss(max(inputs, degree + 1))
    phi = basis_values(torch.from_numpy(x), degree, basis, domain=domain)
    w = torch.from_numpy(weights / weights.sum())
    mean = w @ phi
    covariance = (phi - mean).T @ (w[:, None] * (phi - mean))
    rows = torch.randn(coeffs.shape, dtype=torch.float64, device="cpu")
    rows[..., 1:] /= covariance.diagonal()[1:].sqrt()
    rows[..., 0] = 0
    rows = rows / torch.einsum("...i,ij,...j->...", rows, covariance, rows).sqrt().unsqueeze(-1)
    rows[..., 0] = -(rows @ mean)
    return rows.to(coeffs)
