"""The functions that users call."""

from __future__ import annotations

from torch import Tensor
from torch.compiler import is_compiling
from torch.fx import Proxy

from . import ops, reference
from .arguments import Spec, check_eps, check_floating, check_groups, check_tensor, check_tensors, spec
from .bases import Basis, check_integer, registered_name
from .torch_private import is_traced_before_autograd, is_traced_by_jit


def slaf(
    x: Tensor,
    coeffs: Tensor,
    basis: str | Basis = "chebyshev",
    *,
    dim: int = 1,
    domain: tuple[float, float] | None = None,
    outside: str = "extrapolate",
) -> Tensor:
    """The self-learnable activation function f(x) = Σ_k a_k φ_k(x), element by element.

    One fused kernel evaluates it, and a second computes the gradients in x and in the coefficients.
    Differentiable to any order, in forward mode too, and under torch.func's transforms.

    Args:
        x: a tensor of float16, bfloat16, float32 or float64, of any shape; contiguous or a dense permutation, as
            other strides cost a copy. A jagged nested tensor needs coeffs of shape (K,).
        coeffs: the a_k, low order first, of shape (K,), one polynomial of degree K − 1 for all of x; or (G, K),
            a row for each of G groups of neighbouring indices along `dim`. In x's dtype; for half-precision x they may
            also be float32. Half-precision input is computed and summed in at least float32.
        basis: the φ_k: one of :func:`slaf_ext.bases.names`, or a :class:`slaf_ext.bases.Basis`.
        dim: the dimension of x that the G groups divide: 1 for (N, C, …), −1 for (…, features).
            ``x.shape[dim]`` must be a multiple of G. Ignored for coeffs of shape (K,).
        domain: (lo, hi), mapped affinely onto the basis's window; None for no map.
        outside: what f is outside the domain (outside the basis's window if `domain` is None):
            "extrapolate", the polynomial; "clamp", the value at the edge, with a zero gradient in x; or
            "linear", the tangent at the edge, which makes f globally Lipschitz.

    Returns:
        A tensor with x's shape, dtype, device and memory format.

    Raises:
        ValueError: dtypes, devices or shapes do not fit, `dim` is out of range, the basis or `outside` is unknown, the
            domain is empty, float32 does not hold the domain or the recurrence and x is not float64, or the table of
            the basis is too short for the degree.
        TypeError: x or coeffs is not a tensor.

    Example:
        >>> import torch, slaf_ext
        >>> x = torch.linspace(-1, 1, 5, requires_grad=True)
        >>> coeffs = torch.tensor([0.0, 0.0, 1.0], requires_grad=True)
        >>> y = slaf_ext.slaf(x, coeffs, "chebyshev")         # T_2(x) = 2x² − 1
        >>> y.tolist()
        [1.0, -0.5, -1.0, -0.5, 1.0]
        >>> y.sum().backward()
        >>> x.grad.tolist(), coeffs.grad.tolist()
        ([-4.0, -2.0, 0.0, 2.0, 4.0], [5.0, 0.0, 0.0])

    Source: M. Goyal, R. Goyal, B. Lall, *Learning Activation Functions: A new paradigm for understanding
    Neural Networks*, arXiv:1906.09529; recurrences from DLMF §18.9.
    """
    if isinstance(x, Proxy):  # torch.fx records the call
        place = {"dim": dim, "domain": domain, "outside": outside}
        return x.tracer.create_proxy("call_function", slaf, (x, coeffs, registered_name(basis)), place)
    check_tensor(x)
    return _evaluate(x, coeffs, spec(coeffs, basis, dim, domain, outside))


def _evaluate(x: Tensor, coeffs: Tensor, checked: Spec) -> Tensor:
    """By the operator that tracers record where one is active, else by the faster ones."""
    if is_compiling() or is_traced_before_autograd() or is_traced_by_jit():
        return ops.operator(x, coeffs, *checked)
    return ops.slaf(x, coeffs, checked)


def derivatives(
    x: Tensor,
    coeffs: Tensor,
    order: int,
    basis: str | Basis = "chebyshev",
    *,
    dim: int = 1,
    domain: tuple[float, float] | None = None,
    outside: str = "extrapolate",
) -> tuple[Tensor, ...]:
    """f(x), f'(x), …, up to the derivative of that order: f and its derivatives in x, element by element.

    A derivative of f has coefficients in the same basis, so the kernels of :func:`slaf` evaluate it. A loss made of
    derivatives, that of a physics-informed network for example, then needs one backward pass, which torch.compile
    supports, and not a backward pass through a backward pass.

    Args:
        x, coeffs, basis, dim, domain, outside: as for :func:`slaf`. Beyond an edge, the derivatives are those of the
            constant ("clamp") or of the tangent ("linear") that continues f.
        order: an integer from 0 up.

    Returns:
        order + 1 tensors with x's shape and dtype, each differentiable in x and coeffs to any order.

    Raises:
        ValueError, TypeError: as for :func:`slaf`; order is not an integer from 0 up.
        NotImplementedError: the basis, of parameters of your own or of a degree above 256, loses digits when it is
            differentiated as coefficients; use torch.autograd.grad.

    Example:
        >>> import torch, slaf_ext
        >>> x = torch.tensor([0.5, 1.0])
        >>> y, slope, curvature = slaf_ext.derivatives(x, torch.tensor([0.0, 0.0, 1.0]), 2)  # T_2(x) = 2x² − 1
        >>> slope.tolist(), curvature.tolist()
        ([2.0, 4.0], [4.0, 4.0])

    Source: the derivative of a three-term recurrence, DLMF §18.9.
    """
    check_tensor(x)
    order = check_integer(order, "order", 0)
    checked = spec(coeffs, basis, dim, domain, outside)
    found = [_evaluate(x, coeffs, checked)]
    for _ in range(order):
        coeffs, checked = ops.differentiated(coeffs, checked)
        found.append(_evaluate(x, coeffs, checked))
    return tuple(found)


def normalized_slaf(
    x: Tensor,
    coeffs: Tensor,
    basis: str | Basis = "chebyshev",
    *,
    dim: int = 1,
    domain: tuple[float, float] | None = None,
    outside: str = "extrapolate",
    eps: float = 1e-5,
    sync: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised form, f(x) = β + Σ_k w_k (φ_k(x) − μ_k) / sqrt(v_k + eps), k = 1 … K − 1.

    μ_k and v_k are the mean and the biased variance of φ_k(x) over the elements that share a row of coeffs.
    :class:`slaf_ext.SLAF` with ``normalize=True`` keeps running averages of them.

    Args:
        x: as for :func:`slaf`, dense, with two or more elements for each row of coeffs. On the CPU φ_k(x) may be as
            large as float64 holds, whatever the dtype of x; on a GPU, if x is not float64, as float32 holds, and f(x)
            is NaN where it is larger.
        coeffs: (β, w_1, w_2, …), of shape (K,) or (G, K).
        basis, dim, domain, outside: as for :func:`slaf`.
        eps: a constant added to the variance.
        sync: take the statistics over all ranks of torch.distributed's default group, and let gradients flow to all of
            them, as nn.SyncBatchNorm does. In plain PyTorch. Every rank must call; some may have no elements.

    Returns:
        f(x), with x's shape and dtype, differentiable to any order, also through μ and v; and μ and v themselves, in
        float64, of shape (K − 1,) or (G, K − 1), without a gradient.

    Raises:
        ValueError, TypeError: as for :func:`slaf`; eps is not a finite number greater than 0; x has no elements, or
            one for each group, which has no variance.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 3.0])
        >>> y, mean, var = normalized_slaf(x, torch.tensor([0.0, 1.0, 1.0]), "monomial")
        >>> mean.tolist(), var.tolist()                            # of x and of x²
        ([2.0, 5.0], [1.0, 16.0])
        >>> y.round(decimals=3)
        tensor([-2.,  2.])

    Source: the authors' code of arXiv:1906.09529, which has it for monomials.
    """
    check_floating(x)
    checked = spec(coeffs, basis, dim, domain, outside)
    check_tensors(x, coeffs)
    eps = check_eps(eps)
    if sync:
        y, mean, var = reference.normalized(x, coeffs, *checked, eps=eps, sync=True)
        return y, mean.detach(), var.detach()
    if x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, no elements, and so no mean; the normalised form needs some")
    check_groups(x, coeffs, dim)
    groups = coeffs.shape[0] if coeffs.dim() == 2 else 1
    if x.numel() == groups:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, one element for each row of coeffs, and so no variance; the normalised "
            "form needs two or more in training"
        )
    y, mean, var = ops.normalized(x, coeffs, *checked, eps=eps)
    return y, mean.detach(), var.detach()


def basis_values(
    x: Tensor, degree: int, basis: str | Basis = "chebyshev", *, domain: tuple[float, float] | None = None
) -> Tensor:
    """φ_0(x) … φ_degree(x): the design matrix of the basis, numpy.polynomial's *vander*.

    In plain PyTorch, for fitting and inspection; :func:`slaf` never builds this tensor.

    Args:
        x: a tensor of float16, bfloat16, float32 or float64.
        degree: an integer from 0 up.
        basis, domain: as for :func:`slaf`.

    Returns:
        A tensor of shape (*x.shape, degree + 1) and x's dtype, differentiable.

    Example:
        >>> import torch, slaf_ext
        >>> slaf_ext.basis_values(torch.tensor([0.5]), 3, "legendre")
        tensor([[ 1.0000,  0.5000, -0.1250, -0.4375]])
    """
    return reference.basis_values(x, degree, basis, domain=domain)
