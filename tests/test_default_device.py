"""The default device and dtype decide where parameters start, as in torch's own modules, and nothing else.

The tests set the default device to meta, which computes nothing, so that a tensor made there by mistake raises an
error; and to a GPU as well, where there is one.
"""

import functools
import types
import warnings

import numpy as np
import pytest
import torch
from public_calls import CASES, INITS, A
from torch import nn

import slaf_ext
from slaf_ext import SLAF, training

DEVICES = ["meta", *["cuda"] * torch.cuda.is_available()]
# Types that make no tensors of their own, or that the other calls return.
PLAIN = {"ConversionReport", "Fit", "MultivariatePolynomial"}
EVERY = [(name, i) for name, cases in CASES.items() for i in range(len(cases))]


def flat(result):
    """The leaves of a nested result in order, with a check that its tensors are on the CPU."""
    if isinstance(result, torch.Tensor):
        assert result.is_cpu, f"a result is on {result.device}, and the inputs are on the CPU"
        return [result.detach().clone()]
    if isinstance(result, dict):
        return [each for key, value in result.items() for each in (key, *flat(value))]
    if isinstance(result, (list, tuple)):
        return [each for value in result for each in flat(value)]
    return [result]


def run(name, i):
    """The flat results of a case, with the same seed each time."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    torch.manual_seed(0)
    torch.compiler.reset()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
            return flat(CASES[name][i]())
    finally:
        pyplot.close("all")


@functools.cache
def expected(name, i):
    with torch.device("cpu"):
        return run(name, i)


def assert_same(got, want):
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        if isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one.nan_to_num(), other.nan_to_num())
        elif isinstance(other, np.ndarray):
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other


@pytest.fixture
def default_device():
    """torch.set_default_device, undone after the test."""
    before = torch.get_default_device()
    yield torch.set_default_device
    torch.set_default_device(before)


@pytest.fixture
def default_dtype():
    """torch.set_default_dtype, undone after the test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "i"), EVERY)
def test_inside_a_device(name, i, device):
    want = expected(name, i)
    with torch.device(device):
        assert_same(run(name, i), want)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_with_a_default_device(name, device, default_device):
    want = [expected(name, i) for i in range(len(CASES[name]))]
    default_device(device)
    for got, wanted in zip((run(name, i) for i in range(len(CASES[name]))), want, strict=True):
        assert_same(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "i"), EVERY)
def test_with_a_default_dtype(name, i, dtype, default_dtype):
    want = expected(name, i)
    default_dtype(dtype)
    assert_same(run(name, i), want)


def test_every_public_name_takes_part():
    functions = {name for name in slaf_ext.__all__ if not isinstance(getattr(slaf_ext, name), types.ModuleType)}
    assert functions - PLAIN <= set(CASES)


@pytest.mark.parametrize("normalize", [False, True])
def test_parameters_start_on_the_default_device_and_in_the_default_dtype(normalize, default_device, default_dtype):
    """SLAF and MaxScale follow nn.PReLU in both."""

    def places(module):
        return {t.device.type for t in module.state_dict().values()}, {p.dtype for p in module.parameters()}

    inits = ["identity", "noisy_identity", A] if normalize else [*INITS, "noisy_identity"]
    with torch.device("meta"):
        for init in inits:
            assert places(SLAF(2, 3, init=init, normalize=normalize)) == places(nn.PReLU())
        assert places(training.MaxScale(3)) == places(nn.PReLU())
    default_dtype(torch.float64)
    default_device("meta")
    for init in inits:
        assert places(SLAF(2, 3, init=init, normalize=normalize)) == places(nn.PReLU())
    assert SLAF(2, device="cpu").coeffs.is_cpu
    assert SLAF(2, dtype=torch.float32).coeffs.dtype == torch.float32
