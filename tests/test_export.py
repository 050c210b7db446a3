"""The polynomials of a network: what they are, how deep, in whose convention, and as JSON."""

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev, polynomial
from oracles import values
from torch import nn

import slaf_ext
from slaf_ext import SLAF, bases, export

BASES = [*bases.names(), bases.jacobi(0.5, -0.25), bases.gegenbauer(1.5)]
X = np.linspace(-0.9, 2.5, 41)


def exported(degree=5, groups=1, domain=(-1.0, 3.0), **options):
    coeffs = np.random.default_rng(0).normal(size=(groups, degree + 1))
    init = coeffs[0] if groups == 1 else coeffs
    f = SLAF(degree, groups, domain=domain, outside="extrapolate", init=init, dtype=torch.float64, **options)
    (p,) = export.polynomials(f)
    return f, p, coeffs


def on_window(x, basis, domain):
    (lo, hi), (first, last) = domain, bases.get(basis).domain
    return first + (x - lo) * (last - first) / (hi - lo)


# What each library documents, or its code does in the clear.
EVALUATORS = {
    "numpy": lambda p, c, x: polynomial.polyval(x, c),
    "tenseal": lambda p, c, x: sum(c[k] * x**k for k in range(len(c))),
    "orion": lambda p, c, x: by_horner(c, x),
    "openfhe": lambda p, c, x: (
        c[0] / 2 + chebyshev.chebval((2 * x - sum(p.interval)) / np.diff(p.interval), [0, *c[1:]])
    ),
}


def by_horner(highest_first, x):
    out = 0 * x
    for c in highest_first:
        out = c + x * out
    return out


@pytest.mark.parametrize("basis", BASES, ids=str)
@pytest.mark.parametrize("convention", EVALUATORS)
def test_conventions(basis, convention):
    basis = bases.get(basis)
    for groups in (1, 3):
        _, p, coeffs = exported(groups=groups, basis=basis)
        phi = np.stack([values(basis, k, on_window(X, basis, p.domain)) for k in range(6)])
        found = p.coefficients(convention)
        assert found.shape == p.coeffs.shape
        assert found.dtype == np.float64
        for row, given in zip(np.atleast_2d(found), coeffs, strict=True):
            expected = given @ phi
            scale = np.abs(given) @ np.abs(phi)
            assert (np.abs(EVALUATORS[convention](p, row, X) - expected) <= 1e-12 * scale.max()).all()


@pytest.mark.parametrize("convention", EVALUATORS)
def test_conventions_without_a_domain_and_of_a_constant(convention):
    for degree in (0, 1, 4):
        _, p, coeffs = exported(degree, domain=None, basis="laguerre")
        assert p.interval == (0.0, 1.0)
        expected = np.polynomial.laguerre.lagval(X, coeffs[0])
        np.testing.assert_allclose(EVALUATORS[convention](p, p.coefficients(convention), X), expected, atol=1e-12)


@pytest.mark.parametrize("degree", [2, 3, 4, 7])
def test_tenseal_computes_the_same_on_encrypted_inputs(degree):
    """With as many levels as `bsgs` says, and no fewer."""
    tenseal = pytest.importorskip("tenseal")
    f, p, _ = exported(degree)

    def encrypted(levels):
        sizes = [60, *[40] * levels, 60]
        context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=16384, coeff_mod_bit_sizes=sizes)
        context.global_scale = 2**40
        return tenseal.ckks_vector(context, X.tolist()).polyval(p.coefficients("tenseal").tolist()).decrypt()

    expected = f(torch.from_numpy(X).unsqueeze(1)).squeeze(1).detach()
    assert encrypted(p.depth.bsgs) == pytest.approx(expected.numpy(), abs=1e-3)
    with pytest.raises(ValueError, match="scale"):
        encrypted(p.depth.bsgs - 1)


class Encrypted:
    """A number that counts the levels of what was computed of it: one for each product, with a plaintext too."""

    def __init__(self, value, level=0):
        self.value, self.level = value, level

    def __add__(self, other):
        other = other if isinstance(other, Encrypted) else Encrypted(other)
        return Encrypted(self.value + other.value, max(self.level, other.level))

    def __mul__(self, other):
        other = other if isinstance(other, Encrypted) else Encrypted(other)
        return Encrypted(self.value * other.value, max(self.level, other.level) + 1)


def horner(c, x):
    total = x * c[-1]
    for a in c[-2:0:-1]:
        total = (total + a) * x
    return total + c[0]


def powers(c, x):
    table = {1: x}
    for k in range(2, len(c)):
        table[k] = table[k // 2] * table[k - k // 2]
    total = x * c[1]
    for k in range(2, len(c)):
        total = total + table[k] * c[k]
    return total + c[0]


def divided(c, x):
    """p = q x^m + r with the largest power of two m ≤ n, again and again: q is multiplied while x^m is made."""
    if len(c) == 2:
        return x * c[1] + c[0]
    m = 2 ** (len(c) - 1).bit_length() // 2
    giant = x
    for _ in range(m.bit_length() - 1):
        giant = giant * giant
    q = divided(c[m:], x) if len(c) - m > 1 else c[m]
    r = divided(c[:m], x) if m > 1 else c[0]
    return giant * q + r


def divided_chebyshev(c, t):
    """The same with T_{2m} = T_m T_m + T_m T_m − 1 in place of x^{2m}."""
    if len(c) == 2:
        return t * c[1] + c[0]
    m = 2 ** (len(c) - 1).bit_length() // 2
    giant = t
    for _ in range(m.bit_length() - 1):
        giant = giant * giant + giant * giant + -1.0
    q, r = chebyshev.chebdiv(c, [0] * m + [1])
    r = np.r_[r, np.zeros(m - len(r))]
    return giant * (divided_chebyshev(q, t) if len(q) > 1 else q[0]) + (divided_chebyshev(r, t) if m > 1 else r[0])


@pytest.mark.parametrize("degree", [*range(1, 18), 31, 32])
def test_depths_are_those_of_evaluations_that_count_them(degree):
    _, p, (c,) = exported(degree)
    x = 0.8
    for name, evaluate in (("horner", horner), ("powers", powers), ("bsgs", divided)):
        y = evaluate(c, Encrypted(x))
        assert (y.value, y.level) == (pytest.approx(polynomial.polyval(x, c)), getattr(p.depth, name))
    y = divided_chebyshev(c, Encrypted(x))
    assert (y.value, y.level) == (pytest.approx(chebyshev.chebval(x, c)), p.depth.bsgs)


def test_a_constant_has_no_depth():
    assert exported(0)[1].depth == (0, 0, 0)


def test_fields():
    torch.manual_seed(0)
    shared = SLAF(2, init="gelu")
    net = nn.ModuleDict(
        {
            "first": SLAF(3, 4, basis="legendre", dim=-1, domain=None, init="noisy_identity"),
            "shared": shared,
            "again": nn.Sequential(nn.Linear(2, 2), shared),
        }
    )
    first, second = export.polynomials(net)
    assert (first.name, first.basis, first.domain, first.degree, first.dim) == (
        "first",
        bases.get("legendre"),
        None,
        3,
        -1,
    )
    np.testing.assert_array_equal(first.coeffs, net["first"].coeffs.detach().numpy())
    assert (second.name, second.domain, second.outside, second.coeffs.shape) == ("shared", (-4.0, 4.0), "linear", (3,))
    assert first.coeffs.dtype == second.coeffs.dtype == np.float64
    assert first.ranges is second.ranges is None


def test_a_normalised_module_is_exported_as_in_evaluation():
    f = SLAF(3, 2, normalize=True, momentum=None, init=np.random.default_rng(0).normal(size=(2, 4)))
    f(3 * torch.randn(500, 2) + 1)
    (p,) = export.polynomials(f.train())
    x = torch.linspace(-4, 4, 9).unsqueeze(1).expand(-1, 2)
    expected = f.eval()(x).detach()
    for group in range(2):
        y = polynomial.polyval(x[:, group].double().numpy(), p.power_basis()[group])
        np.testing.assert_allclose(y, expected[:, group], rtol=1e-4, atol=1e-5)


def test_gates_are_part_of_the_coefficients():
    f = SLAF(3)
    slaf_ext.training.gate(f)
    np.testing.assert_array_equal(export.polynomials(f)[0].coeffs, f.coeffs.detach().double().numpy())


@pytest.mark.parametrize("degree", range(3, 11))
def test_ill_conditioned_powers_are_warned_of(degree):
    (p,) = export.polynomials(SLAF(degree, domain=(10, 12), init=[0.0] * degree + [1.0]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        c = p.power_basis()
    loss = np.abs(c) @ 12.0 ** np.arange(degree + 1) * 2.0**-53  # the largest |p| is 1, and the worst x is 12
    assert [f"of degree {degree} on (10.0, 12.0), is ill-conditioned" in str(w.message) for w in caught] == [
        True
    ] * int(loss > 1e-6)
    assert all(f"can move it by {loss:.1g} of" in str(w.message) for w in caught)


def test_no_warning_where_nothing_is_lost():
    export.polynomials(SLAF(12, domain=(-4, 4)))[0].power_basis()
    export.polynomials(SLAF(3, init=[0.0] * 4))[0].power_basis()
    export.polynomials(SLAF(12, domain=(10, 12)))[0].coefficients("openfhe")  # which needs no powers


def test_what_is_exported_is_a_copy():
    f, p, coeffs = exported()
    with torch.no_grad():
        f.coeffs.zero_()
    np.testing.assert_array_equal(p.coeffs, coeffs[0])


def test_beyond_float64():
    tiny = export.Polynomial("f", bases.get("chebyshev"), (-1e40, 1e40), np.array([0.0] * 9 + [1.0]))
    with pytest.raises(ValueError, match=r"a coefficient of 'f' in the basis 'monomial' is beyond float64"):
        tiny.power_basis()  # one would be 2^8 1e-360
    huge = export.Polynomial("f", bases.get("monomial"), None, np.array([0.0, *[1e308] * 4]))
    with pytest.warns(UserWarning, match="is ill-conditioned"):
        huge.power_basis()
    p = export.Polynomial("f", bases.get("chebyshev"), (0.0, 1e-40), np.array([0.0] * 9 + [1.0]))
    with pytest.raises(ValueError, match=r"a coefficient of 'f' in the basis 'monomial' is beyond float64; .* 9"):
        p.power_basis()


@pytest.mark.parametrize(
    ("model", "error", "sentence"),
    [
        (nn.Linear(2, 2), ValueError, "the model holds no SLAF; slaf_ext.convert puts them"),
        ("net", TypeError, "model is a str; it must be a torch.nn.Module"),
        (nn.Sequential(SLAF(1, init=[0.0, math.nan])), ValueError, "the coefficients of '0' hold nan"),
    ],
)
def test_wrong_models(model, error, sentence):
    with pytest.raises(error, match=sentence):
        export.polynomials(model)


def test_wrong_conventions():
    for convention in ("seal", None, ["numpy"]):
        with pytest.raises(ValueError, match=r"convention is .*; it must be one of 'numpy', 'tenseal', 'orion'"):
            exported()[1].coefficients(convention)


@pytest.mark.parametrize("basis", BASES, ids=str)
def test_json_and_back(basis):
    basis = bases.get(basis)
    domain = (-1.0, 1 / 3) if basis.name != "legendre" else None
    net = nn.Sequential(nn.Linear(2, 2), SLAF(4, 2, basis=basis, domain=domain, init="noisy_identity", outside="clamp"))
    before = export.polynomials(net, 1e3 * torch.randn(9, 2))
    text = export.to_json(before)
    (after,) = export.from_json(text)
    (before,) = before
    for name in ("name", "domain", "dim", "outside", "degree", "depth", "ranges"):
        assert getattr(after, name) == getattr(before, name), name
    np.testing.assert_array_equal(after.coeffs, before.coeffs)
    assert after.basis.rows(4) == basis.rows(4)
    assert after.basis.domain == basis.domain
    assert (after.basis is basis) == (basis.name in bases.names())
    np.testing.assert_array_equal(after.power_basis(), before.power_basis())


def test_json_of_a_basis_with_a_known_name(monkeypatch):
    """That differs from the registered one by its window, or by its rows."""
    known = bases.get("chebyshev")
    short = bases.Basis("short", [(1, 0, 0)])
    monkeypatch.setitem(bases._REGISTRY, "short", short)  # bases.register would leave it to other tests
    own = bases.Basis("chebyshev", known.rows(2), (0, 1)), bases.Basis("chebyshev", [(1, 0, 0), (1, 0, 0)])
    for mine in (*own, bases.Basis("short", [(1, 0, 0), (1, 0, 0)])):
        p = export.Polynomial("f", mine, None, np.ones(3))
        (q,) = export.from_json(export.to_json([p]))
        assert q.basis not in (known, short)
        assert (q.basis.domain, q.basis.rows(2)) == (mine.domain, mine.rows(2))


def test_json_is_read_by_others():
    """With what the file holds, in plain Python."""
    f, p, _ = exported(4, basis="legendre")
    (read,) = json.loads(export.to_json([p]))["polynomials"]
    (lo, hi), (first, last), x = read["domain"], read["window"], 1.7
    t, before, phi, total = first + (x - lo) * (last - first) / (hi - lo), 0.0, 1.0, read["coeffs"][0]
    for (a, b, c), coefficient in zip(read["recurrence"], read["coeffs"][1:], strict=True):
        before, phi = phi, (a * t + b) * phi - c * before
        total += coefficient * phi
    assert total == pytest.approx(f(torch.tensor([[x]], dtype=torch.float64)).item())


def test_json_of_infinite_ranges():
    net = nn.Sequential(nn.Linear(1, 1), SLAF(20, basis="monomial", domain=(-1, 1), init=[0.0] * 20 + [1.0]))
    (p,) = export.polynomials(net, torch.full((3, 1), 1e20))
    assert math.inf in p.ranges.outputs
    text = export.to_json([p])
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert export.from_json(text)[0].ranges == p.ranges
    large = dataclasses.replace(p, ranges=dataclasses.replace(p.ranges, largest=math.inf), dim=np.int64(1))
    assert export.from_json(export.to_json([large]))[0].ranges == large.ranges


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t[:-3], "is not what to_json .* writes"),
        (lambda t: t.replace('"version": 1', '"version": 2'), "version 2"),
        (lambda t: t.replace("slaf_ext polynomials", "onnx"), "'onnx'"),
        (lambda t: t.replace('"coeffs": [', '"coeffs": ["a", '), "could not convert"),
        (lambda t: t.replace('"outside": "extrapolate"', '"outside": "wrap"'), "outside of '' is 'wrap'"),
        (lambda t: "[]", "is not what to_json"),
        (lambda t: t.replace('"version": 1', '"version": -5'), "version -5"),
        (lambda t: t.replace('"degree": 5', '"degree": 4'), "degree is 4"),
        (lambda t: t.replace('"dim": 1', '"dim": "x"'), "dim is 'x'"),
        (lambda t: t.replace('"coeffs": [', '"coeffs": [' + "9" * 400 + ", "), "is not what to_json"),
        (lambda t: t.replace('"coeffs": [', '"coeffs": [' + "[" * 10**5), "is not what to_json"),
    ],
)
def test_wrong_json(change, sentence):
    text = export.to_json([exported()[1]])
    with pytest.raises(ValueError, match=sentence):
        export.from_json(change(text))
