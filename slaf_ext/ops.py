"""The operators of the activation and their autograd; kan_ops.py holds those of KANLinear.

The operators take a basis as its flat recurrence (A_0, B_0, C_0, A_1, …). With S(x, a) = Σ a_k φ_k(x), the
forward operator, D the matrix that differentiates coefficients and R the sum over elements,

    y = S(x, a)        dx = g S(x, D a)        da = R(x, g) = Σ g φ_k(x)

so the derivative of the backward operator is made of the same two operators, and so is every higher order.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.compiler import assume_constant_result, is_compiling
from torch.nn import Parameter

from . import fakes, reference
from .arguments import DERIVATIVE, OUTSIDE, Spec, check_arguments, check_dense
from .extension import _C, has_cuda_kernels
from .torch_private import (
    below_autograd,
    direct_apply,
    direct_call,
    dispatch_stack_depth,
    is_traced_before_autograd,
    is_traced_by_jit,
    is_transformed,
    jagged_sizes,
    unwrap_if_dead,
)

# The operator that tracers record: differentiable, with the spec in plain numbers.
operator = torch.ops.slaf_ext.slaf

# The operators that run otherwise: they bypass autograd, and take the spec as one tensor, because at 64 elements six
# arguments with a float[] among them make forward 1.7 and forward + backward 1.2 times as slow.
_slaf = direct_call(torch.ops.slaf_ext._slaf.default)
_slaf_backward = direct_call(torch.ops.slaf_ext._slaf_backward.default)

# Above this variance the coefficients of the normalised form exceed float32.
LARGE_VARIANCE = 2.0**160


def slaf(x: Tensor, coeffs: Tensor, spec: Spec) -> Tensor:
    """S(x, a), differentiable to any order, in reverse and forward mode."""
    if x.is_nested:
        return _slaf_of_nested(x, coeffs, spec)
    if is_transformed():
        return reference.expand(x, coeffs, *spec)
    if torch.is_grad_enabled() and (x.requires_grad or coeffs.requires_grad):
        return _apply(unwrap_if_dead(x), unwrap_if_dead(coeffs), spec)
    return _forward(x, coeffs, spec)


class SlafFunction(torch.autograd.Function):
    """y = S(x, a). Saves x and a, nothing else."""

    @staticmethod
    def forward(ctx, x, coeffs, spec):
        ctx.save_for_backward(x, coeffs)
        ctx.spec = spec
        return _forward(x, coeffs, spec)

    @staticmethod
    def backward(ctx, grad_output):
        x, coeffs = ctx.saved_tensors
        need_x, need_coeffs, _ = ctx.needs_input_grad
        dx, da = slaf_backward(grad_output, x, coeffs, ctx.spec, need_x, need_coeffs)
        return dx if need_x else None, da if need_coeffs else None, None


_apply = direct_apply(SlafFunction)


def slaf_backward(
    grad_output: Tensor, x: Tensor, coeffs: Tensor, spec: Spec, need_x: bool, need_coeffs: bool
) -> tuple[Tensor, Tensor]:
    """(g S(x, D a), R(x, g)), differentiable as :func:`slaf` is; a gradient that is not needed is empty."""
    recorded = torch.is_grad_enabled() and (grad_output.requires_grad or x.requires_grad or coeffs.requires_grad)
    if is_transformed() or (recorded and _matrix(spec) is None):
        return reference.gradients(grad_output, x, coeffs, *spec, need_x, need_coeffs)
    if recorded:
        return SlafBackwardFunction.apply(grad_output, x, coeffs, spec, need_x, need_coeffs)
    return _backward(grad_output, x, coeffs, spec, need_x, need_coeffs)


class SlafBackwardFunction(torch.autograd.Function):
    """dx = g S(x, D a) and da = R(x, g). Their backward takes the cotangents v of dx and w of da."""

    @staticmethod
    def forward(ctx, grad_output, x, coeffs, spec, need_dx, need_da):
        ctx.save_for_backward(grad_output, x, coeffs)
        ctx.spec, ctx.needs = spec, (need_dx, need_da)
        ctx.set_materialize_grads(False)
        return _backward(grad_output, x, coeffs, spec, need_dx, need_da)

    @staticmethod
    def backward(ctx, v, w):
        g, x, a = ctx.saved_tensors
        need_dx, need_da = ctx.needs
        v, w = v if need_dx else None, w if need_da else None
        dg = dx = da = None
        if v is not None:
            slopes, slopes_spec = differentiated(a, ctx.spec)
            if ctx.needs_input_grad[0]:
                dg = v * slaf(x, slopes, slopes_spec)
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                # The backward of S(x, D a) in x and D a, then D's transpose from D a to a.
                needs = ctx.needs_input_grad[1:3]
                dx, d_slopes = slaf_backward(v * g, x, slopes, slopes_spec, *needs)
                da = (d_slopes.double() @ _matrix_beside(a, ctx.spec).T).to(a.dtype) if needs[1] else None
                dx = dx if needs[0] else None
        if w is not None:
            if ctx.needs_input_grad[0]:
                more = slaf(x, w, ctx.spec)
                dg = more if dg is None else dg + more
            if ctx.needs_input_grad[1]:
                more = g * slaf(x, *differentiated(w, ctx.spec))
                dx = more if dx is None else dx + more
        return dg, dx, da, None, None, None


def _forward(x: Tensor, coeffs: Tensor, spec: Spec) -> Tensor:
    """S(x, a) below autograd."""
    try:
        if _observed(x, x, coeffs):
            with below_autograd():
                return torch.ops.slaf_ext.slaf.default(x, coeffs, *spec)
        return _slaf(x, coeffs, spec.packed)
    except RuntimeError:
        check_arguments(x, coeffs, *spec)  # torch 2.15 makes the kernels' ValueError a RuntimeError
        raise


def _backward(grad_output: Tensor, x: Tensor, coeffs: Tensor, spec: Spec, *needs: bool) -> tuple[Tensor, Tensor]:
    """(g S(x, D a), R(x, g)) below autograd."""
    if _observed(grad_output, x, coeffs):
        with below_autograd():
            return torch.ops.slaf_ext.slaf_backward.default(grad_output, x, coeffs, *spec, *needs)
    return _slaf_backward(grad_output, x, coeffs, spec.packed, *needs)


def _observed(grad_output: Tensor, x: Tensor, coeffs: Tensor) -> bool:
    """Whether a tracer, a fake kernel or a subclass will see the call, and needs the spec in plain numbers."""
    plain = (Tensor, Parameter)
    if type(grad_output) in plain and type(x) in plain and type(coeffs) in plain:
        return x.is_meta or dispatch_stack_depth() > 0
    _distributed()
    return True


def _distributed() -> ModuleType | None:
    """The rules for DTensors, once there can be some: torch's own module of them is slow to import."""
    if "torch.distributed.tensor" not in sys.modules:
        return None
    from . import distributed

    return distributed


def _slaf_of_nested(x: Any, coeffs: Tensor, spec: Spec) -> Tensor:
    """S on the values of a jagged tensor, which share one polynomial."""
    if x.layout is not torch.jagged:
        check_dense(x)
    if coeffs.dim() != 1:
        raise ValueError(
            f"x is a jagged nested tensor and coeffs have shape {tuple(coeffs.shape)}; its values share one "
            "polynomial, coeffs of shape (K,)"
        )
    values = slaf(x.values(), coeffs, spec)
    return torch.nested.nested_tensor_from_jagged(values, x.offsets(), lengths=x.lengths(), **jagged_sizes(x))


def differentiated(coeffs: Tensor, spec: Spec) -> tuple[Tensor, Spec]:
    """The coefficients D a and the spec of the derivative in x."""
    if _matrix(spec) is None:
        raise NotImplementedError(
            f"the derivatives of this basis at degree {coeffs.shape[-1] - 1} lose digits as coefficients; use "
            "torch.autograd.grad(y.sum(), x, create_graph=True)"
        )
    slopes = (coeffs.double() @ _matrix_beside(coeffs, spec)).to(torch.promote_types(coeffs.dtype, torch.float32))
    return slopes, spec._replace(outside=DERIVATIVE[spec.outside])


def _matrix(spec: Spec) -> tuple[float, ...] | None:
    """D, flat: (D a)_j = Σ_k a_k D[k, j]. None where it would lose digits; plain PyTorch differentiates instead."""
    return _constant_matrix(tuple(spec.recurrence), spec.lo - spec.center, spec.hi - spec.center)


@assume_constant_result  # torch.compile cannot look into the compiled part
def _constant_matrix(recurrence: tuple[float, ...], lo: float, hi: float) -> tuple[float, ...] | None:
    return _cached_matrix(recurrence, lo, hi)


@functools.lru_cache(maxsize=256)
def _cached_matrix(recurrence: tuple[float, ...], lo: float, hi: float) -> tuple[float, ...] | None:
    return tuple(_C.usable_derivative_matrix(list(recurrence), lo, hi)) or None


def _matrix_beside(coeffs: Tensor, spec: Spec) -> Tensor:
    """D as a float64 tensor that can be multiplied with coeffs."""
    K = len(spec.recurrence) // 3 + 1
    matrix = torch.tensor(_matrix(spec), dtype=torch.float64, device=coeffs.device).view(K, K)
    rules = _distributed()
    return rules.beside(matrix, coeffs) if rules else matrix


def normalized(x: Tensor, coeffs: Tensor, *spec, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised form and its statistics, as :func:`reference.normalized`; fused where a kernel can do it."""
    # torch.compile cannot look into NormalizedFunction, but traces through an operator that is made of others.
    return (torch.ops.slaf_ext.slaf_normalized if is_compiling() else _normalized)(x, coeffs, *spec, eps)


def _normalized(x: Tensor, coeffs: Tensor, *spec_and_eps) -> tuple[Tensor, Tensor, Tensor]:
    *spec, eps = spec_and_eps
    is_fused = spec[-1] in (OUTSIDE["extrapolate"], OUTSIDE["clamp"]) and _is_fused(x)
    if not is_fused or is_exporting_to_onnx():
        return reference.normalized(x, coeffs, *spec, eps=eps)
    try:
        return NormalizedFunction.apply(x, coeffs, eps, *spec)
    except RuntimeError:
        check_arguments(x, coeffs, *spec)  # as in _forward
        raise


def fold(coeffs: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """:func:`reference.fold`; fused where a kernel can do it and neither autograd nor a tracer records it."""
    recorded = torch.is_grad_enabled() and (coeffs.requires_grad or mean.requires_grad or variance.requires_grad)
    traced = is_compiling() or is_traced_before_autograd() or is_traced_by_jit()
    traced = traced or _observed(mean, variance, coeffs)
    if recorded or traced or not _is_fused(coeffs):
        return reference.fold(coeffs, mean, variance, eps)
    # Users may have converted a module's statistics.
    mean, variance = mean.double().contiguous(), variance.double().contiguous()
    return torch.ops.slaf_ext.slaf_fold.default(coeffs, mean, variance, eps, True)


def is_exporting_to_onnx() -> bool:
    """Whether torch.onnx.export records the call, which has standard operators alone. A decomposition in torch's own
    table would serve it too, but keeps torch.compile from calling the operator where the environment has CI."""
    # Outside a tracer there is nothing to ask, and the first question costs 20 ms.
    return dispatch_stack_depth() > 0 and torch.onnx.is_in_onnx_export()


def _is_fused(tensor: Tensor) -> bool:
    """Whether kernels can compute the normalised form of a tensor: no transform needs to look inside."""
    return (tensor.is_cpu or (tensor.is_cuda and has_cuda_kernels)) and not is_transformed()


class NormalizedFunction(torch.autograd.Function):
    """Moments, then the plain form with folded coefficients. A second derivative goes through the definition."""

    @staticmethod
    def forward(ctx, x, coeffs, eps, *spec):
        with below_autograd():
            mean, variance = torch.ops.slaf_ext.slaf_moments.default(x, coeffs, *spec)
            wide = x.double() if is_beyond_float32(x, variance) else x
            in_double = wide.dtype == torch.float64
            folded = torch.ops.slaf_ext.slaf_fold.default(coeffs, mean, variance, eps, in_double)
            y = _forward(wide, folded, Spec(*spec)).to(x.dtype)
        ctx.save_for_backward(x, coeffs, mean, variance)
        ctx.eps, ctx.spec = eps, spec
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx, grad_output, *_):
        x, coeffs, mean, variance = ctx.saved_tensors
        need_x, need_coeffs = ctx.needs_input_grad[:2]
        rest = (None, *(None for _ in ctx.spec))
        if torch.is_grad_enabled():
            # Views cut the graph here: if coeffs depend on x, this derivative must not follow that path too.
            x, coeffs = x.view_as(x), coeffs.view_as(coeffs)
            needed = [t for t, need in ((x, need_x), (coeffs, need_coeffs)) if need]
            y, *_ = reference.normalized(x, coeffs, *ctx.spec, eps=ctx.eps)
            gradients = list(torch.autograd.grad(y, needed, grad_output, create_graph=True))
            return gradients.pop(0) if need_x else None, gradients.pop(0) if need_coeffs else None, *rest
        dx, da = torch.ops.slaf_ext.slaf_normalized_backward.default(
            grad_output, x, coeffs, mean, variance, *ctx.spec, ctx.eps, need_x
        )
        return dx if need_x else None, da if need_coeffs else None, *rest


def is_beyond_float32(x: Tensor, variance: Tensor) -> bool:
    """Whether coefficients folded with these variances need float64. False where the question itself would have to wait
    for a GPU or for other ranks, or would break a trace."""
    may_ask = x.is_cpu and x.dtype != torch.float64 and not is_compiling() and not is_transformed()
    may_ask = may_ask and type(variance) is Tensor
    return may_ask and dispatch_stack_depth() == 0 and bool((variance > LARGE_VARIANCE).any())


def _differentiable_slaf(x, coeffs, *spec):
    check_dense(x)
    check_dense(coeffs, "coeffs")
    if is_exporting_to_onnx():
        return reference.expand(x, coeffs, *spec)
    return slaf(x, coeffs, Spec(*spec))


def _differentiable_slaf_backward(grad_output, x, coeffs, *spec_and_needs):
    *spec, need_x, need_coeffs = spec_and_needs
    for name, tensor in (("grad_output", grad_output), ("x", x), ("coeffs", coeffs)):
        check_dense(tensor, name)
    return slaf_backward(grad_output, x, coeffs, Spec(*spec), need_x, need_coeffs)


# What the operators are made of, for formats that have standard operators alone.
DECOMPOSITIONS: dict[Any, Callable] = {
    torch.ops.slaf_ext.slaf.default: reference.expand,
    torch.ops.slaf_ext.slaf_backward.default: reference.gradients,
    torch.ops.slaf_ext.slaf_moments.default: reference.moments,
    torch.ops.slaf_ext.slaf_fold.default: reference.folded,
}

_fakes: dict[str, Callable] = {
    "slaf": fakes.slaf,
    "_slaf": fakes.slaf,
    "slaf_backward": fakes.slaf_backward,
    "_slaf_backward": fakes.slaf_backward,
    "slaf_moments": fakes.slaf_moments,
    "slaf_fold": fakes.slaf_fold,
    "slaf_normalized_backward": fakes.slaf_normalized_backward,
}
_library = torch.library.Library("slaf_ext", "FRAGMENT")
_library.define(
    "slaf_normalized(Tensor x, Tensor coeffs, float[] recurrence, int dim, float center, float lo, float hi, "
    "int outside, float eps) -> (Tensor, Tensor, Tensor)"
)
_library.impl("slaf_normalized", _normalized, "CompositeImplicitAutograd")
# Not torch.library.register_autograd, which lets tensors of forward mode through and drops their tangents.
_library.impl("slaf", _differentiable_slaf, "Autograd")
_library.impl("slaf_backward", _differentiable_slaf_backward, "Autograd")
_library.impl("_slaf", torch.library.fallthrough_kernel, "Autograd")
_library.impl("_slaf_backward", torch.library.fallthrough_kernel, "Autograd")
fakes.register(_library, _fakes)
