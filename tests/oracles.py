"""Values of the named bases from software that is not ours: numpy.polynomial, scipy.special, mpmath.

A basis that is not among them yet is held to exact arithmetic on its own rows.
"""

import math
from fractions import Fraction

import mpmath
import numpy as np
import scipy.special as sp

# name -> φ_k(x) in float64, for x an array
ORACLES = {
    "monomial": lambda k, x: np.polynomial.polynomial.polyvander(x, k)[..., k],
    "taylor": lambda k, x: np.polynomial.polynomial.polyvander(x, k)[..., k] / math.factorial(k),
    "chebyshev": lambda k, x: np.polynomial.chebyshev.chebvander(x, k)[..., k],
    "chebyshev_u": sp.eval_chebyu,
    # V_k and W_k are Jacobi polynomials with parameters (-1/2, 1/2) and (1/2, -1/2), scaled: DLMF 18.7.5, 18.7.6.
    "chebyshev_v": lambda k, x: sp.eval_jacobi(k, -0.5, 0.5, x) / sp.eval_jacobi(k, -0.5, 0.5, 1.0),
    "chebyshev_w": lambda k, x: (2 * k + 1) * sp.eval_jacobi(k, 0.5, -0.5, x) / sp.eval_jacobi(k, 0.5, -0.5, 1.0),
    "legendre": lambda k, x: np.polynomial.legendre.legvander(x, k)[..., k],
    "hermite": lambda k, x: np.polynomial.hermite.hermvander(x, k)[..., k],
    "hermite_e": lambda k, x: np.polynomial.hermite_e.hermevander(x, k)[..., k],
    "hermite_e_normalized": lambda k, x: (
        np.polynomial.hermite_e.hermevander(x, k)[..., k] / math.sqrt(math.factorial(k))
    ),
    "hermite_e_factorial": lambda k, x: np.polynomial.hermite_e.hermevander(x, k)[..., k] / math.factorial(k),
    "fibonacci": lambda k, x: _by_mpmath(_fibonacci, k, x),
    "bessel": lambda k, x: _by_mpmath(_bessel, k, x),
    "laguerre": lambda k, x: np.polynomial.laguerre.lagvander(x, k)[..., k],
}


def values(basis, k, x):
    """φ_k(x) of a :class:`slaf_ext.bases.Basis`, in float64, by the oracle of its name if there is one."""
    if basis.name in ORACLES:
        return ORACLES[basis.name](k, x)
    return np.array([float(exact(basis.rows(k), Fraction(t))) for t in x])


def exact(rows, x):
    """φ_k(x) from its k rows (A, B, C), for x a Fraction."""
    before, now = Fraction(0), Fraction(1)
    for a, b, c in rows:
        before, now = now, (Fraction(a) * x + Fraction(b)) * now - Fraction(c) * before
    return now


def _by_mpmath(f, k, x):
    with mpmath.workdps(40):
        return np.vectorize(lambda t: float(f(k, mpmath.mpf(t))))(x)


def _fibonacci(k, x):
    """F_{k+1}(x) in closed form, as binomial sums."""
    return mpmath.fsum(mpmath.binomial(k - j, j) * x ** (k - 2 * j) for j in range(k // 2 + 1))


def _bessel(k, x):
    """y_k(x) in closed form."""
    return mpmath.fsum(
        mpmath.factorial(k + j) / (mpmath.factorial(k - j) * mpmath.factorial(j)) * (x / 2) ** j for j in range(k + 1)
    )


def direct(x, coeffs, table):
    """Σ_k coeffs[k] φ_k(x) for a table of rows (A, B, C), one step after another in numpy's float64."""
    x = np.asarray(x, dtype=np.float64)
    previous, current = np.zeros_like(x), np.ones_like(x)
    y = coeffs[0] * current
    for k, (a, b, c) in enumerate(table):
        previous, current = current, (a * x + b) * current - (c * previous if k else 0.0)
        y = y + coeffs[k + 1] * current
    return y
