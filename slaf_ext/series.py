"""Changes of basis: in float64 to numpy.polynomial's series objects and back, and exactly to any other basis.

The first go through Chebyshev series on the domain, which are well conditioned where monomials are not.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.polynomial import Chebyshev, Hermite, HermiteE, Laguerre, Legendre, Polynomial

from . import bases
from .bases import Basis

Series = Polynomial | Chebyshev | Legendre | Hermite | HermiteE | Laguerre

SMALLEST = Fraction(float(np.finfo(np.float64).tiny))  # with all its digits

NUMPY_CLASSES: dict[str, Callable[..., Series]] = {
    "monomial": Polynomial,
    "chebyshev": Chebyshev,
    "legendre": Legendre,
    "hermite": Hermite,
    "hermite_e": HermiteE,
    "laguerre": Laguerre,
}


def to_numpy(coeffs: np.ndarray, basis: str | Basis, domain: tuple[float, float] | None = None) -> Series:
    """Σ_k coeffs[k] φ_k as a numpy.polynomial object with that domain.

    A basis that numpy has keeps its class and coefficients; any other becomes an equal `numpy.polynomial.Chebyshev`.

    Example:
        >>> import numpy as np
        >>> to_numpy(np.array([0.0, 0.0, 2.0]), "taylor")(3.0)      # 2 · x² / 2!
        np.float64(9.0)
    """
    basis = bases.get(basis)
    interval = basis.domain if domain is None else bases.check_interval(domain, "domain")
    coeffs = np.asarray(coeffs, dtype=np.float64)
    cls = NUMPY_CLASSES.get(basis.name)
    if cls is not None and bases.get(basis.name) is basis:
        return cls(coeffs, domain=interval, window=basis.domain)
    return Chebyshev(chebyshev_matrix(basis, len(coeffs) - 1) @ coeffs, domain=interval)


def from_chebyshev(coeffs: np.ndarray, basis: str | Basis) -> np.ndarray:
    """The a_k with Σ_k a_k φ_k = Σ_k coeffs[k] T_k, where T_k is mapped onto the basis's window.

    Example:
        >>> import numpy as np
        >>> from_chebyshev(np.array([0.0, 0.0, 1.0]), "monomial").tolist()      # T_2 = 2x² − 1
        [-1.0, 0.0, 2.0]
    """
    return np.linalg.solve(chebyshev_matrix(bases.get(basis), len(coeffs) - 1), coeffs)


def chebyshev_matrix(basis: Basis, degree: int) -> np.ndarray:
    """Column k is φ_k as a Chebyshev series on the basis's window; upper triangular, by the recurrence."""
    x = Chebyshev.identity(domain=basis.domain)
    phi = [Chebyshev([0.0], domain=basis.domain), Chebyshev([1.0], domain=basis.domain)]
    for a, b, c in basis.table(degree):
        phi.append((a * x + b) * phi[-1] - c * phi[-2])
    matrix = np.zeros((degree + 1, degree + 1))
    for k, series in enumerate(phi[1:]):
        # numpy may trim or append zeros, but no coefficient above the degree is other than 0.
        matrix[: min(k, len(series.coef) - 1) + 1, k] = series.coef[: k + 1]
    return matrix


def window_map(basis: Basis, domain: tuple[float, float] | None) -> tuple[Fraction, Fraction]:
    """(s, m) of the map t = s x + m from the domain onto the basis's window, exactly."""
    if domain is None:
        return Fraction(1), Fraction(0)
    lo, hi, first, last = map(Fraction, (*domain, *basis.domain))
    scale = (last - first) / (hi - lo)
    return scale, first - scale * lo


def change_of_basis(degree: int, basis: Basis, target: Basis, scale: Fraction, shift: Fraction) -> list[list[Fraction]]:
    """The rows b_k, exactly, with φ_k(scale u + shift) = Σ_j b_kj ψ_j(u) for the φ of `basis` and the ψ of `target`.

    Example:
        >>> chebyshev, monomial = bases.get("chebyshev"), bases.get("monomial")
        >>> rows = change_of_basis(2, chebyshev, monomial, Fraction(1), Fraction(-1))
        >>> [int(t) for t in rows[2]]       # 2 (u − 1)² − 1
        [1, -4, 2]
    """
    own = [tuple(map(Fraction, row)) for row in target.rows(degree)]

    def times_u(p: list[Fraction]) -> list[Fraction]:
        product = [Fraction(0)] * (len(p) + 1)
        for j, factor in enumerate(p):  # u ψ_j = (ψ_{j+1} − b ψ_j + c ψ_{j−1}) / a
            if factor:
                a, b, c = own[j]
                product[j + 1] += factor / a
                product[j] -= factor * b / a
                if j:
                    product[j - 1] += factor * c / a
        return product

    phi = [[Fraction(1)]]
    for k, (a, b, c) in enumerate(basis.rows(degree)):
        slope, constant = Fraction(a) * scale, Fraction(a) * shift + Fraction(b)
        following = [slope * t for t in times_u(phi[k])]
        for j, t in enumerate(phi[k]):
            following[j] += constant * t
        for j, t in enumerate(phi[k - 1] if k else []):
            following[j] -= Fraction(c) * t
        phi.append(following)
    return phi


def combine(coeffs: np.ndarray, rows: list[list[Fraction]]) -> np.ndarray:
    """Σ_k coeffs[…, k] rows[k], a row for each row of coeffs, rounded once.

    Raises:
        OverflowError: float64 does not hold a result, or not with all its digits.
    """
    flat = np.atleast_2d(coeffs)
    sums = []
    for row in flat.tolist():
        total = [Fraction(0)] * len(rows)
        for a, terms in zip(map(Fraction, row), rows, strict=True):
            for j, t in enumerate(terms):
                total[j] += a * t
        sums.append([float(t) for t in total])
        if any(t and abs(t) < SMALLEST for t in total):
            raise OverflowError("a result is too small for float64")
    return np.array(sums).reshape(coeffs.shape)
