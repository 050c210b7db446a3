"""Fits held to published minimax errors, scipy's optimisers and numpy's own fits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Chebyshev, Legendre, Polynomial
from scipy import integrate, optimize

import slaf_ext
from slaf_ext import SLAF, bases, fit
from slaf_ext.fit import FUNCTIONS
from slaf_ext.series import from_chebyshev, to_numpy

ACTIVATIONS = [name for name in FUNCTIONS if name != "abs"]


def test_minimax_error_of_abs_meets_bernsteins_constant():
    # n E_n -> 0.2801694990... (Bernstein 1914; Varga and Carpenter 1985), from below like 1/n^2.
    n = 64
    error = fit("abs", n, domain=(-1, 1), method="minimax").max_error
    assert n * error == pytest.approx(0.2801694990, abs=0.16 / n**2 * 2)
    # Varga and Carpenter 1985, table: E_4 of |x| on [-1, 1].
    assert fit("abs", 4, domain=(-1, 1), method="minimax").max_error == pytest.approx(0.067621, abs=5e-7)


def test_minimax_line_of_exp():
    # A chord's parallel: slope sinh(1), half of the gap between the chord and the tangent at ln(sinh 1).
    best = fit("exp", 1, "monomial", domain=(-1, 1), method="minimax")
    slope = math.sinh(1)
    chord, tangent = math.cosh(1), slope - slope * math.log(slope)
    assert best.coeffs == pytest.approx([(chord + tangent) / 2, slope])
    assert best.max_error == pytest.approx((chord - tangent) / 2)


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["relu", "gelu", "tanh", "mish"])
def test_minimax_is_not_beaten_by_a_linear_programme(name, degree):
    # min t subject to |f - p| <= t on a grid: scipy's own answer, a lower bound for the continuous problem.
    x = np.linspace(-3, 2, 1501)
    y = FUNCTIONS[name](torch.from_numpy(x)).numpy()
    vander = np.polynomial.chebyshev.chebvander((2 * x + 1) / 5, degree)
    ones = np.ones((x.size, 1))
    result = optimize.linprog(
        np.eye(degree + 2)[-1],
        A_ub=np.block([[vander, -ones], [-vander, -ones]]),
        b_ub=np.concatenate([y, -y]),
        bounds=[(None, None)] * (degree + 2),
    )
    ours = fit(name, degree, domain=(-3, 2), method="minimax").max_error
    assert result.fun - 1e-9 <= ours <= result.fun * (1 + 1e-4) + 1e-9


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("domain", [(-4, 4), (-1, 6.5)])
def test_the_best_error_alternates(name, domain):
    degree = 6
    best = fit(name, degree, domain=domain, method="minimax")
    x = np.linspace(*domain, 200_001)
    error = FUNCTIONS[name](torch.from_numpy(x)).numpy() - best(x)
    assert np.abs(error).max() == pytest.approx(best.max_error, rel=1e-6, abs=1e-12)
    if best.max_error > 1e-10:
        high = error[np.abs(error) > best.max_error * (1 - 1e-3)]
        assert 1 + np.count_nonzero(np.diff(np.sign(high))) >= degree + 2


@pytest.mark.parametrize("method", ["lstsq", "interpolate", "minimax"])
@pytest.mark.parametrize("basis", bases.names())
def test_a_polynomial_is_met_exactly_in_every_basis(basis, method):
    target = Polynomial([0.5, -1.0, 0.25, 0.125])
    found = fit(target, 5, basis, domain=(-2, 3), method=method)
    x = torch.linspace(-2, 3, 101, dtype=torch.float64)
    y = slaf_ext.slaf(x, torch.from_numpy(found.coeffs), basis, domain=(-2, 3))
    np.testing.assert_allclose(y.numpy(), target(x.numpy()), atol=1e-12)
    assert found.max_error < 1e-12
    assert found.rms_error < 1e-12


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(ACTIVATIONS),
    st.integers(0, 12),
    st.floats(-6, 4),
    st.floats(0.5, 8),
)
def test_minimax_is_at_most_the_others(name, degree, lo, width):
    domain = (lo, lo + width)
    errors = {m: fit(name, degree, domain=domain, method=m).max_error for m in ("minimax", "lstsq", "interpolate")}
    assert errors["minimax"] <= min(errors.values()) * (1 + 1e-6) + 1e-12


def test_reported_errors_and_their_place():
    # relu on (-1, 1) by a constant: the mean 1/4, worst at x = 1 with 3/4, mean square 1/6 - 1/16.
    constant = fit("relu", 0, domain=(-1, 1))
    assert constant.coeffs == pytest.approx([0.25])
    assert (constant.max_error, constant.max_error_at) == pytest.approx((0.75, 1.0))
    assert constant.rms_error == pytest.approx(math.sqrt(1 / 6 - 1 / 16))


def test_least_squares_is_the_projection_that_quadrature_gives():
    found = fit("gelu", 4, "legendre", domain=(-3, 3))
    f = FUNCTIONS["gelu"]
    for k in range(5):
        basis_k = Legendre.basis(k, domain=(-3, 3))
        moment = integrate.quad(lambda x, p=basis_k: f(torch.tensor(x, dtype=torch.float64)).item() * p(x), -3, 3)[0]
        assert found.coeffs[k] == pytest.approx(moment * (2 * k + 1) / 6, abs=1e-10)


def test_normal_weight_gives_the_hermite_coefficients_of_relu():
    # E relu(X) = 1/sqrt(2 pi), E X relu(X) = 1/2, E (X^2 - 1) relu(X) = 1/sqrt(2 pi), over 2! in the expansion.
    wide = bases.Basis("he", lambda k: (1.0, 0.0, float(k)), (-9, 9))
    found = fit("relu", 2, wide, domain=None, weight="normal")
    c = 1 / math.sqrt(2 * math.pi)
    assert found.coeffs == pytest.approx([c, 0.5, c / 2], abs=1e-9)
    same = fit("relu", 2, wide, domain=None, weight=lambda x: np.exp(-x * x / 2))
    assert same.coeffs == pytest.approx(found.coeffs)


def test_interpolation_is_numpys():
    expected = Chebyshev.interpolate(np.tanh, 7, domain=(-2, 5))
    np.testing.assert_allclose(fit("tanh", 7, domain=(-2, 5), method="interpolate").coeffs, expected.coef, atol=1e-14)


@pytest.mark.parametrize(
    "fn",
    [np.sin, torch.sin, lambda x: np.sin(x), lambda x: x.sin(), torch.nn.Sequential(), math.sin, "sin"],
    ids=["numpy", "torch", "lambda of numpy", "lambda of torch", "module", "math", "name"],
)
def test_a_callable_of_arrays_or_tensors(fn):
    found = fit(fn, 15, domain=(-2, 2))
    expected = (lambda x: x) if isinstance(fn, torch.nn.Module) else np.sin
    x = np.linspace(-2, 2, 9)
    np.testing.assert_allclose(found(x), expected(x), atol=1e-10)


def test_a_function_of_numbers_with_a_branch():
    found = fit(lambda x: x if x > 0 else 0.1 * x, 5, domain=(-1, 2), method="minimax")
    expected = fit(lambda x: np.where(x > 0, x, 0.1 * x), 5, domain=(-1, 2), method="minimax")
    np.testing.assert_allclose(found.coeffs, expected.coeffs)


def test_what_a_function_refuses_is_passed_on():
    with pytest.raises(RuntimeError, match="Double and Float"):
        fit(torch.nn.PReLU(), 3, domain=(-1, 1))  # float32 weights


@pytest.mark.parametrize("basis", ["hermite_e", "laguerre"])
def test_a_basis_that_cannot_hold_the_polynomial_shows_in_the_error(basis):
    found = fit("gelu", 40, basis, domain=(-5, 5))
    x = torch.linspace(-5, 5, 4001, dtype=torch.float64)
    y = slaf_ext.slaf(x, torch.from_numpy(found.coeffs), basis, domain=(-5, 5))
    assert (y - torch.nn.functional.gelu(x)).abs().max() > 1
    assert found.max_error > 1


def test_a_function_that_works_in_place():
    expected = fit("relu", 5, domain=(-1, 2), method="minimax")
    found = fit(torch.nn.ReLU(inplace=True), 5, domain=(-1, 2), method="minimax")
    assert found.max_error == pytest.approx(expected.max_error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fn": "rleu"}, "unknown function 'rleu'.*gelu"),
        ({"degree": -1}, "degree is -1"),
        ({"degree": 10**9}, "degree is 1000000000; it must be an integer from 0 to 1000"),
        ({"fn": ["relu"]}, r"unknown function \['relu'\]"),
        ({"weight": 3}, "weight is 3; it must be None, 'normal' or a function"),
        ({"domain": (-1e308, 1e308)}, "of width inf; float64 does not hold its map"),
        ({"domain": (0, 1e-320)}, "of width 1e-320; float64 does not hold its map"),
        ({"domain": (2, 1)}, r"domain is \(2.0, 1.0\)"),
        ({"method": "best"}, "method is 'best'.*minimax"),
        ({"method": "minimax", "weight": "normal"}, "only 'lstsq' uses it"),
        ({"weight": "uniform"}, "weight is 'uniform'"),
        ({"weight": lambda x: -x}, "from 0 up"),
        ({"fn": lambda x: 1 / x}, "not finite"),
        ({"fn": lambda x: x[:2]}, "element by element"),
        ({"basis": "cheb"}, "unknown basis 'cheb'"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_wrong_arguments_get_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(**{"fn": "relu", "degree": 3, "domain": (-1, 1)} | arguments)


def test_minimax_that_does_not_level_is_refused():
    noise = np.random.default_rng(0)
    with pytest.raises(RuntimeError, match="does not alternate"):
        fit(lambda x: noise.standard_normal(x.shape), 3, domain=(-1, 1), method="minimax")


def test_minimax_splits_a_jump():
    assert fit(np.sign, 3, domain=(-1, 1), method="minimax").max_error == pytest.approx(1)


@pytest.mark.parametrize("basis", [*bases.names(), bases.jacobi(0.5, -0.25), bases.gegenbauer(1.5)], ids=str)
@pytest.mark.parametrize("domain", [None, (-3, 5)])
def test_to_numpy_equals_the_module(basis, domain):
    torch.manual_seed(0)
    start = torch.randn(3, 6, dtype=torch.float64)
    f = SLAF(5, 3, basis=basis, domain=domain, outside="extrapolate", init=start, dtype=torch.float64)
    x = torch.linspace(-1, 1, 11, dtype=torch.float64)
    y = f(x.expand(2, 3, 11)).detach()
    for group in range(3):
        series = f.to_numpy(group)
        np.testing.assert_allclose(series(x.numpy()), y[0, group].numpy(), rtol=1e-11, atol=1e-11)
    own = bases.get(basis).domain if domain is None else domain
    assert tuple(series.domain) == own


def test_to_numpy_keeps_numpys_own_classes():
    f = SLAF(2, basis="hermite_e", init=torch.tensor([1.0, 2.0, 3.0]))
    assert isinstance(f.to_numpy(), np.polynomial.HermiteE)
    assert f.to_numpy().coef.tolist() == [1, 2, 3]
    namesake = bases.Basis("chebyshev", lambda k: (1.0, 0.0, 0.25))  # not numpy's, whatever it is called
    np.testing.assert_allclose(to_numpy(np.array([0, 0, 1.0]), namesake)(0.5), 0.5**2 - 0.25)
    with pytest.raises(ValueError, match="group is 1"):
        f.to_numpy(1)


@pytest.mark.parametrize("basis", bases.names())
def test_change_of_basis_returns(basis):
    coeffs = np.arange(1.0, 8.0)
    back = from_chebyshev(to_numpy(coeffs, basis).convert(kind=Chebyshev, domain=bases.get(basis).domain).coef, basis)
    np.testing.assert_allclose(back, coeffs, rtol=1e-8)


@pytest.mark.parametrize("init", ["gelu", torch.nn.functional.gelu])
def test_slaf_starts_as_an_activation(init):
    f = SLAF(8, 2, domain=(-4, 4), init=init)
    x = torch.linspace(-4, 4, 101)
    error = (f(x.expand(1, 2, 101)) - torch.nn.functional.gelu(x)).abs().max().item()
    assert error == pytest.approx(fit("gelu", 8, domain=(-4, 4)).max_error, abs=1e-5)
    assert error < 0.03


def test_unknown_start_lists_the_names():
    with pytest.raises(ValueError, match=r"init is 'gleu'.*noisy_identity.*gelu"):
        SLAF(3, init="gleu")


@pytest.mark.parametrize(("basis", "domain"), [("chebyshev", (-3, 3)), ("hermite_e", None), ("monomial", None)])
@pytest.mark.parametrize("degree", [1, 2, 6])
def test_variance_preserving_start(basis, domain, degree):
    torch.manual_seed(degree)
    f = SLAF(degree, 7, basis=basis, domain=domain, init="variance_preserving", dtype=torch.float64)
    rows = [f.to_numpy(g) for g in range(7)]
    density = lambda x: math.exp(-x * x / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    for p in rows:
        assert integrate.quad(lambda x, p=p: p(x) * density(x), -14, 14)[0] == pytest.approx(0, abs=1e-7)
        assert integrate.quad(lambda x, p=p: p(x) ** 2 * density(x), -14, 14)[0] == pytest.approx(1, abs=1e-6)
    assert len({round(float(p(0.3)), 9) for p in rows}) == (7 if degree > 1 else 2)  # ±x alone are left at degree 1
    with pytest.raises(ValueError, match="degree 1 or more"):
        SLAF(0, init="variance_preserving")
