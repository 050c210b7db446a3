"""kan_linear: values and gradients, panels, transforms, and errors."""

import math

import numpy as np
import oracles
import pytest
import torch
from torch import nn

from slaf_ext import KANLinear, bases, kan_linear, kan_ops, reference
from slaf_ext.arguments import spec_of_degree

OUTSIDE = ["extrapolate", "clamp", "linear"]


@pytest.fixture
def small_panels(monkeypatch):
    """Panels of three rows, which divide few batches."""
    monkeypatch.setattr(kan_ops, "PANEL_ROWS", 3)
    monkeypatch.setattr(kan_ops, "PANEL_BYTES", 1)


def tensors(x_shape=(7, 5), out=4, degree=3, dtype=torch.float64, reach=1.5):
    x = (torch.rand(x_shape, dtype=torch.float64) * 2 * reach - reach).to(dtype)
    weight, bias = torch.randn(out, x_shape[-1], degree).to(dtype), torch.randn(out).to(dtype)
    return [t.requires_grad_() for t in (x, weight, bias)]


def by_einsum(basis, x, weight, bias, g, domain=None, outside="extrapolate"):
    """y and the gradients of x, weight and bias for g, in float64, from values of the oracles and their differences."""
    x, weight, bias, g = (t.detach().double().cpu().numpy() for t in (x, weight, bias, g))
    window, degree = bases.get(basis).domain, weight.shape[-1]
    lo, hi = domain or window

    def term(k, t):
        return oracles.values(bases.get(basis), k, window[0] + (t - lo) * (window[1] - window[0]) / (hi - lo))

    def slope(k, t):
        h = 1e-4  # fourth order
        return (8 * (term(k, t + h) - term(k, t - h)) - (term(k, t + 2 * h) - term(k, t - 2 * h))) / (12 * h)

    t = x if outside == "extrapolate" else np.clip(x, lo, hi)
    phi, slopes = (
        np.stack([f(k, t.ravel()).reshape(t.shape) for k in range(1, degree + 1)], -1) for f in (term, slope)
    )
    if outside == "linear":
        phi = phi + slopes * (x - t)[..., None]
    if outside == "clamp":
        slopes = slopes * (x == t)[..., None]
    y = np.einsum("...ik,oik->...o", phi, weight) + bias
    dx = np.einsum("...o,oik,...ik->...i", g, weight, slopes)
    flat = g.reshape(-1, g.shape[-1]), phi.reshape(-1, *phi.shape[-2:])
    return [torch.from_numpy(np.asarray(t)) for t in (y, dx, np.einsum("ro,rik->oik", *flat), flat[0].sum(0))]


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("domain", [None, (-1.25, 1.0)])
@pytest.mark.parametrize("basis", ["monomial", "chebyshev", "legendre", "hermite_e", "laguerre", "chebyshev_v"])
def test_values_and_gradients(basis, domain, outside, small_panels):
    if basis in ("hermite_e", "laguerre", "monomial") and domain is None and outside != "extrapolate":
        domain = (-1.0, 1.25)
    inputs = tensors(x_shape=(2, 4, 37))
    y = kan_linear(*inputs, basis, domain=domain, outside=outside)
    g = torch.randn_like(y)
    got = y, *torch.autograd.grad(y, inputs, g)
    for mine, true in zip(got, by_einsum(basis, *inputs, g, domain, outside), strict=True):
        torch.testing.assert_close(mine.cpu(), true, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 3e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("parameters", ["same", "float32"])
@pytest.mark.parametrize("shape", [(33, 7), (5, 64), (130, 20)])
def test_dtypes(dtype, most, parameters, shape, small_panels):
    inputs = tensors(shape, out=6, degree=5, dtype=dtype, reach=1.0)
    if parameters == "float32":
        inputs[1:] = [t.detach().float().requires_grad_() for t in inputs[1:]]
    y = kan_linear(*inputs)
    g = torch.randn_like(y)
    got = y, *torch.autograd.grad(y, inputs, g)
    assert [t.dtype for t in got] == [dtype, *(t.dtype for t in inputs)]
    for mine, true in zip(got, by_einsum("chebyshev", *inputs, g), strict=True):
        assert (mine.cpu().double() - true).abs().max() <= most * true.abs().max()


@pytest.mark.parametrize("degree", [1, 2, 9, 40])
@pytest.mark.parametrize("columns", [1, 3, 16, 67])
def test_degrees_and_sizes(degree, columns):
    inputs = tensors((9, columns), degree=degree, reach=1.0)
    y = kan_linear(*inputs)
    g = torch.randn_like(y)
    got = y, *torch.autograd.grad(y, inputs, g)
    true = reference.kan_linear(*inputs)
    for mine, expected in zip(got, (true, *torch.autograd.grad(true, inputs, g)), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("outside", OUTSIDE)
def test_first_and_second_derivatives(outside, small_panels):
    inputs = tensors((4, 2), out=3)
    assert torch.autograd.gradcheck(lambda *t: kan_linear(*t, outside=outside), inputs)
    # Without a bias, whose gradient alone would satisfy gradgradcheck.
    assert torch.autograd.gradgradcheck(lambda *t: kan_linear(*t, outside=outside), inputs[:2])


def test_second_derivatives_where_the_weight_depends_on_x():
    x, weight, _ = tensors((4, 2), out=3)

    def second(f):
        (first,) = torch.autograd.grad(f(x, weight * x.square().sum()).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (x, weight))

    torch.testing.assert_close(second(kan_linear), second(reference.kan_linear))


def test_only_what_is_needed_is_computed_and_saved():
    x, weight, bias = tensors(dtype=torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        kan_linear(x, weight, bias)
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), weight.data_ptr()}
    for wanted in ([x], [weight], [bias]):
        expected = torch.autograd.grad(reference.kan_linear(x, weight, bias).sum(), wanted)
        torch.testing.assert_close(torch.autograd.grad(kan_linear(x, weight, bias).sum(), wanted), expected)
    torch.testing.assert_close(kan_linear(x, weight), reference.kan_linear(x, weight))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (5,), (1, 5)])
def test_empty_batches_and_single_rows(shape):
    inputs = tensors(shape)
    y = kan_linear(*inputs)
    assert y.shape == (*shape[:-1], 4)
    for got, true in zip(
        torch.autograd.grad(y.sum(), inputs),
        torch.autograd.grad(reference.kan_linear(*inputs).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, true)


def test_strided_inputs_and_gradients(small_panels):
    x, weight, bias = tensors((5, 7), out=4)
    x, weight = x.detach().T.requires_grad_(), tensors((1, 5))[1].detach().transpose(0, 1).requires_grad_()
    weight = torch.randn(3, 5, 4, dtype=torch.float64).transpose(0, 2).requires_grad_()
    y, true = kan_linear(x, weight, bias), reference.kan_linear(x, weight, bias)
    torch.testing.assert_close(y, true)
    for g in (torch.ones((), dtype=torch.float64).expand_as(y), torch.randn(4, 7, dtype=torch.float64).T):
        got, expected = (torch.autograd.grad(f, (x, weight), g, retain_graph=True) for f in (y, true))
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("basis", ["monomial", "chebyshev", "hermite"])
def test_terms_of_infinities_and_nan(basis, outside):
    x = torch.tensor([[math.inf, -math.inf, math.nan, 0.0, 2.0]])
    spec = spec_of_degree(4, basis, 0, (-1.0, 1.0), outside)
    terms = torch.empty(1, 4, 5)
    torch.ops.slaf_ext.kan_expand(x, spec.packed, terms)
    expected = torch.stack(reference.kan_terms(x, spec.recurrence, *spec[2:]), 1)
    torch.testing.assert_close(terms, expected, equal_nan=True)


def test_gradients_at_infinity():
    for sign, degree in ((1, 1), (-1, 1), (1, 3), (-1, 2)):
        x = torch.tensor([[sign * math.inf]], requires_grad=True)
        (dx,) = torch.autograd.grad(kan_linear(x, torch.ones(1, 1, degree), basis="monomial").sum(), x)
        (true,) = torch.autograd.grad(reference.kan_linear(x, torch.ones(1, 1, degree), basis="monomial").sum(), x)
        torch.testing.assert_close(dx, true, equal_nan=True)


@pytest.mark.cpu("a GPU has no threads to count")
def test_threads_give_the_same_bits():
    inputs = tensors((1500, 64), dtype=torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            for _ in range(2):
                terms, slopes = torch.empty(1500, 3, 64), torch.empty(1500, 64)
                packed = spec_of_degree(3, "chebyshev", 0, None, "extrapolate").packed
                torch.ops.slaf_ext.kan_expand(inputs[0].detach(), packed, terms)
                torch.ops.slaf_ext.kan_contract(inputs[0].detach(), packed, terms, slopes)
                results.append((terms, slopes))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


def test_transforms():
    x, weight, bias = tensors()
    expected = kan_linear(x, weight, bias)
    torch.testing.assert_close(torch.vmap(lambda row: kan_linear(row, weight, bias))(x), expected)
    jacobian = torch.func.jacrev(lambda t: kan_linear(t, weight, bias).sum(0))(x)
    true = torch.autograd.functional.jacobian(lambda t: reference.kan_linear(t, weight, bias).sum(0), x)
    torch.testing.assert_close(jacobian, true)
    _, tangent = torch.func.jvp(lambda t: kan_linear(t, weight, bias), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent.sum(0), true.sum((1, 2)))


def test_opcheck():
    x, weight, bias = tensors(dtype=torch.float32)
    spec = spec_of_degree(3, "chebyshev", 0, None, "linear")
    torch.library.opcheck(kan_ops.operator.default, (x, weight, bias, *spec))
    g = torch.randn(7, 4)
    detached = [t.detach() for t in (x, weight)]
    torch.library.opcheck(torch.ops.slaf_ext.kan_linear_backward.default, (g, *detached, *spec, True, True))
    terms = torch.empty(7, 3, 5)
    torch.library.opcheck(torch.ops.slaf_ext.kan_expand.default, (detached[0], spec.packed, terms))


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(7, 4)}, r"x has shape \(7, 4\) and weight \(4, 5, 3\); the last dimension .* in_features, 5"),
        ({"x": torch.ones(7, 5, dtype=torch.int64)}, "x is int64"),
        ({"x": torch.ones(())}, r"x has shape \(\)"),
        ({"weight": torch.ones(4, 5)}, r"weight has shape \(4, 5\); it must be \(out_features, in_features, degree\)"),
        ({"weight": torch.ones(4, 5, 0)}, "each at least 1"),
        ({"weight": torch.ones(4, 5, 3, dtype=torch.float64)}, "weight is float64 and x is float32; convert one"),
        ({"bias": torch.ones(5)}, r"bias has shape \(5,\) and weight \(4, 5, 3\); bias must be \(4,\)"),
        ({"weight": torch.ones(4, 5, 3, device="meta")}, "weight is on meta and x is on c"),
        ({"basis": "fourier"}, "fourier"),
        ({"outside": "wrap"}, "outside is 'wrap'"),
        ({"domain": (1.0, 1.0)}, "domain"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"x": torch.ones(7, 5), "weight": torch.ones(4, 5, 3), "bias": torch.ones(4), **change}
    with pytest.raises(ValueError, match=message):
        kan_linear(**arguments)


def test_wrong_types_and_modules():
    with pytest.raises(TypeError, match="x is a list; it must be a tensor"):
        kan_linear([1.0], torch.ones(1, 1, 1))
    with pytest.raises(ValueError, match="x is sparse_coo; kan_linear needs a dense tensor"):
        kan_linear(torch.ones(7, 5).to_sparse(), torch.ones(4, 5, 3))
    with pytest.raises(ValueError, match="degree is 0"):
        KANLinear(2, 2, 0)
    with pytest.raises(ValueError, match=r"dtype is torch\.int64"):
        KANLinear(2, 2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="linear has 3 input and 2 output features; this layer has 2 and 2"):
        KANLinear(2, 2, 1).init_from(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"linear\.weight is complex64"):
        KANLinear(2, 2, 1).init_from(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="linear is on the meta device"):
        KANLinear(2, 2, 1).init_from(nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="degree is 1000000"):
        KANLinear(2, 2, 10**6)
    with pytest.raises(ValueError, match="make it with bias=True"):
        KANLinear(2, 2, 1, bias=False).init_from(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(7)}, r"x has shape \(7,\); a panel is contiguous"),
        ({"x": torch.ones(5, 7).T}, "a panel is contiguous"),
        ({"terms": torch.ones(7, 2, 5)}, "the recurrence holds 9 numbers"),
        ({"terms": torch.ones(6, 3, 5)}, r"terms are float32 of shape \(6, 3, 5\)"),
        ({"terms": torch.ones(7, 5, 3).transpose(1, 2)}, "they must be contiguous"),
        ({"terms": torch.ones(7, 3, 5).double()}, "with the dtype and device of x"),
        ({"terms": torch.ones(7, 3, 5, device="meta")}, "terms .*on meta and x is on c"),
        ({"spec": torch.ones(14)}, "the spec is float32"),
        ({"spec": torch.tensor([0.0, 0, -1, 1, 1, *[1.0] * 9], dtype=torch.float64)}, "outside is 1"),
        ({"spec": torch.tensor([0.0, 0, -1, 1, 0, *[math.nan] * 9], dtype=torch.float64)}, "must be finite"),
    ],
)
def test_wrong_panels(change, message):
    packed = spec_of_degree(3, "chebyshev", 0, None, "extrapolate").packed
    arguments = {"x": torch.ones(7, 5), "spec": packed, "terms": torch.ones(7, 3, 5), **change}
    with pytest.raises((ValueError, RuntimeError), match=message):
        torch.ops.slaf_ext.kan_expand(*arguments.values())
    named = message.replace("terms are", "grad_terms are")
    with pytest.raises((ValueError, RuntimeError), match=named):
        torch.ops.slaf_ext.kan_contract(*arguments.values(), torch.ones(7, 5))
    with pytest.raises((ValueError, RuntimeError), match=r"grad_x is float32 of shape \(7, 4\)"):
        torch.ops.slaf_ext.kan_contract(torch.ones(7, 5), packed, torch.ones(7, 3, 5), torch.ones(7, 4))
