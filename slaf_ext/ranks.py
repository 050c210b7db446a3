"""Statistics over all ranks of torch.distributed's default group."""

from __future__ import annotations

import torch
from torch import Tensor


def merged(mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The mean and the biased variance of all ranks' elements, from those of each rank's `count` elements.

    By Chan's formula, which does not cancel. Every rank must call it, even one with no elements. NaN if none has any.
    """
    counts = torch.full_like(mean[:, :1], count)
    totals = _SumOverRanks.apply(torch.cat([counts, counts * mean], -1))
    assert isinstance(totals, Tensor)
    total, total_mean = totals[:, :1], totals[:, 1:] / totals[:, :1]
    squares = _SumOverRanks.apply(counts * (variance + (mean - total_mean).square()))
    return total_mean, squares / total


class _SumOverRanks(torch.autograd.Function):
    """Every rank's loss depends on the sum, so its gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx, values):
        return _sum_over_ranks(values)

    @staticmethod
    def backward(ctx, grad_output):
        return _SumOverRanks.apply(grad_output)


# An operator, because torch.compile's inductor (2.13) computes wrong sums when it fuses a collective with other code.
@torch.library.custom_op("slaf_ext::sum_over_ranks", mutates_args=())
def _sum_over_ranks(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total


@_sum_over_ranks.register_fake
def _(values):
    return torch.empty_like(values, memory_format=torch.contiguous_format)
