"""The activation as a module."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from . import bases
from .bases import Basis
from .functional import slaf
from .reference import OUTSIDE


class SLAF(nn.Module):
    """A self-learnable activation function: f(x) = Σ_k a_k φ_k(x), element by element, with trained a_k.

    Args:
        degree: n; the module has n + 1 coefficients a group.
        num_groups: 1 for one polynomial for all of x; else G polynomials for G groups of neighbours
            along `dim`, such as the channels. ``x.shape[dim]`` must be a multiple of it.
        basis: the φ_k, a name or a :class:`slaf_ext.bases.Basis`.
        dim: the dimension of x along which the groups lie: 1 for (N, C, …), −1 for (…, features).
        domain: (lo, hi), mapped affinely onto the basis's window; None for no map.
        outside: "extrapolate", "clamp" or "linear", see :func:`slaf_ext.slaf`.
        init: how the coefficients start: "identity", f(x) = x; "noisy_identity", the paper's: f(x) = x
            plus a standard normal draw on every coefficient but the constant, which gets 0.1; or a tensor of shape
            (K,) or (G, K).
        device, dtype: of the coefficients; float32 ones serve half-precision input too.

    Shape:
        Input and output: any shape, the same.

    Attributes:
        coeffs: the parameter, (K,) where num_groups is 1, else (G, K), K = degree + 1, low order first.

    Raises:
        ValueError: an argument out of its range; the message says which.

    Example:
        >>> import torch, slaf_ext
        >>> f = slaf_ext.SLAF(3, basis="legendre", domain=(-4, 4))
        >>> f
        SLAF(3, basis='legendre', domain=(-4.0, 4.0))
        >>> f(torch.tensor([[1.0, -2.0]]))
        tensor([[ 1., -2.]], grad_fn=<SlafFunctionBackward>)

    Source: arXiv:1906.09529; the noisy identity is that of its authors' code.
    """

    def __init__(
        self,
        degree: int,
        num_groups: int = 1,
        *,
        basis: str | Basis = "chebyshev",
        dim: int = 1,
        domain: tuple[float, float] | None = None,
        outside: str = "extrapolate",
        init: str | Tensor = "identity",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.degree = bases.check_degree(degree)
        if isinstance(num_groups, bool) or not isinstance(num_groups, int) or num_groups < 1:
            raise ValueError(f"num_groups is {num_groups!r}; it must be an integer from 1 up")
        if outside not in OUTSIDE:
            raise ValueError(f"outside is {outside!r}; it must be one of {', '.join(map(repr, OUTSIDE))}")
        self.num_groups = num_groups
        self.basis = bases.get(basis)
        self.dim = dim
        self.domain = None if domain is None else bases.check_interval(domain, "domain")
        self.outside = outside
        self.init = init
        shape = (self.degree + 1,) if num_groups == 1 else (num_groups, self.degree + 1)
        self.coeffs = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Gives the coefficients the values that `init` names."""
        self.coeffs.copy_(initial_coeffs(self.init, self.degree, self.basis, self.domain, self.coeffs))

    def forward(self, x: Tensor) -> Tensor:
        return slaf(x, self.coeffs, self.basis, dim=self.dim, domain=self.domain, outside=self.outside)

    def extra_repr(self) -> str:
        parts = [str(self.degree)]
        if self.num_groups != 1:
            parts.append(f"num_groups={self.num_groups}")
        parts.append(f"basis={self.basis.name!r}")
        if self.num_groups != 1 and self.dim != 1:
            parts.append(f"dim={self.dim}")
        if self.domain is not None:
            parts.append(f"domain={self.domain}")
        if self.outside != "extrapolate":
            parts.append(f"outside={self.outside!r}")
        return ", ".join(parts)


def initial_coeffs(
    init: str | Tensor, degree: int, basis: Basis, domain: tuple[float, float] | None, coeffs: Tensor
) -> Tensor:
    """The values that `init` names, for a parameter like `coeffs`. Every kind of start has its place here."""
    if isinstance(init, Tensor):
        if init.shape not in (coeffs.shape, coeffs.shape[-1:]):
            raise ValueError(
                f"init is a tensor of shape {tuple(init.shape)}; it must have that of the coefficients, "
                f"{tuple(coeffs.shape)}, or be one row of them, {tuple(coeffs.shape[-1:])}"
            )
        return init.to(coeffs).expand_as(coeffs)
    identity = torch.tensor(identity_coeffs(degree, basis, domain)).to(coeffs).expand_as(coeffs)
    if init == "identity":
        return identity
    if init == "noisy_identity":
        noisy = identity + torch.randn_like(coeffs)
        noisy[..., 0] = identity[..., 0] + 0.1
        return noisy
    raise ValueError(f"init is {init!r}; it must be 'identity', 'noisy_identity' or a tensor")


def identity_coeffs(degree: int, basis: Basis, domain: tuple[float, float] | None) -> np.ndarray:
    """The a_k of f(x) = x. A polynomial of degree 0 comes nearest with the middle of the domain."""
    mapped = bases.mapped(basis, degree, domain)
    coeffs = np.zeros(degree + 1)
    if degree == 0:
        coeffs[0] = mapped.center if domain is not None else 0.5 * math.fsum(basis.domain)
        return coeffs
    # φ_1 = A_0 (x − center) + B_0
    a, b, _ = mapped.rows[:3]
    coeffs[:2] = mapped.center - b / a, 1 / a
    return coeffs
