"""What the operators do where no kernel runs: shapes for meta and fake tensors, and errors for other devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .arguments import check_arguments, check_dense, check_device, check_eps, check_floating, check_shape, check_tensors
from .torch_private import argument_names


def slaf(x, coeffs, *spec):
    _check(x, coeffs, *spec)
    return torch.empty_like(x)


def slaf_backward(grad_output, x, coeffs, *spec_and_needs):
    *spec, need_x, need_coeffs = spec_and_needs
    _check(x, coeffs, *spec, grad_output=grad_output)
    return (
        torch.empty_like(x) if need_x else x.new_empty(0),
        torch.empty_like(coeffs, memory_format=torch.contiguous_format) if need_coeffs else coeffs.new_empty(0),
    )


def slaf_moments(x, coeffs, *spec):
    _check(x, coeffs, *spec)
    statistics = coeffs.new_empty((*coeffs.shape[:-1], coeffs.shape[-1] - 1), dtype=torch.float64)
    return statistics, torch.empty_like(statistics)


def slaf_fold(coeffs, mean, variance, eps, in_double):
    check_floating(coeffs, "coeffs")
    check_shape(coeffs)
    sizes = (*coeffs.shape[:-1], coeffs.shape[-1] - 1)
    for name, statistics in (("mean", mean), ("variance", variance)):
        if statistics.dtype != torch.float64 or statistics.shape != sizes or statistics.device != coeffs.device:
            raise ValueError(
                f"the {name} is {str(statistics.dtype).removeprefix('torch.')} of shape {tuple(statistics.shape)} on "
                f"{statistics.device}; it must be what slaf_moments returns: contiguous, float64, on {coeffs.device}, "
                f"of the shape of coeffs, {tuple(coeffs.shape)}, without its first column"
            )
    check_eps(eps)
    return coeffs.new_empty(coeffs.shape, dtype=torch.float64 if in_double else torch.float32)


def slaf_normalized_backward(grad_output, x, coeffs, mean, variance, *spec_and_rest):
    *spec, _eps, need_x = spec_and_rest
    _check(x, coeffs, *spec, grad_output=grad_output, mean=mean, variance=variance)
    dx = torch.empty_like(x) if need_x else x.new_empty(0)
    return dx, torch.empty_like(coeffs, memory_format=torch.contiguous_format)


def _check(x, coeffs, *spec, **others):
    """The kernels' checks, which meta tensors never reach."""
    if len(spec) > 1:
        check_arguments(x, coeffs, *spec)
    else:
        check_tensors(x, coeffs)
        if spec[0].device.type != "cpu":
            raise ValueError(f"the spec is on {spec[0].device}; it must be on the CPU")
    check_device(x, **others)


def unsupported(names: Sequence[str], *arguments):
    """The kernel for layouts and devices that have none: an error that says so."""
    for name, tensor in zip(names, arguments, strict=False):
        if not isinstance(tensor, Tensor):
            continue
        check_dense(tensor, name)
        if tensor.is_cuda:
            raise NotImplementedError(
                f"{name} is on {tensor.device} and this build of slaf_ext has no CUDA kernels; install the CUDA "
                "toolkit and rebuild: SLAF_EXT_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps ."
            )
        check_floating(tensor, name)
        if not tensor.is_cpu:
            raise NotImplementedError(
                f"{name} is on {tensor.device}; slaf has kernels for the CPU and for CUDA devices"
            )


def register(library: torch.library.Library, operators: dict[str, Callable]) -> None:
    """Registers the fake of each operator, and `unsupported` for the layouts and devices without a kernel."""
    for name, fake in operators.items():
        torch.library.register_fake(f"slaf_ext::{name}", fake)
        answer = functools.partial(unsupported, argument_names(getattr(torch.ops.slaf_ext, name).default))
        for key in ("CompositeExplicitAutograd", "NestedTensorCPU", "NestedTensorCUDA", "AutogradNestedTensor"):
            library.impl(name, answer, key)
