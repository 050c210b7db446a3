"""The operators of the layer with a polynomial on every edge, and their autograd.

With the terms Φ[r, k, i] = φ_k(x[r, i]), k = 1 … n, and W laid out alike, (out, n, in), three matrix products are all:

    y = Φ Wᵀ + b        dW = gᵀ Φ        dΦ = g W

They are the library's. The terms of a panel of rows at a time are expanded into a workspace by a kernel, and expanded
again for backward, whose other kernel contracts dΦ with the slopes: dx[r, i] = Σ_k dΦ[r, k, i] φ_k'(x[r, i]).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import fakes, reference
from .arguments import Spec, check_device, check_kan
from .ops import is_exporting_to_onnx
from .torch_private import below_autograd, is_transformed

# Products of fewer rows are slower, as every panel passes once over dW: by 5 % at 256 rows and 16 % at 128.
PANEL_ROWS = 512
PANEL_BYTES = 2**22  # more rows, where they are short: about the cache of two cores
WORKSPACE_BYTES = 2**26  # fewer rows, where they are long; and on a GPU, which needs a few waves, always

_library = torch.library.Library("slaf_ext", "FRAGMENT")
_library.define(
    "kan_linear(Tensor x, Tensor weight, Tensor? bias, float[] recurrence, int dim, float center, float lo, float hi, "
    "int outside) -> Tensor"
)
_library.define(
    "kan_linear_backward(Tensor grad_output, Tensor x, Tensor weight, float[] recurrence, int dim, float center, "
    "float lo, float hi, int outside, bool need_x, bool need_weight) -> (Tensor, Tensor)"
)
operator = torch.ops.slaf_ext.kan_linear


def kan_linear(x: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    """b + Σ_i Σ_k W[o, i, k] φ_k(x_i), differentiable to any order, in reverse and forward mode."""
    if is_transformed():
        return reference.kan(x, weight, bias, *spec)
    return operator(x, weight, bias, *spec)


class KANFunction(torch.autograd.Function):
    """y = Φ Wᵀ + b. Saves x and W, nothing else."""

    @staticmethod
    def forward(ctx, x, weight, bias, *spec):
        ctx.save_for_backward(x, weight)
        ctx.spec, ctx.bias_dtype = spec, None if bias is None else bias.dtype
        with below_autograd():
            return operator(x, weight, bias, *spec)

    @staticmethod
    def backward(ctx, grad_output):
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        dx, dw = _differentiable_backward(grad_output, x, weight, *ctx.spec, need_x, need_weight)
        db = None
        if need_bias:
            wide = torch.promote_types(grad_output.dtype, torch.float32)
            db = grad_output.reshape(-1, grad_output.shape[-1]).sum(0, dtype=wide).to(ctx.bias_dtype)
        return dx if need_x else None, dw if need_weight else None, db, *(None for _ in ctx.spec)


def _differentiable(x, weight, bias, *spec):
    if is_transformed() or is_exporting_to_onnx():
        check_kan(x, weight, bias)
        return reference.kan(x, weight, bias, *spec)
    return KANFunction.apply(x, weight, bias, *spec)


def _differentiable_backward(grad_output, x, weight, *spec_and_needs):
    *spec, need_x, need_weight = spec_and_needs
    tensors = grad_output, x, weight
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        # Views cut the graph here: if weight depends on x, this derivative must not follow that path too.
        x, weight = (t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (x, weight))
        needed = [t for t, need in ((x, need_x), (weight, need_weight)) if need]
        y = reference.kan(x, weight, None, *spec)
        gradients = list(torch.autograd.grad(y, needed, grad_output, create_graph=True)) if needed else []
        return gradients.pop(0) if need_x else x.new_empty(0), gradients.pop(0) if need_weight else weight.new_empty(0)
    with below_autograd():
        return torch.ops.slaf_ext.kan_linear_backward(grad_output, x, weight, *spec, need_x, need_weight)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, *spec) -> Tensor:
    check_kan(x, weight, bias)
    x, packed = x.contiguous(), Spec(*spec).packed
    matrix = _matrix(weight, x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    y = x.new_empty(*x.shape[:-1], len(weight))
    for rows, out, terms in _panels(x, y, weight):
        torch.ops.slaf_ext.kan_expand(rows, packed, terms)
        if bias is None:
            torch.mm(terms.flatten(1), matrix.T, out=out)
        else:
            torch.addmm(bias, terms.flatten(1), matrix.T, out=out)
    return y


def _backward(grad_output: Tensor, x: Tensor, weight: Tensor, *spec_and_needs) -> tuple[Tensor, Tensor]:
    *spec, need_x, need_weight = spec_and_needs
    _check_backward(grad_output, x, weight)
    x, packed = x.contiguous(), Spec(*spec).packed
    out, columns, degree = weight.shape
    matrix = _matrix(weight, x.dtype) if need_x else None
    dx = torch.empty_like(x) if need_x else x.new_empty(0)
    wide = torch.promote_types(x.dtype, torch.float32)
    dmatrix = x.new_zeros(out, degree * columns, dtype=wide) if need_weight else None
    # A sum of panels in half precision would lose digits.
    product = x.new_empty(out, degree * columns) if need_weight and wide != x.dtype else None
    done = 0
    for rows, g, terms in _panels(x, grad_output, weight):
        if dmatrix is not None:
            torch.ops.slaf_ext.kan_expand(rows, packed, terms)
            if product is None:
                torch.addmm(dmatrix, g.T, terms.flatten(1), out=dmatrix)
            else:
                dmatrix += torch.mm(g.T, terms.flatten(1), out=product)
        if matrix is not None:
            torch.mm(g, matrix, out=terms.flatten(1))
            to = dx.view(-1, columns)[done : done + len(rows)]
            torch.ops.slaf_ext.kan_contract(rows, packed, terms, to)
        done += len(rows)
    if dmatrix is None:
        return dx, weight.new_empty(0)
    del matrix, product  # before the last copy, which would be the peak
    return dx, dmatrix.view(out, degree, columns).transpose(1, 2).to(weight.dtype).contiguous()


def _matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """W as the terms are laid out: (out, n · in)."""
    return weight.to(dtype).transpose(1, 2).flatten(1)


def _panels(x: Tensor, other: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Panels of the rows of x and of a tensor beside it, each with its part of a workspace for terms."""
    _, columns, degree = weight.shape
    x, other = x.view(-1, columns), other.reshape(-1, len(weight))
    row_bytes = columns * degree * x.element_size()
    most = WORKSPACE_BYTES // row_bytes
    height = max(1, most if x.is_cuda else min(most, max(PANEL_ROWS, PANEL_BYTES // row_bytes)))
    workspace = x.new_empty(min(height, len(x)), degree, columns)
    for start in range(0, len(x), height):
        rows = x[start : start + height]
        yield rows, other[start : start + height], workspace[: len(rows)]


def _fake(x, weight, bias, *spec):
    check_kan(x, weight, bias)
    return x.new_empty(*x.shape[:-1], len(weight))


def _fake_backward(grad_output, x, weight, *spec_and_needs):
    *_, need_x, need_weight = spec_and_needs
    _check_backward(grad_output, x, weight)
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format) if need_weight else weight.new_empty(0),
    )


def _check_backward(grad_output: Tensor, x: Tensor, weight: Tensor) -> None:
    check_kan(x, weight, None)
    expected = (*x.shape[:-1], len(weight))
    if grad_output.shape != expected or grad_output.dtype != x.dtype:
        raise ValueError(
            f"grad_output is {grad_output.dtype} of shape {tuple(grad_output.shape)}; it must be {x.dtype} of shape "
            f"{tuple(expected)}"
        )
    check_device(x, grad_output=grad_output)


# What the operators are made of, for formats that have standard operators alone.
DECOMPOSITIONS: dict[Any, Callable] = {torch.ops.slaf_ext.kan_linear.default: reference.kan}

for _key in ("CPU", "CUDA"):
    _library.impl("kan_linear", _forward, _key)
    _library.impl("kan_linear_backward", _backward, _key)
_library.impl("kan_linear", _differentiable, "Autograd")
_library.impl("kan_linear_backward", _differentiable_backward, "Autograd")
_fakes: dict[str, Callable] = {
    "kan_linear": _fake,
    "kan_linear_backward": _fake_backward,
    "kan_expand": lambda x, _, terms: check_device(x, terms=terms),
    "kan_contract": lambda x, _, grad_terms, grad_x: check_device(x, grad_terms=grad_terms, grad_x=grad_x),
}
fakes.register(_library, _fakes)
