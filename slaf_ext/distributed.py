"""Tensor parallelism with torch.distributed.tensor: sharding rules for the operators, and a plan for a SLAF.

DTensors work wherever :func:`slaf_ext.slaf` does: the rules are registered when the first one arrives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module
from torch.distributed.tensor.experimental import register_sharding
from torch.distributed.tensor.parallel import ParallelStyle
from torch.distributed.tensor.placement_types import Placement


class SLAFParallel(ParallelStyle):
    """How `torch.distributed.tensor.parallel.parallelize_module` treats a SLAF between two sharded layers.

    Every rank applies the module to its shard of x; all shards must have the same size, and the mesh one dimension.
    The coefficients are replicated, and their gradients summed over the ranks. Of the normalised form, whose
    statistics need every element of a group, a shard of whole groups is normalised where it is, and any other is
    gathered first.

    Args:
        input_layout: how x, a plain tensor on each rank, is sharded: by default along its last dimension, as
            `ColwiseParallel` returns it.
        use_local_output: return a plain tensor, as `RowwiseParallel` takes it, or else a DTensor.

    Example:
        >>> from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
        >>> from slaf_ext.distributed import SLAFParallel
        >>> plan = {"0": ColwiseParallel(), "1": SLAFParallel(), "2": RowwiseParallel()}
        >>> # parallelize_module(nn.Sequential(nn.Linear(…), SLAF(5), nn.Linear(…)), mesh, plan)
    """

    def __init__(self, *, input_layout: Placement | None = None, use_local_output: bool = True) -> None:
        super().__init__()
        if not (input_layout is None or isinstance(input_layout, (Shard, Replicate))):
            raise ValueError(f"input_layout is {input_layout!r}; it must be a Shard(dim) or Replicate()")
        self.input_layout = Shard(-1) if input_layout is None else input_layout
        self.use_local_output = use_local_output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        distribute_module(module, device_mesh, None, self._with_layout, self._without_layout)  # type: ignore[arg-type]
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(_replicated)
        return module

    def _with_layout(self, module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
        x, *rest = inputs
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, mesh, (self.input_layout,), run_check=False)
        return x, *rest

    def _without_layout(self, module: nn.Module, y: DTensor, mesh: DeviceMesh) -> Tensor:
        return y.redistribute(placements=(self.input_layout,)).to_local() if self.use_local_output else y


def beside(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor, the same on every rank, as a DTensor if the other is one."""
    if not isinstance(other, DTensor):
        return tensor
    mesh = other.device_mesh
    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)


def _replicated(gradient: DTensor) -> DTensor:
    return gradient.redistribute(placements=[Replicate()] * gradient.device_mesh.ndim)


def _placements(x: Any, coeffs: Any, dim: int) -> Iterator[tuple[Placement, Placement, Placement]]:
    """How x, coeffs and the gradient in coeffs may be placed together, along one dimension of the mesh."""
    yield Replicate(), Replicate(), Replicate()
    for d in range(x.ndim):
        if coeffs.ndim == 1 or d != dim % x.ndim:
            yield Shard(d), Replicate(), Partial()
        elif coeffs.shape[0] % x.mesh.size() == 0:  # else a shard of x could end within a group
            yield Shard(d), Shard(0), Shard(0)


def _whole_groups(x: Any, coeffs: Any, dim: int) -> Iterator[tuple[Placement, Placement]]:
    """The same where a group must not be divided, since its statistics are computed."""
    return ((p, c) for p, c, gradient in _placements(x, coeffs, dim) if gradient != Partial())


def _slaf(x, coeffs, recurrence, dim, *window):
    return [([p], [p, c, None, None, *(None for _ in window)]) for p, c, _ in _placements(x, coeffs, dim)]


def _slaf_backward(grad_output, x, coeffs, recurrence, dim, *rest):
    *_, need_x, need_coeffs = rest
    return [
        ([p if need_x else Replicate(), s if need_coeffs else Replicate()], [p, p, c, *(None for _ in range(8))])
        for p, c, s in _placements(x, coeffs, dim)
    ]


def _slaf_moments(x, coeffs, recurrence, dim, *window):
    return [([c, c], [p, c, *(None for _ in range(6))]) for p, c in _whole_groups(x, coeffs, dim)]


def _slaf_fold(coeffs, mean, variance, eps, in_double):
    placements = [Replicate()] if coeffs.ndim == 1 else [Replicate(), Shard(0)]
    return [([p], [p, p, p, None, None]) for p in placements]


def _slaf_normalized_backward(grad_output, x, coeffs, mean, variance, recurrence, dim, *rest):
    *_, need_x = rest
    return [
        ([p if need_x else Replicate(), c], [p, p, c, c, c, *(None for _ in range(8))])
        for p, c in _whole_groups(x, coeffs, dim)
    ]


for _rule in (_slaf, _slaf_backward, _slaf_moments, _slaf_fold, _slaf_normalized_backward):
    register_sharding(getattr(torch.ops.slaf_ext, _rule.__name__[1:]).default)(_rule)
