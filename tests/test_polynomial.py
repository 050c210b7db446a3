"""The expansion held to the network itself, to numpy's polynomial algebra and to sympy."""

import math

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slaf_ext import SLAF, MultivariatePolynomial, bases, to_polynomial


def network(seed, widths, degrees, basis="chebyshev", domain=None, per_unit=False):
    torch.manual_seed(seed)
    layers = []
    for i, degree in enumerate(degrees):
        groups = widths[i + 1] if per_unit else 1
        shape = (groups, degree + 1) if groups > 1 else (degree + 1,)
        start = torch.randn(shape, dtype=torch.float64)
        where = {"domain": domain, "outside": "extrapolate"}
        activation = SLAF(degree, groups, basis=basis, **where, init=start, dtype=torch.float64)
        layers += [nn.Linear(widths[i], widths[i + 1], dtype=torch.float64), activation]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], dtype=torch.float64)).eval()


def assert_equal(model, polynomial, variables, seed=0):
    x = torch.rand(64, variables, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    expected = model(x).detach()
    scale = expected.abs().max(0).values
    assert ((polynomial(x) - expected).abs() / scale).max() < 1e-9


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    variables=st.integers(1, 4),
    width=st.integers(1, 4),
    outputs=st.integers(1, 3),
    degrees=st.lists(st.integers(0, 3), min_size=1, max_size=2),
    basis=st.sampled_from(bases.names()),
    domain=st.sampled_from([None, (-2.0, 3.0)]),
    per_unit=st.booleans(),
)
def test_it_equals_the_network(seed, variables, width, outputs, degrees, basis, domain, per_unit):
    widths = [variables, *[width] * len(degrees), outputs]
    model = network(seed, widths, degrees, basis, domain, per_unit)
    polynomial = to_polynomial(model)
    assert_equal(model, polynomial, variables, seed)
    assert polynomial.degree <= math.prod(degrees)


def test_one_variable_is_numpys_composition():
    model = network(3, [1, 1, 1], [4], basis="legendre")
    first, activation, last = model
    inner = np.polynomial.Polynomial([first.bias.item(), first.weight.item()])
    expected = activation.to_numpy()(inner) * last.weight.item() + last.bias.item()
    expected = expected.convert(kind=np.polynomial.Polynomial).coef
    polynomial = to_polynomial(model)
    assert [polynomial.terms[(k,)][0] for k in range(5)] == pytest.approx(expected.tolist())
    assert polynomial.degree == 4


def test_every_layer_that_is_known():
    torch.manual_seed(1)
    norm = nn.BatchNorm1d(3, dtype=torch.float64)
    normalised = SLAF(
        2, 3, outside="extrapolate", normalize=True, momentum=0.5, init="noisy_identity", dtype=torch.float64
    )
    first, last = nn.Linear(4, 3, dtype=torch.float64), nn.Linear(3, 2, bias=False, dtype=torch.float64)
    bare = nn.BatchNorm1d(2, affine=False, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Sequential(first, norm, nn.Identity()), normalised, nn.Dropout(), last, bare)
    for _ in range(3):
        model(torch.randn(50, 2, 2, dtype=torch.float64) * 2 + 1)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    with pytest.raises(ValueError, match=r"BatchNorm1d.*call model.eval\(\)"):
        to_polynomial(model)
    model.eval()
    x = torch.randn(20, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(to_polynomial(model)(x.flatten(1)), model(x), rtol=1e-9, atol=1e-9)


def test_the_size_is_refused_before_any_work():
    model = network(0, [100, 5, 5, 1], [7, 7])
    with pytest.raises(ValueError, match=r"up to 10\^39 terms; max_terms is 20,000"):  # comb(149, 49) = 6.7e39
        to_polynomial(model)
    with pytest.raises(ValueError, match=r"10\^\d+ terms"):  # at once, where to count them would take long
        to_polynomial(network(0, [100_000, *[2] * 7, 1], [9] * 7))
    with pytest.raises(ValueError, match=rf"up to {math.comb(30, 10):,} terms"):
        to_polynomial(network(0, [20, 2, 1], [10]))
    small = network(0, [3, 2, 1], [4])
    assert len(to_polynomial(small, max_terms=math.comb(7, 4)).exponents) == 35
    with pytest.raises(ValueError, match="up to 35 terms; max_terms is 34"):
        to_polynomial(small, max_terms=34)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Linear(2, 2), nn.ReLU()], "ReLU is not a polynomial layer"),
        ([nn.Linear(2, 2), SLAF(2, outside="clamp")], "only outside='extrapolate'"),
        ([nn.Linear(2, 3), nn.Linear(2, 1)], "takes 2 inputs and the layer before it gives 3"),
        ([nn.Linear(2, 3), SLAF(2, 2, outside="extrapolate")], "2 groups, which do not divide the 3 units"),
        ([nn.Linear(2, 4), SLAF(2, 2, dim=2, outside="extrapolate")], "along dim 2"),
        ([SLAF(2, outside="extrapolate")], "number of inputs is unknown"),
        ([nn.Flatten(0), nn.Linear(2, 2)], "flattening of all but the first"),
        ([nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)], "no running statistics"),
        ([nn.Linear(2, 2), SLAF(2, normalize=True).train()], "training mode"),
    ],
)
def test_what_cannot_be_expanded_gets_a_sentence(layers, message):
    model = nn.Sequential(*layers)
    if "training" not in message:
        model.eval()
    with pytest.raises(ValueError, match=message):
        to_polynomial(model)


def test_of_an_ill_conditioned_network_it_loses_no_more_than_the_terms_cancel():
    model = network(0, [2, 4, 4, 1], [7, 7])
    polynomial = to_polynomial(model)
    sizes = MultivariatePolynomial(polynomial.exponents, np.abs(polynomial.coeffs))
    x = torch.rand(256, 2, dtype=torch.float64) * 2 - 1
    terms = sizes(x.abs())
    assert terms.max() > 1e3 * model(x).abs().max()
    assert ((polynomial(x) - model(x)).abs() <= 1e-14 * terms).all()


def test_sympy_says_the_same():
    model = network(5, [2, 2, 2], [3])
    polynomial = to_polynomial(model)
    expressions = polynomial.to_sympy()
    x0, x1 = sympy.symbols("x0 x1")
    values = [float(e.subs({x0: 0.3, x1: -0.7})) for e in expressions]
    expected = model(torch.tensor([[0.3, -0.7]], dtype=torch.float64))[0].tolist()
    assert values == pytest.approx(expected, rel=1e-9)
    assert sympy.Poly(expressions[0], x0, x1).total_degree() == polynomial.degree == 3


def test_it_is_differentiable_and_keeps_leading_dimensions():
    polynomial = to_polynomial(network(2, [3, 2, 2], [2]))
    assert polynomial(torch.zeros(4, 5, 3)).shape == (4, 5, 2)
    x = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(polynomial, x)
    with pytest.raises(ValueError, match="the 3 variables"):
        polynomial(torch.zeros(3, 2))
