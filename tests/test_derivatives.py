"""slaf_ext.derivatives against numpy's deriv, and through autograd, groups and torch.compile."""

import numpy as np
import pytest
import torch
from numpy import polynomial as npp
from torch.autograd import gradcheck, gradgradcheck

import slaf_ext
from slaf_ext import bases

NUMPY = {
    "monomial": npp.Polynomial,
    "chebyshev": npp.Chebyshev,
    "legendre": npp.Legendre,
    "hermite": npp.Hermite,
    "hermite_e": npp.HermiteE,
    "laguerre": npp.Laguerre,
}


@pytest.mark.parametrize("domain", [None, (-2.0, 3.0)])
@pytest.mark.parametrize("name", NUMPY)
def test_they_are_numpys(name, domain):
    rng = np.random.default_rng(0)
    coeffs, window = rng.standard_normal(7) / (1 + np.arange(7.0)), bases.get(name).domain
    lo, hi = domain or window
    x = torch.linspace(lo, hi, 101, dtype=torch.float64)
    p = NUMPY[name](coeffs, domain=domain or window, window=window)
    found = slaf_ext.derivatives(x, torch.tensor(coeffs), 8, name, domain=domain)
    assert len(found) == 9
    for order, y in enumerate(found):
        expected = (p.deriv(order) if order else p)(x.numpy())
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-11, atol=1e-11 * max(1, np.abs(expected).max()))
    assert not found[7].any()  # beyond the degree
    y, slope = slaf_ext.derivatives(x.float(), torch.tensor(coeffs).float(), 1, name, domain=domain)
    assert y.dtype == slope.dtype == torch.float32
    assert (slope - found[1]).abs().max() < 1e-5 * found[1].abs().max()


@pytest.mark.parametrize(("outside", "beyond"), [("clamp", (0, 0)), ("linear", (4.0, 0))])
def test_beyond_an_edge_they_are_those_of_what_continues_f(outside, beyond):
    x = torch.tensor([0.5, 7.0], dtype=torch.float64)
    coeffs = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)  # 2x² − 1 on (−1, 1)
    _, slope, curvature, third = slaf_ext.derivatives(x, coeffs, 3, outside=outside)
    assert slope.tolist() == [2.0, beyond[0]]
    assert curvature.tolist() == [4.0, beyond[1]]
    assert third.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("outside", ["extrapolate", "clamp", "linear"])
def test_they_are_differentiable_in_x_and_in_every_group_of_coeffs(outside):
    x = (2.4 * torch.rand(3, 4, 2, dtype=torch.float64) - 1.2).requires_grad_()
    coeffs = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    f = lambda x, a: slaf_ext.derivatives(x, a, 2, "legendre", outside=outside)  # noqa: E731
    assert gradcheck(f, (x, coeffs))
    assert gradgradcheck(f, (x, coeffs))
    y, slope, curvature = f(x, coeffs)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.testing.assert_close(slope, first)
    torch.testing.assert_close(curvature, torch.autograd.grad(first.sum(), x)[0])


def test_degree_and_order_zero():
    x = torch.randn(3, 2, requires_grad=True)
    coeffs = torch.tensor([2.0], requires_grad=True)
    y, slope = slaf_ext.derivatives(x, coeffs, 1)
    assert y.unique().tolist() == [2.0]
    assert not slope.any()
    slope.sum().backward()
    assert not x.grad.any()
    (only,) = slaf_ext.derivatives(x, coeffs, 0)
    assert torch.equal(only, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype(dtype):
    x = torch.rand(100, dtype=dtype)
    coeffs = torch.randn(6, dtype=dtype)
    for got, wide in zip(
        slaf_ext.derivatives(x, coeffs, 2), slaf_ext.derivatives(x.double(), coeffs.double(), 2), strict=True
    ):
        assert got.dtype == dtype
        assert (got - wide).abs().max() <= torch.finfo(dtype).eps * wide.abs().max()


@pytest.mark.slow
def test_a_loss_of_derivatives_compiles_whole_with_one_backward():
    def loss(x, coeffs):
        y, slope, curvature = slaf_ext.derivatives(x, coeffs, 2, "legendre", domain=(-2, 2), outside="linear")
        return (y * slope + curvature.square()).mean()

    x = torch.randn(64, 3, requires_grad=True)
    coeffs = torch.randn(3, 5, requires_grad=True)
    eager = torch.autograd.grad(loss(x, coeffs), (x, coeffs))
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x, coeffs), (x, coeffs))
    for got, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("transform", ["vmap", "jvp"])
def test_under_transforms(transform):
    x, coeffs = torch.randn(5, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    f = lambda x: slaf_ext.derivatives(x, coeffs, 2, dim=0)  # noqa: E731
    if transform == "vmap":
        for got, expected in zip(torch.vmap(f)(x), f(x), strict=True):
            torch.testing.assert_close(got, expected)
    else:
        y, tangents = torch.func.jvp(f, (x,), (torch.ones_like(x),))
        for got, expected in zip(tangents[:2], y[1:], strict=True):
            torch.testing.assert_close(got, expected)


def test_errors():
    x = torch.randn(3, 2)
    for order in (-1, 1.5, True, "2"):
        with pytest.raises(ValueError, match=f"order is {order!r}"):
            slaf_ext.derivatives(x, torch.ones(3), order)
    with pytest.raises(TypeError, match="x is a list"):
        slaf_ext.derivatives([1.0], torch.ones(3), 1)
    newton = bases.Basis("newton", lambda k: (1.0, -float(k), 0.0), domain=(0, 32))
    with pytest.raises(NotImplementedError, match=r"degree 32 lose digits as coefficients; use torch\.autograd"):
        slaf_ext.derivatives(x, torch.ones(33), 1, newton)
