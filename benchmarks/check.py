"""Whether a variant computes what it should: the check that comes before any timing.

Polynomials are compared with slaf_ext.reference in float64, which the tests hold to numpy, scipy and mpmath; every
other function is compared with its definition in plain PyTorch in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from slaf_ext import reference
from slaf_ext.bases import Basis

from . import variants
from .cases import Case
from .variants import Prepared

# Errors, relative to the largest true value, beyond which a variant is refused. In fp32 up to 2e-5 was seen, in sums
# over a million elements.
LIMITS = {"fp64": 1e-12, "fp32": 1e-4, "fp16": 2e-2, "bf16": 6e-2}
# Coefficients converted to powers of x cancel each other, so these forms lose digits as the degree grows.
LIMITS_IN_POWERS = {**LIMITS, "fp64": 1e-8, "fp32": 1e-2}

CHUNK, GPU_CHUNK = 2**15, 2**24  # elements in float64 at a time; on the CPU a chunk stays in a core's cache


class Wrong(Exception):
    """The variant computes something else."""


def check(case: Case, prepared: Prepared, x: Tensor, grad_output: Tensor, outputs: dict[str, Tensor]) -> dict:
    """The errors of y, dx and the parameters' gradients, if rounding explains them; else raises Wrong."""
    y = outputs.get("y")
    if y is not None and (y.dtype, y.shape) != (x.dtype, x.shape):
        raise Wrong(f"y is {y.dtype} of shape {tuple(y.shape)}, x {x.dtype} of shape {tuple(x.shape)}")
    true = (true_function if prepared.basis is None else true_polynomial)(case, prepared, x.detach(), grad_output)
    in_powers = prepared.basis is not None and prepared.basis.name != case.basis
    limit = (LIMITS_IN_POWERS if in_powers else LIMITS)[case.dtype]
    errors = {}
    for name, got in outputs.items():
        errors[name] = error = relative_error(got.detach(), true[name])
        if not error <= limit:
            raise Wrong(f"{name} is off by {error:.1e} of its largest value; the limit for {case.dtype} is {limit:.0e}")
    return errors


def relative_error(got: Tensor, true: Tensor) -> float:
    """The largest difference over the largest true value; infinite where got is not finite."""
    error = ((got.double() - true).abs().max() / (true.abs().max().item() or 1.0)).item()
    return error if math.isfinite(error) else math.inf


def true_function(case: Case, prepared: Prepared, x: Tensor, grad_output: Tensor) -> dict[str, Tensor]:
    params = [p.detach().double().requires_grad_() for p in prepared.params]
    return _gradients(prepared, prepared.definition or prepared.forward, x, grad_output, params)


def true_polynomial(case: Case, prepared: Prepared, x: Tensor, grad_output: Tensor) -> dict[str, Tensor]:
    """By chunks of the first dimension; the normalised form, whose statistics need all of x, at once."""
    coeffs = [variants.coefficients(case).to(x.device).requires_grad_()]

    def polynomial(x: Tensor, a: Tensor, basis: Basis = case.recurrence) -> Tensor:
        return reference.slaf(x, a, basis, dim=case.dim)

    def normalized(x: Tensor, a: Tensor) -> Tensor:
        spec = reference.spec(a, case.recurrence, case.dim, None, "extrapolate")
        return reference.normalized(x, a, *spec, eps=variants.SLAF_EPS)[0]

    if prepared.normalized:
        return _gradients(prepared, normalized, x, grad_output, coeffs)
    # Coefficients of powers do not enter their gradients, which need the powers alone.
    own = functools.partial(polynomial, basis=prepared.basis)
    step = max(1, (GPU_CHUNK if case.on_gpu else CHUNK) * len(x) // x.numel())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a chunk is too small to share, and on a busy machine threads wait for each other
    parts = []
    for chunk in zip(x.split(step), grad_output.split(step), strict=True):
        parts.append(_gradients(prepared, polynomial, *chunk, coeffs))
        if prepared.basis.name != case.basis:
            parts[-1]["dcoeffs"] = _gradients(prepared, own, *chunk, coeffs)["dcoeffs"]
    torch.set_num_threads(threads)
    y, dx, dcoeffs = ([part[name] for part in parts] for name in ("y", "dx", "dcoeffs"))
    return {"y": torch.cat(y), "dx": torch.cat(dx), "dcoeffs": torch.stack(dcoeffs).sum(0)}


def _gradients(
    prepared: Prepared, function: Callable, x: Tensor, grad_output: Tensor, params: list[Tensor]
) -> dict[str, Tensor]:
    wide = x.double().requires_grad_()
    y = function(wide, *params)
    found = torch.autograd.grad(y, (wide, *params), grad_output.double(), materialize_grads=True)
    return {"y": y.detach(), **dict(zip(prepared.gradients, found, strict=True))}
