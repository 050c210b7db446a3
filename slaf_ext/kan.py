"""The layer with a polynomial on every edge, a polynomial KAN, as a function and as a module."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Proxy

from . import bases, kan_ops, reference
from .arguments import DTYPES, check_floating, check_kan, check_outside, spec_of_degree
from .bases import Basis, registered_name


def kan_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    basis: str | Basis = "chebyshev",
    *,
    domain: tuple[float, float] | None = None,
    outside: str = "extrapolate",
) -> Tensor:
    """y_o = b_o + Σ_i Σ_k W[o, i, k] φ_k(x_i), k = 1 … n: a linear layer with a polynomial on every edge.

    The cost is that of the matrix product of (rows, in · n) by (in · n, out). The terms φ_k(x_i) exist for a panel of
    rows at a time, in a workspace of at most 64 MiB or one row; backward expands them again, so x and W alone are
    saved. A second derivative, forward mode and torch.func's transforms use the definition in plain PyTorch.

    Args:
        x: float16, bfloat16, float32 or float64, of shape (…, in).
        weight: W, of shape (out, in, n): φ_1 … φ_n, as the constant terms of all edges are the bias. In x's dtype; for
            half-precision x it may also be float32. The terms and the products have x's dtype, also under autocast, so
            for float16 every |φ_k(x_i)| must be below 65504.
        bias: b, of shape (out,) and a dtype that weight may have; None for 0.
        basis, domain, outside: as for :func:`slaf_ext.slaf`.

    Returns:
        A tensor of shape (…, out) and x's dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or as for :func:`slaf_ext.slaf`.
        TypeError: x, weight or bias is not a tensor.

    Example:
        >>> import torch, slaf_ext
        >>> x = torch.tensor([[0.5, 1.0]])
        >>> weight = torch.tensor([[[0.0, 1.0], [3.0, 0.0]]])      # T_2(x_0) + 3 T_1(x_1)
        >>> slaf_ext.kan_linear(x, weight)
        tensor([[2.5000]])

    Source: S. SS, K. AR, G. R, A. KP, *Chebyshev Polynomial-Based Kolmogorov-Arnold Networks*, arXiv:2405.07200, for
    Chebyshev polynomials; Z. Liu et al., *KAN: Kolmogorov-Arnold Networks*, arXiv:2404.19756.
    """
    if isinstance(x, Proxy):  # torch.fx records the call
        place = {"domain": domain, "outside": outside}
        return x.tracer.create_proxy("call_function", kan_linear, (x, weight, bias, registered_name(basis)), place)
    check_kan(x, weight, bias)
    return kan_ops.kan_linear(x, weight, bias, spec_of_degree(int(weight.shape[-1]), basis, 0, domain, outside))


class KANLinear(nn.Module):
    """A linear layer with a trained polynomial on every edge: y_o = b_o + Σ_i Σ_k W[o, i, k] φ_k(x_i), k = 1 … degree.

    The start preserves the variance: every W[o, i, k] is normal with the variance Var(x) / (in · degree · Var φ_k(x)),
    and the bias makes the mean of y 0, for independent x_i, uniform on the domain if there is one and otherwise
    standard normal. Polynomials grow fast outside their window, so hidden layers want a domain and
    ``outside="clamp"`` or ``"linear"``, or inputs that a normalisation or tanh keeps inside.

    Args:
        in_features, out_features: sizes of the last dimension of the input and of the output.
        degree: n, from 1 up.
        basis: the φ_k, a name or a :class:`slaf_ext.bases.Basis`.
        domain: (lo, hi), mapped affinely onto the basis's window; None for no map.
        outside: "extrapolate", "clamp" or "linear", see :func:`slaf_ext.slaf`.
        bias: whether there is a bias, which holds the constant terms of all edges.
        device, dtype: of the parameters; float32 parameters also work with half-precision input.

    Shape:
        Input (…, in_features), output (…, out_features).

    Attributes:
        weight: the parameter W, (out_features, in_features, degree).
        bias: the parameter b, (out_features,), or None.

    Raises:
        ValueError: an argument is out of range; the message says which.

    Example:
        >>> import torch, slaf_ext
        >>> layer = slaf_ext.KANLinear(3, 2, degree=4, domain=(-2, 2), outside="linear")
        >>> layer
        KANLinear(3, 2, degree=4, basis='chebyshev', domain=(-2.0, 2.0), outside='linear')
        >>> layer(torch.randn(5, 3)).shape
        torch.Size([5, 2])

    Source: as for :func:`slaf_ext.kan_linear`.
    """

    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        degree: int,
        *,
        basis: str | Basis = "chebyshev",
        domain: tuple[float, float] | None = None,
        outside: str = "extrapolate",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = bases.check_integer(in_features, "in_features", 1)
        self.out_features = bases.check_integer(out_features, "out_features", 1)
        self.degree = bases.check_degree(bases.check_integer(degree, "degree", 1))
        self.basis = bases.get(basis)
        self.domain = None if domain is None else bases.check_interval(domain, "domain")
        self.outside = check_outside(outside)
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype}; parameters are float16, bfloat16, float32 or float64")
        size = self.out_features, self.in_features, self.degree
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        has_bias = bases.check_bool(bias, "bias")
        self.register_parameter("bias", nn.Parameter(self.weight.new_empty(size[0])) if has_bias else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the weight anew, so that the variance of the output is that of the input."""
        spec = spec_of_degree(self.degree, self.basis, 0, self.domain, self.outside)
        x, share = (torch.from_numpy(t) for t in self._distribution(spec.lo, spec.hi))
        terms = torch.stack(reference.kan_terms(x, spec.recurrence, *spec[2:]), 1)
        mean = share @ terms
        variance = share @ (terms - mean).square()
        # A term whose variance float64 does not hold starts without weight.
        held = variance.isfinite() & (variance > 0)
        of_input = (share @ x.square() - (share @ x).square()) / (self.in_features * self.degree)
        scale = torch.where(held, (of_input / variance).sqrt(), 0.0)
        most = torch.finfo(self.weight.dtype).max / 16  # no sample of a normal distribution is 16 deviations away
        self.weight.normal_().mul_(scale.clamp(max=most).to(self.weight))
        if self.bias is not None:
            mean = torch.where(held, mean, 0.0).to(self.weight.device)
            self.bias.copy_(-(self.weight.double() * mean).sum((1, 2)))

    def _distribution(self, lo: float, hi: float) -> tuple[np.ndarray, np.ndarray]:
        """Points and the shares of the inputs that they stand for, dense at the edges, where polynomials oscillate."""
        far = 10 + math.sqrt(2 * self.degree)  # where x^(2 degree) exp(-x² / 2) has vanished
        edges = [lo, hi] if self.domain is not None else np.clip([-far, lo, hi, far], -far, far)
        angles = (np.arange(1024) + 0.5) * np.pi / 1024
        middles, halves = np.add(edges[1:], edges[:-1]) / 2, np.subtract(edges[1:], edges[:-1]) / 2
        x = (middles[:, None] - halves[:, None] * np.cos(angles)).ravel()
        density = np.ones_like(x) if self.domain is not None else np.exp(-(x**2) / 2)
        share = density * (halves[:, None] * np.sin(angles)).ravel()
        return x, share / share.sum()

    @torch.no_grad()
    def init_from(self, linear: nn.Linear) -> KANLinear:
        """Starts as a given nn.Linear: equal to it but for rounding, on the domain if `outside` is "clamp".

        Returns:
            The module itself.

        Raises:
            ValueError: its features are others; or it has a bias, or the basis a constant in φ_1, and this has none.

        Example:
            >>> import torch, slaf_ext
            >>> linear = torch.nn.Linear(3, 2)
            >>> layer = slaf_ext.KANLinear(3, 2, degree=4).init_from(linear)
            >>> x = torch.randn(5, 3)
            >>> torch.allclose(layer(x), linear(x), atol=1e-6)
            True
        """
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"linear is a {type(linear).__name__}; it must be an nn.Linear")
        if (linear.in_features, linear.out_features) != (self.in_features, self.out_features):
            raise ValueError(
                f"linear has {linear.in_features} input and {linear.out_features} output features; "
                f"this layer has {self.in_features} and {self.out_features}"
            )
        check_floating(linear.weight, "linear.weight")
        if linear.weight.is_meta:
            raise ValueError("linear is on the meta device, where it has no values; move it with to_empty and start it")
        # φ_1 = a (x − center) + b, so x = (φ_1 − b) / a + center.
        mapped = bases.mapped(self.basis, self.degree, self.domain)
        a, b, _ = mapped.rows[:3]
        matrix = linear.weight.double()
        constant = (mapped.center - b / a) * matrix.sum(1)
        if linear.bias is not None:
            constant = constant + linear.bias
        if self.bias is None and bool(constant.any()):
            raise ValueError("this layer has no bias and a linear layer's constant to hold; make it with bias=True")
        self.weight.zero_()
        self.weight[..., 0] = matrix / a
        if self.bias is not None:
            self.bias.copy_(constant)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return kan_linear(x, self.weight, self.bias, self.basis, domain=self.domain, outside=self.outside)

    def __prepare_scriptable__(self) -> KANLinear:
        raise NotImplementedError(
            "torch.jit.script cannot compile a KANLinear; use torch.jit.trace(model, example) or torch.export.export"
        )

    def extra_repr(self) -> str:
        parts = [f"{self.in_features}, {self.out_features}, degree={self.degree}, basis={self.basis.name!r}"]
        if self.domain is not None:
            parts.append(f"domain={self.domain}")
        if self.outside != "extrapolate":
            parts.append(f"outside={self.outside!r}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)
