"""Small networks with a SLAF of each kind, for tests of what a training stack does to them."""

import torch
from torch import nn

from slaf_ext import SLAF

CASES = {
    "default": {},
    "shared": {"basis": "legendre", "domain": None},
    "clamp": {"basis": "hermite_e", "outside": "clamp"},
    "normalised": {"normalize": True, "init": "noisy_identity"},
    "float64": {"dtype": torch.float64},
}


def network(groups=4, **options):
    """A small one, in evaluation mode, which has seen a batch."""
    dtype = options.get("dtype", torch.float32)
    model = nn.Sequential(nn.Linear(3, 4, dtype=dtype), SLAF(5, groups, **options), nn.Linear(4, 2, dtype=dtype))
    model(batch(dtype))
    return model.eval()


def batch(dtype=torch.float32, rows=16):
    return torch.randn(rows, 3, dtype=dtype)
