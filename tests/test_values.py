"""What f(x) is: inside, at the edges, outside and at the numbers that are not ordinary."""

import numpy as np
import pytest
import torch

import slaf_ext
from slaf_ext import bases

NUMPY = {
    "monomial": np.polynomial.Polynomial,
    "chebyshev": np.polynomial.Chebyshev,
    "legendre": np.polynomial.Legendre,
    "hermite": np.polynomial.Hermite,
    "hermite_e": np.polynomial.HermiteE,
    "laguerre": np.polynomial.Laguerre,
}
DOMAINS = [None, (-2.0, 0.5), (0.0, 1.0), (100.0, 100.5)]


def oracle(name, coeffs, domain):
    """numpy.polynomial's object; without a domain its domain is its window, so that nothing is mapped."""
    window = bases.get(name).domain
    return NUMPY[name](coeffs, domain=domain or window, window=window)


def sample(domain):
    lo, hi = domain or (-1.0, 1.0)
    inside = np.random.default_rng(0).uniform(lo, hi, 60)
    return np.concatenate([inside, [lo, hi, lo - 0.3, hi + 0.3, lo - 2.0, hi + 2.0]])


@pytest.mark.parametrize("f", [slaf_ext.slaf, slaf_ext.reference.slaf], ids=["kernel", "reference"])
@pytest.mark.parametrize("outside", ["extrapolate", "clamp", "linear"])
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("degree", [0, 1, 2, 7, 20])
@pytest.mark.parametrize("name", NUMPY)
def test_domain_and_outside(name, degree, domain, outside, f):
    coeffs = np.random.default_rng(1).normal(size=degree + 1)
    p = oracle(name, coeffs, domain)
    lo, hi = domain or bases.get(name).domain
    x = sample(domain)
    inside = np.clip(x, lo, hi)
    expected = {
        "extrapolate": lambda: p(x),
        "clamp": lambda: p(inside),
        "linear": lambda: p(inside) + p.deriv()(inside) * (x - inside),
    }[outside]()
    actual = f(torch.as_tensor(x), torch.as_tensor(coeffs), name, domain=domain, outside=outside).numpy(force=True)
    scale = oracle(name, np.abs(coeffs), domain)(sample(domain))
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-10 * np.abs(scale).max() ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("outside", ["extrapolate", "clamp", "linear"])
@pytest.mark.parametrize("name", bases.names())
def test_numbers_that_are_not_ordinary(name, outside, dtype):
    """±0, the edges, subnormals, ±inf and NaN come out as numpy, or else the definition, has them; alone and in a row.

    The row is long enough for the kernels' main path.
    """
    lo, hi = bases.get(name).domain
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([0.0, -0.0, lo, hi, tiny, -tiny / 2, float("inf"), float("-inf"), float("nan")], dtype=dtype)
    for degree in (0, 1, 2, 3, 8):
        coeffs = torch.tensor([0.5, -1.0, 2.0, 0.25, -0.5, 1.0, 0.125, 1.0, -1.0][: degree + 1], dtype=dtype)
        # numpy's Horner begins with 0 x, which makes a NaN of ∞, where powers have a limit.
        if name in NUMPY and name != "monomial" and outside == "extrapolate" and degree > 0:
            with np.errstate(invalid="ignore"):
                expected = torch.from_numpy(oracle(name, coeffs.double().numpy(), None)(x.double().numpy()))
        else:
            expected = slaf_ext.reference.slaf(x.double(), coeffs.double(), name, outside=outside)
        expected = expected.to(dtype).double()  # too large is infinite
        for times in (1, 40):
            actual = slaf_ext.slaf(x.repeat(times), coeffs, name, outside=outside).double()
            assert degree == 0 or actual[-1].isnan()
            rtol = 8 * torch.finfo(dtype).eps
            torch.testing.assert_close(actual, expected.repeat(times), rtol=rtol, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("outside", ["clamp", "linear"])
def test_gradient_at_the_edges_and_beyond(outside):
    """An edge belongs to the domain; beyond it the slope is 0, or the slope at the edge; NaN stays NaN."""
    x = torch.tensor([-1.0, 1.0, -3.0, 3.0, float("inf"), float("-inf"), float("nan")], requires_grad=True)
    coeffs = torch.tensor([0.0, 0.5, 1.0])  # f' = 0.5 + 4x
    slaf_ext.slaf(x, coeffs, outside=outside).backward(torch.ones_like(x))
    beyond = [0.0] * 4 if outside == "clamp" else [-3.5, 4.5, 4.5, -3.5]
    torch.testing.assert_close(x.grad, torch.tensor([-3.5, 4.5, *beyond, float("nan")]), equal_nan=True)


@pytest.mark.parametrize("bits", [torch.float16, torch.bfloat16])
def test_conversion_of_every_half(bits):
    """All 65536 numbers pass through unchanged, and every rounding is torch's."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(bits)
    identity = torch.tensor([0.0, 1.0])
    actual = slaf_ext.slaf(x, identity, "monomial")
    torch.testing.assert_close(actual, x, rtol=0, atol=0, equal_nan=True)
    for scale in (1 / 3, 1000.1, 2.0**-9):
        actual = slaf_ext.slaf(x, torch.tensor([0.0, scale]), "monomial")
        torch.testing.assert_close(actual, (x.float() * scale).to(bits), rtol=0, atol=0, equal_nan=True)


def test_nan_coefficients_of_any_bits_stay_nan_in_half_precision():
    coeffs = torch.tensor([0.0, 1.0])
    coeffs[0] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # rounds to -0 as a number would
    for dtype in (torch.bfloat16, torch.float16):
        assert slaf_ext.slaf(torch.linspace(-1, 1, 99).to(dtype), coeffs).isnan().all()


def test_narrow_domain_far_from_zero():
    """x − center is taken first: folded into the table, fp32 would lose the domain (100, 100.5) altogether."""
    x = torch.linspace(100, 100.5, 101)
    coeffs = torch.randn(9)
    expected = slaf_ext.slaf(x.double(), coeffs.double(), domain=(100, 100.5))
    actual = slaf_ext.slaf(x, coeffs, domain=(100, 100.5))
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1, 1)])
def test_shapes_without_much_in_them(shape):
    x = torch.randn(shape, requires_grad=True)
    coeffs = torch.randn(4, requires_grad=True)
    y = slaf_ext.slaf(x, coeffs)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    torch.testing.assert_close(coeffs.grad[0], torch.tensor(float(x.numel())))


def test_mixed_precision_keeps_the_dtype_of_x():
    coeffs = torch.randn(4, requires_grad=True)
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(8, 3, dtype=dtype, requires_grad=True)
        y = slaf_ext.slaf(x, coeffs)
        y.sum().backward()
        assert (y.dtype, x.grad.dtype, coeffs.grad.dtype) == (dtype, dtype, torch.float32)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        assert slaf_ext.slaf(torch.randn(3), coeffs).dtype == torch.float32
        hidden = torch.nn.functional.linear(torch.randn(2, 3), torch.randn(5, 3))
        assert slaf_ext.slaf(hidden, coeffs).dtype == torch.bfloat16
