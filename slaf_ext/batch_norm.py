"""BatchNorm in evaluation mode: a linear map of every channel."""

from __future__ import annotations

import torch
from torch import Tensor

from .torch_private import BATCH_NORM


@torch.no_grad()
def batch_norm_map(layer: BATCH_NORM) -> tuple[Tensor, Tensor]:
    """(s, m), float64, with y = s x + m for each channel.

    Raises:
        ValueError: the layer keeps no running statistics.
    """
    if layer.running_mean is None or layer.running_var is None:
        raise ValueError(f"{layer} keeps no running statistics, so it is not a fixed function; let it keep them")
    scale = (layer.running_var.double() + layer.eps).rsqrt()
    if layer.affine:
        scale = scale * layer.weight.double()
    shift = -scale * layer.running_mean.double()
    return scale, shift + layer.bias.double() if layer.affine else shift
