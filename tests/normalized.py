"""Helpers for the tests of the normalised form."""

import functools

import pytest
import torch

import slaf_ext

SLAF = functools.partial(slaf_ext.SLAF, domain=None)  # as in the paper: a polynomial of x itself, everywhere
in_float64 = pytest.mark.cpu("a GPU computes φ_k in float32 where x is not float64, and beyond its range f is NaN")


def case(shape, groups, degree, dtype=torch.float64, seed=0):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    coeffs = torch.randn((groups, degree + 1) if groups > 1 else (degree + 1,), generator=generator).to(dtype)
    return x, coeffs
