"""Changes of basis in float64, to numpy.polynomial's series objects and back.

They go through Chebyshev series on the domain, which are well conditioned where monomials are not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.polynomial import Chebyshev, Hermite, HermiteE, Laguerre, Legendre, Polynomial

from . import bases
from .bases import Basis

Series = Polynomial | Chebyshev | Legendre | Hermite | HermiteE | Laguerre

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
