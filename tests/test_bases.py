"""Bases: their values against independent software, their tables, and what a new one takes."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import oracles
import pytest
import scipy.special as sp
import torch
from oracles import direct

import slaf_ext
from slaf_ext import _C, bases

DEGREES = [0, 1, 2, 3, 5, 8, 12, 17, 24, 32]


def points(basis):
    """Inside the window, at its edges, at its middle, at both zeros, and outside."""
    lo, hi = bases.get(basis).domain
    x = np.concatenate([np.linspace(lo, hi, 41), [0.0, -0.0, lo - 0.25, hi + 0.25, lo - 1.0, hi + 1.0]])
    # Below 0 the Bessel polynomials shrink as k grows: there the recurrence itself is ill-conditioned.
    return x[x >= 0] if basis == "bessel" else x


def assert_close(actual, expected, scale, tolerance=1e-12):
    """Within `tolerance` of the largest value that takes part, `scale`: near a zero no relative error is small."""
    error = np.abs(np.asarray(actual) - expected) / scale
    assert np.all(error <= tolerance), f"off by {error.max():.2e} of the scale"


def test_every_basis_of_the_package_has_an_oracle():
    code = "from slaf_ext import bases; print(*bases.names())"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(oracles.ORACLES) == set(names)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("name", bases.names())
def test_values(name, degree):
    x, basis = points(name), bases.get(name)
    expected = oracles.values(basis, degree, x)
    vander = np.stack([np.abs(oracles.values(basis, k, x)) for k in range(degree + 1)])
    one = torch.zeros(degree + 1, dtype=torch.float64)
    one[degree] = 1
    kernel = slaf_ext.slaf(torch.from_numpy(x), one, name).numpy()
    reference = slaf_ext.reference.slaf(torch.from_numpy(x), one, name).numpy()
    values = slaf_ext.basis_values(torch.from_numpy(x), degree, name)[..., degree].numpy()
    for actual in (kernel, reference, values):
        assert_close(actual, expected, vander.max(axis=0))


@pytest.mark.parametrize("degree", [1, 2, 7, 20])
@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.5, -0.5), (2.0, 3.5), (-0.9, 1.0), (-0.5, -0.5)])
def test_jacobi(alpha, beta, degree):
    x = np.linspace(-1, 1, 33)
    expected = sp.eval_jacobi(degree, alpha, beta, x)
    actual = slaf_ext.basis_values(torch.from_numpy(x), degree, bases.jacobi(alpha, beta))[:, degree].numpy()
    assert_close(actual, expected, np.abs(expected).max())


@pytest.mark.parametrize("degree", [1, 2, 7, 20])
@pytest.mark.parametrize("lam", [0.5, 1.0, 2.25, -0.25])
def test_gegenbauer(lam, degree):
    x = np.linspace(-1, 1, 33)
    expected = sp.eval_gegenbauer(degree, lam, x)
    actual = slaf_ext.basis_values(torch.from_numpy(x), degree, bases.gegenbauer(lam))[:, degree].numpy()
    assert_close(actual, expected, np.abs(expected).max())


@pytest.mark.parametrize("degree", [0, 1, 2, 5, 16, 32, 60])
@pytest.mark.parametrize("seed", range(5))
def test_user_table(seed, degree):
    rng = np.random.default_rng(seed)
    table = rng.uniform(-1, 1, (degree, 3))
    table[:, 0] += np.sign(table[:, 0]) * 0.1
    if seed == 3:
        table[:, 2] = 0  # a product of factors
    coeffs, x = rng.normal(size=degree + 1), rng.uniform(-1.5, 1.5, 257)
    expected = direct(x, coeffs, table)
    mine = bases.Basis("mine", table)
    for f in (slaf_ext.slaf, slaf_ext.reference.slaf):
        actual = f(torch.from_numpy(x), torch.from_numpy(coeffs), mine).numpy()
        assert_close(actual, expected, direct(x, np.abs(coeffs), np.abs(table)).max() + np.abs(expected))


@pytest.mark.parametrize("degree", [1, 2, 5, 16, 40, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*bases.names(), "jacobi"])
def test_derivative_stays_in_the_basis(name, degree):
    """φ_k' = Σ_j D[k, j] φ_j, against exact rational arithmetic on the differentiated recurrence."""
    from fractions import Fraction

    basis = bases.jacobi(0.5, 1.5) if name == "jacobi" else bases.get(name)
    rows = [tuple(map(Fraction, row)) for row in basis.rows(degree)]
    # D by its defining property, solved exactly: x φ_j is in the span of the neighbours of φ_j.
    exact = [[Fraction(0)] * (degree + 1) for _ in range(degree + 1)]
    for k, (a, b, c) in enumerate(rows):
        new = exact[k + 1]
        new[k] += a
        for j in range(k):
            aj, bj, cj = rows[j]
            for i, factor in ((j + 1, 1 / aj), (j, -bj / aj), (j - 1, cj / aj)):
                if i >= 0:
                    new[i] += a * factor * exact[k][j]
            new[j] += b * exact[k][j] - (c * exact[k - 1][j] if k else 0)
    actual = np.array(_C.usable_derivative_matrix([t for row in basis.rows(degree) for t in row], *basis.domain))
    actual = actual.reshape(degree + 1, degree + 1)
    for k in range(degree + 1):
        scale = max(map(abs, exact[k])) or 1
        for j in range(degree + 1):
            assert abs(Fraction(actual[k, j]) - exact[k][j]) <= scale * Fraction(1, 10**12)


PLUGIN = """
from slaf_ext import bases

bases.register(bases.Basis("pell", lambda k: (2.0, 0.1, -1.0 if k > 1 else -2.0), (-1, 1)))
"""


@pytest.mark.slow
def test_a_registered_basis_is_covered_unasked(tmp_path):
    """A new row needs no other line: the tests and the benchmark of every basis are tests and benchmark of it."""
    (tmp_path / "newcomer.py").write_text(PLUGIN)
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    files = [str(root / "tests" / f"test_{name}.py") for name in ("bases", "values", "gradients", "numerics")]
    arguments = ["-q", "-p", "newcomer", "-p", "no:cacheprovider", "-k", "pell", *files]
    run = [sys.executable, "-m", "pytest", *arguments]
    tests = subprocess.run(run, env=environment, cwd=root, capture_output=True, text=True)
    assert tests.returncode == 0, tests.stdout
    assert all(tests.stdout.count(part) == 0 for part in ("failed", "skipped"))
    code = "import newcomer; from benchmarks.__main__ import main; main(['list'])"
    listed = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert "pell" in listed.stdout, listed.stderr


def test_a_name_belongs_to_one_basis(monkeypatch):
    monkeypatch.setattr(bases, "_REGISTRY", dict(bases._REGISTRY))
    mine = bases.register(bases.Basis("lucas", lambda k: (1.0, 0.0, -1.0 if k > 1 else -2.0)))
    assert "lucas" in bases.names()
    assert pickle.loads(pickle.dumps(slaf_ext.SLAF(3, basis="lucas"))).basis is mine
    with pytest.raises(ValueError, match="registered already"):
        bases.register(bases.Basis("lucas", lambda k: (1, 0, 0)))


def test_a_basis_is_copied_and_pickled():
    for basis in (bases.get("legendre"), bases.jacobi(1, 2), bases.Basis("t", [(1, 2, 0), (3, 4, 5)], (0, 2))):
        for again in (copy.deepcopy(basis), pickle.loads(pickle.dumps(basis))):
            assert again.name == basis.name
            assert again.domain == basis.domain
            assert again.rows(2) == basis.rows(2)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: bases.get("chebishev"), r"unknown basis 'chebishev'; .*chebyshev"),
        (lambda: bases.get(3), "unknown basis 3"),
        (lambda: bases.jacobi(-1, 0), r"jacobi\(alpha=-1, beta=0\): .* greater than -1"),
        (lambda: bases.gegenbauer(0), r"gegenbauer\(lam=0\): .* not zero"),
        (lambda: bases.Basis("b", [(1, 2)]), r"shape \(1, 2\); give a row"),
        (lambda: bases.Basis("b", [(1, 0, 0)], (1, 1)), r"domain of basis 'b' is \(1.0, 1.0\); .* lo < hi"),
        (lambda: bases.Basis("b", [(1, 0, 0)]).table(2), "length 1, .* degree 2 needs 2 rows"),
        (lambda: bases.Basis("b", lambda k: (0, 0, 0)).table(1), r"row 0 .* A not zero"),
        (lambda: bases.Basis("b", lambda k: (1, float("nan"), 0)).table(1), "row 0 .* finite"),
        (lambda: bases.get("legendre").table(-1), "degree is -1; .* from 0 to 10000"),
        (lambda: bases.get("legendre").table(2.5), "degree is 2.5"),
        (lambda: bases.get("legendre").table(10**30), "degree is 1000000000000000000000000000000; .* to 10000"),
        (lambda: bases.jacobi("a", 1), r"jacobi\(alpha='a', beta=1\): alpha is 'a'; it must be a finite number"),
        (lambda: bases.jacobi(0, None), "beta is None; it must be a finite number"),
        (lambda: bases.jacobi(0, float("inf")), "beta is inf; it must be a finite number"),
        (lambda: bases.gegenbauer([1]), r"lam is \[1\]; it must be a finite number"),
        (lambda: bases.gegenbauer(float("nan")), "lam is nan; it must be a finite number"),
        (lambda: bases.Basis("b", lambda k: None).table(1), r"row 0 .* is None; it must be three numbers \(A, B, C\)"),
        (lambda: bases.Basis("b", lambda k: (1, 2)).table(1), r"row 0 .* is \(1, 2\); it must be three numbers"),
        (lambda: bases.Basis("b", lambda k: (1, "x", 2)).table(1), "row 0 .* it must be three numbers"),
        (lambda: bases.Basis("b", [(1, 2, 3), (1, 2)]), r"recurrence of basis 'b' is .*; give a row"),
        (lambda: bases.Basis("b", "abc"), "recurrence of basis 'b' is 'abc', not a table of numbers; give a row"),
        (lambda: bases.Basis("b", None), r"recurrence table of basis 'b' has shape \(\); give a row"),
        (lambda: bases.Basis(3, [(1, 0, 0)]), "the name of a basis is 3; it must be a string"),
    ],
)
def test_errors(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def closed_jacobi(n, alpha, beta, x):
    """DLMF 18.5.8, in mpmath."""
    alpha, beta, x = map(mpmath.mpf, (alpha, beta, x))

    def choose(a, k):
        return mpmath.fprod((a - i) / (i + 1) for i in range(k))

    halves = (x - 1) / 2, (x + 1) / 2
    return mpmath.fsum(
        choose(n + alpha, n - s) * choose(n + beta, s) * halves[0] ** s * halves[1] ** (n - s) for s in range(n + 1)
    )


def closed_gegenbauer(n, lam, x):
    """DLMF 18.5.10, in mpmath."""
    lam, x = mpmath.mpf(lam), mpmath.mpf(x)
    return mpmath.fsum(
        (-1) ** k * mpmath.rf(lam, n - k) / mpmath.factorial(k) / mpmath.factorial(n - 2 * k) * (2 * x) ** (n - 2 * k)
        for k in range(n // 2 + 1)
    )


NEAR_THE_ENDS = [
    *((bases.jacobi, closed_jacobi, p) for p in ((-0.999999, -0.999999), (-0.999999999, -0.99999), (-1 + 1e-12, 2.0))),
    *((bases.jacobi, closed_jacobi, p) for p in ((0.3, -0.3), (1e-9, -1e-9), (50.0, -0.99), (1e-300, 1e-300))),
    *((bases.gegenbauer, closed_gegenbauer, (p,)) for p in (-0.4999999, 1e-10, 1e-4, 200.0)),
]


@pytest.mark.parametrize(("make", "closed", "parameters"), NEAR_THE_ENDS)
def test_parameters_near_the_ends_of_their_range(make, closed, parameters):
    """The closed forms, at 50 digits: a sum of parameters that cancels in the recurrence would show."""
    x = np.linspace(-1, 1, 9)
    basis = make(*parameters)
    with mpmath.workdps(50):
        for n in (1, 2, 3, 5, 8, 16):
            coeffs = torch.zeros(n + 1, dtype=torch.float64)
            coeffs[n] = 1
            exact = np.array([float(closed(n, *parameters, float(t))) for t in x])
            actual = slaf_ext.slaf(torch.from_numpy(x), coeffs, basis).numpy()
            np.testing.assert_allclose(actual, exact, rtol=0, atol=5e-14 * np.abs(exact).max())
