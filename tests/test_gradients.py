"""Gradients of any order, against finite differences, the definition, and analytic derivatives."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import slaf_ext
from slaf_ext import bases

OUTSIDE = ["extrapolate", "clamp", "linear"]


def points(*shape):
    """Float64 points in (−2, 2) that keep away from the edges ±0.75, where clamp and linear have kinks."""
    x = torch.rand(shape, dtype=torch.float64) * 4 - 2
    near = (x.abs() - 0.75).abs() < 1e-2
    return torch.where(near, x + 0.05, x)


LAYOUTS = {
    "contiguous": lambda: points(2, 4, 2),
    "channels last": lambda: points(1, 4, 2, 2).contiguous(memory_format=torch.channels_last),
    "permuted": lambda: points(3, 2, 4).permute(1, 2, 0),
    "sliced": lambda: points(2, 4, 6)[:, :, ::3],
}


def newton(degree):
    """Products of x − node: the derivative in the basis itself is a sum that cancels."""
    return bases.Basis("newton", [(2, -2 * t, 0) for t in np.cos(np.pi * (np.arange(degree) + 0.5) / degree)])


def random_rows(degree):
    return bases.Basis("random rows", np.random.default_rng(1).normal(size=(degree, 3)))


def exact_derivative(basis, degree, x, coeffs):
    """Σ a_k φ_k'(x) in rational arithmetic, by the differentiated recurrence."""
    x, total = Fraction(x), Fraction(0)
    phi, slope = [Fraction(0), Fraction(1)], [Fraction(0), Fraction(0)]
    for k, (a, b, c) in enumerate(basis.rows(degree)):
        a, b, c = Fraction(a), Fraction(b), Fraction(c)
        phi, slope = (
            [phi[1], (a * x + b) * phi[1] - c * phi[0]],
            [slope[1], a * phi[1] + (a * x + b) * slope[1] - c * slope[0]],
        )
        total += Fraction(coeffs[k + 1]) * slope[1]
    return float(total)


def scaled_coeffs(basis, degree, *groups):
    """Random ones that keep every term near 1."""
    x = torch.linspace(-1, 1, 65, dtype=torch.float64)
    return torch.randn(*groups, degree + 1, dtype=torch.float64) / slaf_ext.basis_values(x, degree, basis).abs().amax(0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("degree", [1, 4, 5, 16, 20, 24, 32, 40])
@pytest.mark.parametrize("make", [newton, random_rows])
def test_bases_in_which_the_derivative_cancels(make, degree, dtype):
    """All gradients, recorded or not, and those behind them: as near as plain PyTorch comes, whatever D would cost."""
    basis = make(degree)
    for groups, shape in (((), (700,)), ((6,), (3, 6, 50)), ((24,), (37, 24))):
        x = (torch.rand(shape, dtype=torch.float64) * 2 - 1).to(dtype)
        coeffs = scaled_coeffs(basis, degree, *groups).to(dtype)
        grad_output = torch.randn(shape, dtype=torch.float64).to(dtype)
        results = []
        for f, wide in (
            (slaf_ext.slaf, dtype),
            (slaf_ext.reference.slaf, dtype),
            (slaf_ext.reference.slaf, torch.float64),
        ):
            leaves = [t.to(wide).requires_grad_() for t in (x, coeffs)]
            first = torch.autograd.grad(f(*leaves, basis), leaves, grad_output.to(wide))
            recorded = torch.autograd.grad(f(*leaves, basis), leaves, grad_output.to(wide), create_graph=True)
            second = torch.autograd.grad(recorded[0].double().square().sum() + recorded[1].sum(), leaves)
            results.append([g.detach().double() for g in (*first, *recorded, *second)])
        for got, plain, exact in zip(*results, strict=True):
            floor = 8 * torch.finfo(dtype).eps * exact.norm()
            assert (got - exact).norm() <= 4 * (plain - exact).norm() + floor


@pytest.mark.parametrize("degree", [4, 5, 16, 24, 32])
@pytest.mark.parametrize("make", [newton, random_rows])
def test_the_derivative_against_rational_arithmetic(make, degree):
    basis, coeffs = make(degree), scaled_coeffs(make(degree), degree)
    x = (torch.rand(20, dtype=torch.float64) * 2 - 1).requires_grad_()
    (dx,) = torch.autograd.grad(slaf_ext.slaf(x, coeffs, basis).sum(), x)
    exact = torch.tensor([exact_derivative(basis, degree, t, coeffs.tolist()) for t in x.tolist()], dtype=torch.float64)
    assert (dx - exact).abs().max() <= 1e-13 * exact.abs().max()


def test_the_derivative_of_newtons_basis_at_a_point():
    x = torch.tensor([-0.4], requires_grad=True)
    slaf_ext.slaf(x, torch.ones(21), newton(20)).backward()
    assert x.grad.item() == pytest.approx(147.32505, rel=2e-6)


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("domain", [None, (-0.75, 0.75)])
def test_gradcheck_where_the_derivative_is_walked(outside, domain):
    x, basis = points(3, 4).requires_grad_(), newton(9)
    coeffs = (torch.randn(4, 10, dtype=torch.float64) / 100).requires_grad_()
    x = (x.detach() + 0.01).requires_grad_() if domain is None else x  # ±1 is an edge then

    def f(x, coeffs):
        return slaf_ext.slaf(x, coeffs, basis, domain=domain, outside=outside)

    assert gradcheck(f, (x, coeffs))
    assert gradgradcheck(f, (x, coeffs))


def test_which_derivatives_are_walked():
    """The named bases keep D, and one pass for both gradients; Newton's, and tables too long for D, do not."""
    from slaf_ext import _C

    def has_matrix(basis, degree):
        rows = [number for row in basis.rows(degree) for number in row]
        return bool(_C.usable_derivative_matrix(rows, *basis.domain))

    parametric = [
        bases.jacobi(0.5, 1.5),
        bases.jacobi(-0.9, 3),
        bases.jacobi(-0.999999, -0.999999),
        bases.gegenbauer(5),
    ]
    for basis in [*map(bases.get, bases.names()), *parametric]:
        assert all(has_matrix(basis, degree) for degree in range(1, 65)), basis
        assert not has_matrix(basis, 257)
    assert has_matrix(newton(3), 3)
    assert not any(has_matrix(newton(degree), degree) for degree in range(5, 41))


def test_a_large_degree_needs_no_matrix():
    """D would hold 3000² numbers; T_k' = k U_{k−1} is the oracle."""
    degree = 3000
    x = torch.rand(5, dtype=torch.float64) * 1.8 - 0.9
    leaf, coeffs = x.clone().requires_grad_(), torch.zeros(degree + 1, dtype=torch.float64)
    coeffs[degree] = 1
    slaf_ext.slaf(leaf, coeffs).sum().backward()
    angle = x.acos()
    torch.testing.assert_close(leaf.grad, degree * torch.sin(degree * angle) / angle.sin(), rtol=1e-8, atol=1e-6)


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("degree", [0, 1, 5, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 12))])
@pytest.mark.parametrize("name", bases.names())
def test_gradcheck(name, degree, outside):
    for make in LAYOUTS.values():
        for groups in (0, 1, 2, 4):
            x = make().requires_grad_()
            coeffs = torch.randn((groups, degree + 1) if groups else degree + 1, dtype=torch.float64)
            coeffs = (coeffs / 3.0**degree).requires_grad_()

            def f(x, coeffs):
                return slaf_ext.slaf(x, coeffs, name, dim=1, domain=(-0.75, 0.75), outside=outside)

            assert gradcheck(f, (x, coeffs), fast_mode=True)
            assert gradgradcheck(f, (x, coeffs), fast_mode=True)


@pytest.mark.parametrize("outside", OUTSIDE)
def test_gradcheck_in_full(outside):
    """Every entry of the Jacobians, where the tests above look at random combinations of them."""
    for needs in ((True, True), (True, False), (False, True)):
        x = points(2, 3, 2).requires_grad_(needs[0])
        coeffs = torch.randn(3, 4, dtype=torch.float64).requires_grad_(needs[1])

        def f(x, coeffs):
            return slaf_ext.slaf(x, coeffs, "legendre", domain=(-0.75, 0.75), outside=outside)

        assert gradcheck(f, (x, coeffs))
        assert gradgradcheck(f, (x, coeffs))


def _by_backward(f):
    return lambda x: torch.autograd.grad(f(x).sum(), x, create_graph=True)[0]


def _by_torch_func(f):
    return torch.func.grad(lambda x: f(x).sum())


def _by_forward_mode(f):
    return lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]


@pytest.mark.parametrize("differentiate", [_by_backward, _by_torch_func, _by_forward_mode])
def test_derivatives_of_high_order(differentiate):
    """The first five derivatives of a Legendre series, against numpy's."""
    coeffs = np.random.default_rng(0).normal(size=8)
    p = np.polynomial.Legendre(coeffs)
    x = torch.linspace(-1, 1, 7, dtype=torch.float64, requires_grad=differentiate is _by_backward)

    def f(x):
        return slaf_ext.slaf(x, torch.as_tensor(coeffs), "legendre")

    for order in range(1, 6):
        f = differentiate(f)
        expected = p.deriv(order)(x.detach().numpy(force=True))
        np.testing.assert_allclose(f(x).numpy(force=True), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("f", [slaf_ext.slaf, "op"])
def test_forward_mode_never_gives_zero_tangents(f):
    if f == "op":
        spec = slaf_ext.reference.spec(torch.zeros(3), "chebyshev", 1, None, "extrapolate")

        def f(x, a):
            return torch.ops.slaf_ext.slaf(x, a, *spec)

    x, a = torch.linspace(-1, 1, 5, dtype=torch.float64), torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    slope = 1 + 4 * x
    with forward_ad.dual_level():
        y = f(forward_ad.make_dual(x, torch.ones_like(x)), a)
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, slope)
        y = f(x, forward_ad.make_dual(a, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)))
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, 2 * x * x - 1)
    torch.testing.assert_close(torch.func.jacfwd(lambda x: f(x, a))(x), slope.diag())
    torch.testing.assert_close(torch.func.jacrev(lambda x: f(x, a))(x), slope.diag())
    torch.testing.assert_close(torch.func.hessian(lambda x: f(x, a).sum())(x), 4 * torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(torch.func.vmap(lambda x: f(x, a))(x[:, None])[:, 0], f(x, a))


def test_tangents_of_grad_output():
    """Forward over reverse where the graph was made outside the dual level."""
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    a = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    y = slaf_ext.slaf(x, a)
    with forward_ad.dual_level():
        g = forward_ad.make_dual(torch.zeros_like(x), torch.ones_like(x))
        dx, da = (forward_ad.unpack_dual(t).tangent for t in torch.autograd.grad(y, (x, a), g))
    torch.testing.assert_close(dx, 1 + 4 * x.detach())
    torch.testing.assert_close(da, slaf_ext.basis_values(x.detach(), 2).sum(0))


GRAD_OUTPUTS = {
    "expanded": lambda x: torch.tensor(0.7, dtype=x.dtype).expand_as(x),
    "expanded along a dim": lambda x: torch.randn(x.shape[0], 1, 1, dtype=x.dtype).expand_as(x),
    "permuted": lambda x: torch.randn(x.shape[::-1], dtype=x.dtype).permute(2, 1, 0),
    "misaligned": lambda x: torch.randn(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape),
    "strided": lambda x: torch.randn(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)[..., ::2],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", GRAD_OUTPUTS)
def test_grad_output_of_any_strides_is_read_and_never_written(kind, dtype):
    x = torch.rand(3, 4, 37, dtype=dtype).requires_grad_()
    coeffs = torch.randn(4, 6, dtype=dtype).requires_grad_()
    grad_output = GRAD_OUTPUTS[kind](x)
    before = grad_output.clone()
    actual = torch.autograd.grad(slaf_ext.slaf(x, coeffs), (x, coeffs), grad_output)
    expected = torch.autograd.grad(slaf_ext.slaf(x, coeffs), (x, coeffs), grad_output.contiguous())
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert torch.equal(grad_output, before)


def test_only_what_is_needed_is_computed_and_saved():
    x, coeffs = torch.randn(64, requires_grad=True), torch.randn(5, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = slaf_ext.slaf(x, coeffs)
    assert [t.data_ptr() for t in saved] == [x.data_ptr(), coeffs.data_ptr()]

    calls = []
    original = slaf_ext.ops.slaf_backward
    for needs in ((True, False), (False, True)):
        x.requires_grad_(needs[0]), coeffs.requires_grad_(needs[1])
        x.grad = coeffs.grad = None
        y = slaf_ext.slaf(x, coeffs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slaf_ext.ops, "slaf_backward", lambda *a: calls.append(a[-2:]) or original(*a))
            y.sum().backward()
        assert (x.grad is not None, coeffs.grad is not None) == needs
    assert calls == [(True, False), (False, True)]


@pytest.mark.parametrize("basis", ["chebyshev", "legendre", "laguerre", "monomial"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_one_gradient_is_what_it_is_beside_the_other(dtype, basis):
    for shape, groups in (((1013,), 1), ((3, 4, 65), 4), ((40, 24), 24)):
        x, coeffs = torch.rand(shape).mul(2).sub(1).to(dtype), torch.randn(groups, 9, dtype=dtype)
        grad_output, gradients = torch.randn_like(x), {}
        for needs in ((True, True), (True, False), (False, True)):
            inputs = [t.clone().requires_grad_(need) for t, need in zip((x, coeffs), needs, strict=True)]
            y = slaf_ext.slaf(*inputs, basis, dim=1 if x.dim() > 1 else 0)
            y.backward(grad_output)
            gradients[needs] = [t.grad for t in inputs]
        dx, dcoeffs = gradients[True, True]
        assert torch.equal(gradients[True, False][0], dx)
        torch.testing.assert_close(gradients[False, True][1], dcoeffs)  # added in another order


@pytest.mark.parametrize("degree", [1, 2, 3, 5, 8, 9, 35])
@pytest.mark.parametrize("basis", ["monomial", "taylor"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_gradients_at_infinity(dtype, basis, degree):
    """No 0 * inf makes a NaN: phi_degree has no part in p', so dx is a_1 at degree 1; a power needs none before it."""
    for members in (1, 300):
        x = torch.full((members,), float("inf"), dtype=dtype, requires_grad=True)
        coeffs = torch.ones(degree + 1, dtype=dtype, requires_grad=True)
        slaf_ext.slaf(x, coeffs, basis, dim=0).sum().backward()
        assert torch.equal(x.grad, torch.full_like(x, 1.0 if degree == 1 else float("inf")))
        assert coeffs.grad.tolist() == [members] + [float("inf")] * degree


def test_memory_format_and_strides_are_kept_without_a_copy():
    x = torch.randn(2, 8, 5, 5)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x.permute(2, 0, 3, 1), x.transpose(0, 3)):
        given = given.detach().requires_grad_()
        coeffs = torch.randn(given.shape[1], 4)
        y = slaf_ext.slaf(given, coeffs)
        (dx,) = torch.autograd.grad(y, given, torch.randn_like(y))
        assert y.stride() == dx.stride() == given.stride()


def test_checkpoint_and_retain_graph():
    x, coeffs = torch.randn(6, requires_grad=True), torch.randn(4, requires_grad=True)
    y = slaf_ext.slaf(x, coeffs)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y.sum(), x)[0])
    again = torch.utils.checkpoint.checkpoint(slaf_ext.slaf, x, coeffs, use_reentrant=False)
    assert torch.equal(first, torch.autograd.grad(again.sum(), x)[0])
