"""Fitting a polynomial to a function: least squares, Chebyshev interpolation, minimax.

All three compute a Chebyshev series on the domain, in float64, and convert it to the requested basis at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import Chebyshev, chebyshev

from . import bases, series
from .activations import FUNCTIONS
from .bases import Basis

METHODS = ("lstsq", "interpolate", "minimax")
MOST_DEGREE = 1000  # half of the quadrature points


@dataclass(frozen=True, eq=False)
class Fit:
    """A polynomial that approximates a function on an interval. Call it on numbers or arrays to evaluate it.

    Attributes:
        coeffs: the a_k, float64, low order first, for ``slaf(x, coeffs, basis, domain=domain)``.
        basis, domain: those of the fit; `domain` is None if none was given.
        max_error: max |fn − p| over the domain, found on a dense grid and refined. p is evaluated in the basis in
            float64, so the error includes rounding where the basis is ill-conditioned on the domain.
        max_error_at: the x of that error.
        rms_error: the root mean square of fn − p over the domain, by quadrature.
    """

    coeffs: np.ndarray
    basis: Basis
    domain: tuple[float, float] | None
    max_error: float
    max_error_at: float
    rms_error: float

    def __call__(self, x: np.ndarray | float) -> np.ndarray:
        return series.to_numpy(self.coeffs, self.basis, self.domain)(np.asarray(x, dtype=np.float64))


def fit(
    fn: str | Callable,
    degree: int,
    basis: str | Basis = "chebyshev",
    *,
    domain: tuple[float, float] | None,
    method: str = "lstsq",
    weight: str | Callable[[np.ndarray], np.ndarray] | None = None,
) -> Fit:
    """The polynomial p = Σ_k a_k φ_k of the given degree that approximates `fn` on `domain`.

    Args:
        fn: the name of an activation ("relu", "gelu", "tanh", …; the error for a wrong one lists them), or a function
            of a float64 numpy array or of a float64 tensor, element by element; or of a number, which is slower.
        degree: an integer from 0 up.
        basis: the φ_k. The polynomial is the same in every basis; its coefficients differ.
        domain: the interval of the fit, mapped onto the basis's window as :func:`slaf_ext.slaf` does. None for the
            window itself, without a map.
        method: "lstsq" minimises ∫ weight (fn − p)²; "interpolate" equals fn at the degree + 1 Chebyshev points, where
            the error exceeds the best by at most a logarithmic factor; "minimax" minimises max |fn − p| by Remez's
            exchange, and checks that the error reaches its maximum at degree + 2 points with alternating signs.
        weight: for "lstsq" only. None for uniform; "normal" for exp(−x²/2), for standard normal inputs; or a function
            from an array of x to an array of weights, none of them negative.

    Returns:
        A :class:`Fit` with `coeffs`, `max_error`, `max_error_at` and `rms_error`.

    Raises:
        ValueError: an unknown name, method or weight; a degree or a domain out of range; a function that is not finite
            on the domain or changes the shape of its input.
        RuntimeError: the exchange did not converge to an alternating error, for example because the function returns
            different values for the same x.

    Example:
        >>> from slaf_ext import fit
        >>> best = fit("abs", 2, "monomial", domain=(-1, 1), method="minimax")     # x² + 1/8
        >>> (best.coeffs.round(6) + 0).tolist(), round(best.max_error, 6)
        ([0.125, 0.0, 1.0], 0.125)

    Source: L. N. Trefethen, *Approximation Theory and Approximation Practice*, SIAM 2013, chapters 4 and 10.
    """
    degree = bases.check_integer(degree, "degree", 0, MOST_DEGREE)
    basis = bases.get(basis)
    mapped = bases.mapped(basis, degree, domain)
    interval = mapped.lo, mapped.hi
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(map(repr, METHODS))}")
    if weight is not None and method != "lstsq":
        raise ValueError(f"weight is given and method is {method!r}; only 'lstsq' uses it, leave weight out")
    f = _on_arrays(fn, interval)
    if method == "lstsq":
        p = _least_squares(f, degree, interval, weight)
    elif method == "interpolate":
        p = Chebyshev.interpolate(f, degree, domain=interval)
    else:
        p = _minimax(f, degree, interval)

    coeffs = series.from_chebyshev(p.coef, basis)
    found = series.to_numpy(coeffs, basis, interval)  # p as its rounded coefficients give it
    at, error = _extrema(f, found, _grid(interval))
    worst = int(np.argmax(np.abs(error)))
    x, w = _quadrature(interval)
    rms = float(np.sqrt(w @ (f(x) - found(x)) ** 2 / w.sum()))
    return Fit(
        coeffs,
        basis,
        None if domain is None else interval,
        max_error=float(np.abs(error[worst])),
        max_error_at=float(at[worst]),
        rms_error=rms,
    )


def function(fn: str | Callable) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of that name, on tensors; a callable is returned unchanged."""
    if callable(fn):
        return fn
    if not isinstance(fn, str) or fn not in FUNCTIONS:
        raise ValueError(f"unknown function {fn!r}; the named ones are {', '.join(FUNCTIONS)}. Or pass a callable")
    return FUNCTIONS[fn]


def _on_arrays(fn: str | Callable, interval: tuple[float, float]) -> Callable[[np.ndarray], np.ndarray]:
    call: Callable = function(fn)

    def f(x: np.ndarray) -> np.ndarray:
        with torch.device("cpu"):  # for tensors that fn creates
            y = _call(call, x)
        if y.shape != x.shape:
            raise ValueError(f"fn turns shape {x.shape} into {y.shape}; it must work element by element")
        if not np.isfinite(y).all():
            where = x[~np.isfinite(y)][0]
            raise ValueError(f"fn({where:.6g}) is not finite; choose a domain inside {interval} where fn is finite")
        return y

    return f


def _call(call: Callable, x: np.ndarray) -> np.ndarray:
    """call(x), for a function of arrays, of tensors or of numbers, which may work in place."""
    refusals = (TypeError, AttributeError, ValueError, RuntimeError)
    try:
        return np.asarray(call(x.copy()))
    except refusals:  # torch's functions and methods reject an array
        pass
    try:
        with torch.no_grad():
            return call(torch.from_numpy(x.copy())).numpy()
    except refusals as error:
        try:
            return np.array([float(call(number)) for number in x.ravel().tolist()]).reshape(x.shape)
        except refusals:
            raise error from None


def _quadrature(interval: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on 128 panels. One panel ends at 0, where most activations have their kink."""
    edges = np.linspace(*interval, 129)
    if interval[0] < 0 < interval[1]:
        edges = np.union1d(edges, 0.0)
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = 0.5 * np.diff(edges)[:, None]
    middle = 0.5 * (edges[1:] + edges[:-1])[:, None]
    return (middle + half * nodes).ravel(), (half * weights).ravel()


def _least_squares(f: Callable, degree: int, interval: tuple[float, float], weight) -> Chebyshev:
    x, w = _quadrature(interval)
    if isinstance(weight, str):
        if weight != "normal":
            raise ValueError(f"weight is {weight!r}; it must be None, 'normal' or a function of x")
        w = w * np.exp(-0.5 * x**2)
    elif weight is not None:
        if not callable(weight):
            raise ValueError(f"weight is {weight!r}; it must be None, 'normal' or a function of x")
        density = np.asarray(weight(x), dtype=np.float64)
        if density.shape != x.shape or not (density >= 0).all() or not density.any():
            raise ValueError("weight(x) must give a number from 0 up for every x, and not zero everywhere")
        w = w * density
    return Chebyshev.fit(x, f(x), degree, domain=interval, w=np.sqrt(w))


def _grid(interval: tuple[float, float], size: int = 4096) -> np.ndarray:
    """Points that cluster at the ends, as the extrema of the error do, and 0."""
    lo, hi = interval
    x = 0.5 * (lo + hi) - 0.5 * (hi - lo) * np.cos(np.linspace(0, np.pi, size + 1))
    x[[0, -1]] = lo, hi
    return np.union1d(x, 0.0) if lo < 0 < hi else x


def _extrema(f: Callable, p: Callable, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest |f − p| in every interval of constant sign: its x, and the signed error there."""
    error = f(x) - p(x)
    starts = np.flatnonzero(np.diff(error >= 0)) + 1
    peaks = np.array([run[np.argmax(np.abs(error[run]))] for run in np.split(np.arange(x.size), starts)])
    at, height = x[peaks], error[peaks]
    left, right = x[np.maximum(peaks - 1, 0)], x[np.minimum(peaks + 1, x.size - 1)]
    for _ in range(5):  # each step narrows the bracket 16-fold; the last ones reach rounding
        fine = np.linspace(left, right, 33)
        values = np.sign(height) * (f(fine.ravel()) - p(fine.ravel())).reshape(fine.shape)
        best = np.argmax(values, axis=0)
        columns = np.arange(peaks.size)
        better = values[best, columns] > np.abs(height)
        at = np.where(better, fine[best, columns], at)
        height = np.where(better, np.sign(height) * values[best, columns], height)
        left, right = fine[np.maximum(best - 1, 0), columns], fine[np.minimum(best + 1, 32), columns]
    return at, height


def _minimax(f: Callable, degree: int, interval: tuple[float, float]) -> Chebyshev:
    """Remez's exchange: p such that f − p has degree + 2 extrema of equal height and alternating signs."""
    lo, hi = interval
    count = degree + 2
    # Slightly asymmetric: on symmetric points an even function has a levelled error of zero, and nothing moves.
    at = 0.5 * (lo + hi) - 0.5 * (hi - lo) * np.cos(np.pi * np.linspace(0, 1, count) ** 1.02)
    grid = _grid(interval, max(4096, 64 * count))
    signs = (-1.0) ** np.arange(count)
    rounding = 1e-14 * max(1.0, float(np.abs(f(grid)).max())) * count
    for _ in range(100):
        t = (2 * at - lo - hi) / (hi - lo)
        *coeffs, level = np.linalg.solve(np.column_stack([chebyshev.chebvander(t, degree), signs]), f(at))
        p = Chebyshev(coeffs, domain=interval)
        candidates, heights = _extrema(f, p, np.union1d(grid, at))
        largest = np.abs(heights).max()
        if largest <= rounding or (len(heights) >= count and largest <= abs(level) * (1 + 1e-9) + rounding):
            return p
        if len(heights) < count:
            break
        at = _alternation(candidates, np.abs(heights), count)
    raise RuntimeError(
        f"the minimax fit of degree {degree} on {interval} did not converge: the error does not alternate at "
        f"{count} points. Does fn return the same values each time? If it does, use method='lstsq', which needs less"
    )


def _alternation(at: np.ndarray, heights: np.ndarray, count: int) -> np.ndarray:
    """Reduces the extrema to `count` that alternate in sign and include the highest."""
    while at.size > count:
        last = at.size - 1
        low = int(np.argmin(heights))
        if at.size == count + 1:  # one end can be dropped alone
            drop = [0 if heights[0] < heights[last] else last]
        elif low in (0, last):
            drop = [low]
        else:  # neighbours are dropped in pairs, the lowest and its lower neighbour
            drop = [low, low - 1 if heights[low - 1] < heights[low + 1] else low + 1]
        at, heights = np.delete(at, drop), np.delete(heights, drop)
    return at
