"""What f(x) is: inside, at the edges, outside and at the numbers that are not ordinary."""

import numpy as np
import pytest
import torch
from oracles import direct

import slaf_ext
from slaf_ext import bases
from slaf_ext.functional import normalized_slaf

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
                p = oracle(name, coeffs.double().numpy(force=True), None)
                expected = torch.as_tensor(p(x.double().numpy(force=True)))
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


@pytest.mark.parametrize("f", [slaf_ext.slaf, slaf_ext.reference.slaf], ids=["kernel", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("coeffs", [[2.0], [2.0, 0.0], [2.0, 0.0, 0.0, 0.0], [1.0, -4.0, 1.0]])
def test_a_flat_tangent_is_flat_at_infinity(coeffs, dtype, f):
    """p'(1) = 0 in the last one, 4 x − 4: only its left tangent rises."""
    coeffs = torch.tensor(coeffs, dtype=dtype)
    for members in (3, 301):
        x = torch.full((members,), torch.inf, dtype=dtype)
        right, left = f(x, coeffs, outside="linear"), f(-x, coeffs, outside="linear")
        assert torch.equal(right, torch.full_like(x, float(coeffs.sum())))
        assert torch.equal(left, torch.full_like(x, torch.inf if len(coeffs) == 3 else 2.0))


@pytest.mark.parametrize("f", [slaf_ext.slaf, slaf_ext.reference.slaf], ids=["kernel", "reference"])
def test_the_gradient_of_a_constant_holds_beyond_linear_edges_at_infinity(f):
    for members in (1, 300):
        x, coeffs = torch.full((members,), torch.inf), torch.ones(3, requires_grad=True)
        f(x, coeffs, outside="linear").sum().backward()
        assert coeffs.grad.tolist() == [members, torch.inf, torch.inf]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("domain", "sentence"),
    [
        (
            (0, 1e-39),
            r"row 0 of the recurrence is .* map from the domain \(0(\.0)?, 1e-39\) in it, which float32",
        ),
        ((1e39, 2e39), r"domain is \(1e\+39, 2e\+39\), which float32 does not resolve"),
        ((1e6, 1e6 + 1e-3), r"domain is \(.*\), which float32 does not resolve"),
        ((-1e308, 1e308), r"domain is \(-1e\+308, 1e\+308\), of width inf; float64 does not hold its map"),
        ((0, 1e-320), r"domain is \(0.0, 1e-320\), of width 1e-320; float64 does not hold its map"),
    ],
)
def test_domains_at_the_ends_of_the_range(domain, sentence, normalize):
    x, coeffs = torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 1.0, 2.0])
    f = normalized_slaf if normalize else slaf_ext.slaf
    for device in ("cpu", "meta"):
        for outside in ("extrapolate", "clamp", "linear"):
            with pytest.raises(ValueError, match=sentence):
                f(x.to(device), coeffs.to(device), domain=domain, outside=outside)
    if not normalize:
        with pytest.raises(ValueError, match=sentence):
            slaf_ext.reference.slaf(x, coeffs, domain=domain)


def test_float64_serves_domains_that_float32_does_not():
    coeffs = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    for lo, hi in ((0, 1e-39), (1e39, 2e39), (1e6, 1e6 + 1e-3), (0, 1e-300), (-1e300, 1e300)):
        x = torch.tensor([lo, 0.5 * lo + 0.5 * hi, hi], dtype=torch.float64)
        y = slaf_ext.slaf(x, coeffs, domain=(lo, hi))
        torch.testing.assert_close(y, torch.tensor([1.5, -1.5, 3.5], dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_rows_that_float32_does_not_hold():
    for rows in ([(1e39, 0, 0)], [(1e-39, 0, 0)], [(1, 1e39, 0)], [(1, 0, 0), (1, 0, 1e39)]):
        basis, coeffs = bases.Basis("extreme", rows), torch.ones(len(rows) + 1)
        with pytest.raises(ValueError, match=r"row [01] of the recurrence is .* which float32 does not hold"):
            slaf_ext.slaf(torch.zeros(3), coeffs, basis)
        assert slaf_ext.slaf(torch.zeros(3).double(), coeffs.double(), basis).isfinite().all()


def test_scales_of_the_walk_stay_in_float32s_range():
    """Rows near the range's end, which the scales of the walk must not push over it."""
    for a, c in ((1e36, 1e-3), (1e-36, 1e3), (1e30, 4.0)):
        basis = bases.Basis("large", [(a, 0.0, c)] * 6)
        x = torch.rand(40) / a
        coeffs = torch.randn(7)
        want = slaf_ext.reference.slaf(x.double(), coeffs.double(), basis)
        torch.testing.assert_close(slaf_ext.slaf(x, coeffs, basis), want.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [1.0, 1e3, 1e6])
def test_a_large_shift_in_the_second_row_costs_no_digits(shift, dtype):
    """The walk must not write φ_1 as a difference of terms of the size of B_1."""
    table = [(0.5, -0.5, 0.0), (-1.75, shift, -0.25)]
    x, coeffs = torch.linspace(-1, 1, 101, dtype=dtype), torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    expected = direct(x.numpy(), coeffs.double().numpy(), table)
    y = slaf_ext.slaf(x, coeffs, bases.Basis("shifted", table))
    error = np.abs(y.double().numpy() - expected) / (1 + shift * np.abs(0.5 * x.double().numpy() - 0.5))
    assert error.max() < 8 * torch.finfo(dtype).eps
