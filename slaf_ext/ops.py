"""Loads the extension, and teaches PyTorch about its two operators: fakes and autograd.

The operators know a basis as its flat recurrence (A_0, B_0, C_0, A_1, …). With S(x, a) = Σ a_k φ_k(x), the
forward operator, D the matrix that differentiates coefficients and R the sum over elements,

    y = S(x, a)        dx = g S(x, D a)        da = R(x, g) = Σ g φ_k(x)

so the derivative of the backward operator is made of the same two operators, and so is every order above.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import Parameter

from . import __path__, reference
from .reference import OUTSIDE, Spec

try:
    from . import _C

    # The CUDA kernels, if they were built. Only a torch with CUDA can load them.
    CUDA_LIBRARY = next(Path(_C.__file__).parent.glob("_cuda.*"), None)
    _has_cuda = CUDA_LIBRARY is not None and torch.version.cuda is not None
    if _has_cuda:
        torch.ops.load_library(CUDA_LIBRARY)
except (ImportError, OSError) as error:
    tags = [
        path.name[3:] for folder in __path__ for path in Path(folder).glob("_C.*") if path.suffix in (".so", ".pyd")
    ]
    if not tags:
        reason = f"slaf_ext is not built: there is no compiled part in {' or '.join(__path__)}"
    elif not {f".{tag}" for tag in tags} & set(EXTENSION_SUFFIXES):
        reason = f"slaf_ext is built for another Python, {', '.join(tags)}; this one is {EXTENSION_SUFFIXES[0][1:]}"
    else:
        reason = f"the compiled part of slaf_ext does not load with torch {torch.__version__} ({error})"
    raise ImportError(
        f"{reason}; build it for this Python and this torch, in the folder of its sources: "
        "pip install --no-build-isolation --force-reinstall --no-deps ."
    ) from None

# The operators that autograd passes by, with the spec in one tensor: where tensors are small, time goes with the number
# of arguments. `_op` is what a call of an operator comes down to, without the Python around it.
_slaf, _slaf_backward = torch.ops.slaf_ext._slaf.default._op, torch.ops.slaf_ext._slaf_backward.default._op


# From such a variance on, the coefficients of the normalised form need float64.
LARGE_VARIANCE = 2.0**160

# Whether a tracer records what autograd has not seen yet: make_fx(…, pre_dispatch=True), torch.jit.trace.
is_traced_before_autograd = functools.partial(
    torch._C._dispatch_tls_is_dispatch_key_included, torch._C.DispatchKey.PreDispatch
)
is_traced_by_jit = torch._C._is_tracing


def slaf(x: Tensor, coeffs: Tensor, spec: Spec) -> Tensor:
    """S(x, a), differentiable to any order in either mode."""
    if x.is_nested:
        return _slaf_of_nested(x, coeffs, spec)
    if _transformed():
        return reference.expand(x, coeffs, *spec)
    if torch.is_grad_enabled() and (x.requires_grad or coeffs.requires_grad):
        return _apply(unwrap_if_dead(x), unwrap_if_dead(coeffs), spec)
    return _forward(x, coeffs, spec)


def slaf_backward(
    grad_output: Tensor, x: Tensor, coeffs: Tensor, spec: Spec, need_x: bool, need_coeffs: bool
) -> tuple[Tensor, Tensor]:
    """(g S(x, D a), R(x, g)), differentiable to any order in either mode; what is not needed is empty."""
    recorded = torch.is_grad_enabled() and (grad_output.requires_grad or x.requires_grad or coeffs.requires_grad)
    if _transformed() or (recorded and _matrix(spec) is None):
        dx = reference.input_gradient(grad_output, x, coeffs, *spec) if need_x else x.new_empty(0)
        da = reference.coeffs_gradient(grad_output, x, coeffs, *spec) if need_coeffs else coeffs.new_empty(0)
        return dx, da
    if recorded:
        return SlafBackwardFunction.apply(grad_output, x, coeffs, spec, need_x, need_coeffs)
    return _backward(grad_output, x, coeffs, spec, need_x, need_coeffs)


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


# SlafFunction.apply without its search for torch.func's transforms, which `_transformed` has done: 7 % of forward and
# backward of 4096 elements.
_apply = super(torch.autograd.Function, SlafFunction).apply


def normalized(x: Tensor, coeffs: Tensor, *spec, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised form and its statistics, :func:`reference.normalized`, fused where there is a kernel."""
    if spec[-1] not in (OUTSIDE["extrapolate"], OUTSIDE["clamp"]) or not _is_fused(x):
        return reference.normalized(x, coeffs, *spec, eps=eps)
    return NormalizedFunction.apply(x, coeffs, eps, *spec)


def fold(coeffs: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """:func:`reference.fold`, fused where there is a kernel and no gradient to come, not even through a trace."""
    recorded = torch.is_grad_enabled() and (coeffs.requires_grad or mean.requires_grad or variance.requires_grad)
    traced = is_traced_before_autograd() or is_traced_by_jit() or _observed(mean, variance, coeffs)
    if recorded or traced or not _is_fused(coeffs):
        return reference.fold(coeffs, mean, variance, eps)
    # A module's statistics are what its user made of them.
    mean, variance = mean.double().contiguous(), variance.double().contiguous()
    return torch.ops.slaf_ext.slaf_fold.default(coeffs, mean, variance, eps, True)


def _is_fused(tensor: Tensor) -> bool:
    """Whether the normalised form has kernels for a tensor, and nobody needs to see through them."""
    return (tensor.is_cpu or (tensor.is_cuda and _has_cuda)) and not _transformed() and not is_compiling()


class NormalizedFunction(torch.autograd.Function):
    """Moments, then the plain form with folded coefficients. Its second derivative is that of the definition."""

    @staticmethod
    def forward(ctx, x, coeffs, eps, *spec):
        with torch._C._AutoDispatchBelowAutograd():
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
            # Views, so that what x and coeffs depend on, such as each other, is no part of this derivative.
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
    """Whether the coefficients that go with such variances need float64. Not asked where the answer would cost a wait,
    or break a trace."""
    asked = x.is_cpu and x.dtype != torch.float64 and not is_compiling() and not _transformed()
    return asked and torch._C._len_torch_dispatch_stack() == 0 and bool((variance > LARGE_VARIANCE).any())


class SlafBackwardFunction(torch.autograd.Function):
    """dx = g S(x, D a) and da = R(x, g). Their own derivative, for cotangents v of dx and w of da."""

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
            slopes, slopes_spec = _differentiated(a, ctx.spec)
            if ctx.needs_input_grad[0]:
                dg = v * slaf(x, slopes, slopes_spec)
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                # S(x, D a) as a function of x and D a: its own backward, and D's transpose from D a to a.
                needs = ctx.needs_input_grad[1:3]
                dx, d_slopes = slaf_backward(v * g, x, slopes, slopes_spec, *needs)
                da = (d_slopes.double() @ _matrix_on(a.device, ctx.spec).T).to(a.dtype) if needs[1] else None
                dx = dx if needs[0] else None
        if w is not None:
            if ctx.needs_input_grad[0]:
                more = slaf(x, w, ctx.spec)
                dg = more if dg is None else dg + more
            if ctx.needs_input_grad[1]:
                more = g * slaf(x, *_differentiated(w, ctx.spec))
                dx = more if dx is None else dx + more
        return dg, dx, da, None, None, None


def _forward(x: Tensor, coeffs: Tensor, spec: Spec) -> Tensor:
    """S(x, a) below autograd."""
    if _observed(x, x, coeffs):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.slaf_ext.slaf.default(x, coeffs, *spec)
    return _slaf(x, coeffs, spec.packed)


def _slaf_of_nested(x: Any, coeffs: Tensor, spec: Spec) -> Tensor:
    """S on the values of a jagged tensor, which share one polynomial."""
    if x.layout is not torch.jagged:
        reference.check_dense(x)
    if coeffs.dim() != 1:
        raise ValueError(
            f"x is a jagged nested tensor and coeffs have shape {tuple(coeffs.shape)}; its values share one "
            "polynomial, coeffs of shape (K,)"
        )
    values = slaf(x.values(), coeffs, spec)
    sizes = {"min_seqlen": x._maybe_min_seqlen, "max_seqlen": x._maybe_max_seqlen, "jagged_dim": x._ragged_idx}
    return torch.nested.nested_tensor_from_jagged(values, x.offsets(), lengths=x.lengths(), **sizes)


def _backward(grad_output: Tensor, x: Tensor, coeffs: Tensor, spec: Spec, *needs: bool) -> tuple[Tensor, Tensor]:
    """(g S(x, D a), R(x, g)) below autograd."""
    if _observed(grad_output, x, coeffs):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.slaf_ext.slaf_backward.default(grad_output, x, coeffs, *spec, *needs)
    return _slaf_backward(grad_output, x, coeffs, spec.packed, *needs)


def _observed(grad_output: Tensor, x: Tensor, coeffs: Tensor) -> bool:
    """Whether someone looks on who is to see the numbers of a spec: a tracer, or the fakes, who check them."""
    plain = (Tensor, Parameter)
    known = type(grad_output) in plain and type(x) in plain and type(coeffs) in plain
    return not known or x.is_meta or torch._C._len_torch_dispatch_stack() > 0


def _differentiated(coeffs: Tensor, spec: Spec) -> tuple[Tensor, Spec]:
    """The coefficients D a and the spec of the derivative in x."""
    slopes = (coeffs.double() @ _matrix_on(coeffs.device, spec)).to(torch.promote_types(coeffs.dtype, torch.float32))
    derivative_of = {OUTSIDE["extrapolate"]: 0, reference.ZERO: reference.ZERO, OUTSIDE["clamp"]: reference.ZERO}
    return slopes, spec._replace(outside=derivative_of.get(spec.outside, OUTSIDE["clamp"]))


def _matrix(spec: Spec) -> tuple[float, ...] | None:
    """D, flat: (D a)_j = Σ_k a_k D[k, j]. None where it would cost digits, and plain PyTorch differentiates instead."""
    return _cached_matrix(tuple(spec.recurrence), spec.lo - spec.center, spec.hi - spec.center)


@functools.lru_cache(maxsize=256)
def _cached_matrix(recurrence: tuple[float, ...], lo: float, hi: float) -> tuple[float, ...] | None:
    return tuple(_C.usable_derivative_matrix(list(recurrence), lo, hi)) or None


def _matrix_on(device: torch.device, spec: Spec) -> Tensor:
    """D as a float64 tensor."""
    K = len(spec.recurrence) // 3 + 1
    return torch.tensor(_matrix(spec), dtype=torch.float64, device=device).view(K, K)


def _transformed() -> bool:
    """Whether forward-mode or torch.func's transforms are at work, which only plain PyTorch serves."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _differentiable_slaf(x, coeffs, *spec):
    reference.check_dense(x)
    reference.check_dense(coeffs, "coeffs")
    return slaf(x, coeffs, Spec(*spec))


def _differentiable_slaf_backward(grad_output, x, coeffs, *spec_and_needs):
    *spec, need_x, need_coeffs = spec_and_needs
    for name, tensor in (("grad_output", grad_output), ("x", x), ("coeffs", coeffs)):
        reference.check_dense(tensor, name)
    return slaf_backward(grad_output, x, coeffs, Spec(*spec), need_x, need_coeffs)


def _check(x, coeffs, *spec, **others):
    """What the kernels check too, for fakes, which meta tensors meet in their place."""
    if len(spec) > 1:
        reference.check_arguments(x, coeffs, *spec)
    else:
        reference.check_tensors(x, coeffs)
        if spec[0].device.type != "cpu":
            raise ValueError(f"the spec is on {spec[0].device}; it must be on the CPU")
    reference.check_device(x, **others)


def _fake_slaf(x, coeffs, *spec):
    _check(x, coeffs, *spec)
    return torch.empty_like(x)


def _fake_slaf_backward(grad_output, x, coeffs, *spec_and_needs):
    *spec, need_x, need_coeffs = spec_and_needs
    _check(x, coeffs, *spec, grad_output=grad_output)
    return (
        torch.empty_like(x) if need_x else x.new_empty(0),
        torch.empty_like(coeffs, memory_format=torch.contiguous_format) if need_coeffs else coeffs.new_empty(0),
    )


def _fake_slaf_moments(x, coeffs, *spec):
    _check(x, coeffs, *spec)
    statistics = coeffs.new_empty((*coeffs.shape[:-1], coeffs.shape[-1] - 1), dtype=torch.float64)
    return statistics, torch.empty_like(statistics)


def _fake_slaf_fold(coeffs, mean, variance, eps, in_double):
    reference.check_floating(coeffs, "coeffs")
    reference.check_shape(coeffs)
    sizes = (*coeffs.shape[:-1], coeffs.shape[-1] - 1)
    for name, statistics in (("mean", mean), ("variance", variance)):
        if statistics.dtype != torch.float64 or statistics.shape != sizes or statistics.device != coeffs.device:
            raise ValueError(
                f"the {name} is {str(statistics.dtype).removeprefix('torch.')} of shape {tuple(statistics.shape)} on "
                f"{statistics.device}; it must be what slaf_moments returns: contiguous, float64, on {coeffs.device}, "
                f"of the shape of coeffs, {tuple(coeffs.shape)}, without its first column"
            )
    reference.check_eps(eps)
    return coeffs.new_empty(coeffs.shape, dtype=torch.float64 if in_double else torch.float32)


def _fake_slaf_normalized_backward(grad_output, x, coeffs, mean, variance, *spec_and_rest):
    *spec, _eps, need_x = spec_and_rest
    _check(x, coeffs, *spec, grad_output=grad_output, mean=mean, variance=variance)
    dx = torch.empty_like(x) if need_x else x.new_empty(0)
    return dx, torch.empty_like(coeffs, memory_format=torch.contiguous_format)


def _unserved(names: Sequence[str], *arguments):
    """What an operator does with a layout or a device that has no kernel: it says so."""
    for name, tensor in zip(names, arguments, strict=False):
        if not isinstance(tensor, Tensor):
            continue
        reference.check_dense(tensor, name)
        if tensor.is_cuda:
            raise NotImplementedError(
                f"{name} is on {tensor.device} and this build of slaf_ext has no CUDA kernels; build them with the "
                "CUDA toolkit at hand: SLAF_EXT_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps ."
            )
        reference.check_floating(tensor, name)
        if not tensor.is_cpu:
            raise NotImplementedError(
                f"{name} is on {tensor.device}; slaf has kernels for the CPU and for CUDA devices"
            )


torch.library.register_fake("slaf_ext::slaf_moments", _fake_slaf_moments)
torch.library.register_fake("slaf_ext::slaf_fold", _fake_slaf_fold)
torch.library.register_fake("slaf_ext::slaf_normalized_backward", _fake_slaf_normalized_backward)
for _prefix in ("", "_"):
    torch.library.register_fake(f"slaf_ext::{_prefix}slaf", _fake_slaf)
    torch.library.register_fake(f"slaf_ext::{_prefix}slaf_backward", _fake_slaf_backward)
# Not torch.library.register_autograd, which passes tensors of forward mode on with their tangents dropped.
_library = torch.library.Library("slaf_ext", "IMPL")
_library.impl("slaf", _differentiable_slaf, "Autograd")
_library.impl("slaf_backward", _differentiable_slaf_backward, "Autograd")
for _name in ("_slaf", "_slaf_backward"):
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")
for _name in (
    *("slaf", "_slaf", "slaf_backward", "_slaf_backward"),
    *("slaf_moments", "slaf_fold", "slaf_normalized_backward"),
):
    _names = [argument.name for argument in getattr(torch.ops.slaf_ext, _name).default._schema.arguments]
    for _key in ("CompositeExplicitAutograd", "NestedTensorCPU", "NestedTensorCUDA", "AutogradNestedTensor"):
        _library.impl(_name, functools.partial(_unserved, _names), _key)
