"""Polynomial bases as data: each is the table of its three-term recurrence.

Every basis here obeys

    φ_0 = 1,   φ_{k+1}(x) = (A_k x + B_k) φ_k(x) − C_k φ_{k−1}(x),   C_0 = 0

so a basis is a table with a row ``(A_k, B_k, C_k)`` for each k. No kernel knows a basis by name: to add one,
add an entry to the list at the foot of this file, or make a :class:`Basis` at run time.

>>> from slaf_ext import bases
>>> bases.get("legendre").table(2)          # a row (A, B, C) for each degree
array([[1. , 0. , 0. ],
       [1.5, 0. , 0.5]])
>>> mine = bases.Basis("mine", lambda k: (1.0, 0.0, 0.25))  # monic Chebyshev, except for its first step
>>> mine.table(2).shape
(2, 3)

Source of the recurrences: NIST Digital Library of Mathematical Functions, §18.9 and §18.34.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# Far above any practical degree; above it, a table alone would take seconds and gigabytes.
MOST_DEGREE = 10_000

Row = tuple[float, float, float]
Recurrence = Callable[[int], Row] | Sequence[Row] | np.ndarray


@dataclass(frozen=True, eq=False)
class Basis:
    """A polynomial basis: a name, a three-term recurrence and a window.

    Args:
        name: what :func:`repr` and error messages call it.
        recurrence: a function ``k -> (A_k, B_k, C_k)``, for any degree, or a table
            with a row ``(A_k, B_k, C_k)`` for k = 0, 1, …, for degrees up to its length.
            Every A_k must differ from zero, so that φ_k has degree k. C_0 is ignored.
        domain: the interval that the basis is meant for, numpy.polynomial's *window*: an
            operator's ``domain=(lo, hi)`` is mapped affinely onto it.

    Example:
        >>> import torch, slaf_ext
        >>> table = [(1.0, 0.0, 0.0), (2.0, 0.0, 1.0)]     # T_0, T_1, T_2
        >>> mine = slaf_ext.bases.Basis("mine", table, (-1, 1))
        >>> slaf_ext.slaf(torch.tensor([0.5]), torch.tensor([0.0, 0.0, 1.0]), mine)
        tensor([-0.5000])
    """

    name: str
    recurrence: Recurrence
    domain: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "domain", check_interval(self.domain, f"the domain of basis {self.name!r}"))
        if not isinstance(self.name, str):
            raise ValueError(f"the name of a basis is {self.name!r}; it must be a string")
        if not callable(self.recurrence):
            wanted = "give a row (A_k, B_k, C_k) for each k, shape (degree, 3), or a function k -> (A_k, B_k, C_k)"
            try:
                table = np.asarray(self.recurrence, dtype=np.float64)
            except (TypeError, ValueError):
                raise ValueError(
                    f"the recurrence of basis {self.name!r} is {self.recurrence!r}, not a table of numbers; {wanted}"
                ) from None
            if table.size == 0:
                table = table.reshape(0, 3)
            if table.ndim != 2 or table.shape[1] != 3:
                raise ValueError(f"the recurrence table of basis {self.name!r} has shape {table.shape}; {wanted}")
            object.__setattr__(self, "recurrence", tuple(map(tuple, table.tolist())))

    def __repr__(self) -> str:
        return f"Basis({self.name!r})"

    def __reduce__(self):
        # A registered basis is pickled by its name: its recurrence is usually a lambda.
        if registered_name(self) is not self:
            return get, (self.name,)
        return Basis, (self.name, self.recurrence, self.domain)

    def table(self, degree: int) -> np.ndarray:
        """The rows (A_k, B_k, C_k), k = 0 … degree − 1, as a float64 array of shape (degree, 3).

        Raises:
            ValueError: the degree is negative, the basis was made from a table that is too short
                for it, or a row holds a value that is not finite or an A_k that is zero.
        """
        return np.array(self.rows(degree), dtype=np.float64).reshape(-1, 3)

    def rows(self, degree: int) -> list[Row]:
        """The rows of :meth:`table` as tuples, computed in plain Python, which torch.compile can trace."""
        degree = check_degree(degree)
        if callable(self.recurrence):
            rows = [self.recurrence(k) for k in range(degree)]
        elif len(self.recurrence) < degree:
            raise ValueError(
                f"basis {self.name!r} has a recurrence table of length {len(self.recurrence)}, which serves "
                f"degrees up to {len(self.recurrence)}; degree {degree} needs {degree} rows (A_k, B_k, C_k)"
            )
        else:
            rows = list(self.recurrence[:degree])
        checked = []
        for k, given in enumerate(rows):
            try:
                a, b, c = given
                row = float(a), float(b), float(c) if k else 0.0
            except (TypeError, ValueError):
                raise ValueError(
                    f"row {k} of the recurrence of basis {self.name!r} is {given!r}; it must be three numbers (A, B, C)"
                ) from None
            if not all(map(math.isfinite, row)) or row[0] == 0.0:
                raise ValueError(
                    f"row {k} of the recurrence of basis {self.name!r} is (A, B, C) = {row}; "
                    f"all three must be finite and A not zero, so that φ_{k + 1} has degree {k + 1}"
                )
            checked.append(row)
        return checked


@dataclass(frozen=True)
class MappedRecurrence:
    """A basis, a degree and a domain, as the kernels take them.

    ``rows`` is flat, (A_0, B_0, C_0, A_1, …), and is evaluated at x − ``center``: the scale of the
    affine map is folded into A, the middle of the window into B. The middle of the domain is subtracted
    instead of folded, so that a narrow domain far from zero stays exact in float32.
    """

    rows: tuple[float, ...]
    center: float
    lo: float
    hi: float


def mapped(basis: Basis, degree: int, domain: tuple[float, float] | None) -> MappedRecurrence:
    """The recurrence of `basis` with the map from `domain` onto its window folded in."""
    rows = basis.rows(degree)
    if domain is None:
        return MappedRecurrence(tuple(t for row in rows for t in row), 0.0, *basis.domain)
    lo, hi = check_interval(domain, "domain")
    window_lo, window_hi = basis.domain
    width = hi - lo
    scale, middle = (window_hi - window_lo) / width, 0.5 * window_lo + 0.5 * window_hi
    flat = tuple(t for a, b, c in rows for t in (a * scale, b + a * middle, c))
    if not (math.isfinite(width) and all(map(math.isfinite, flat)) and 0.0 not in flat[::3]):
        raise ValueError(
            f"domain is ({lo}, {hi}), of width {width}; float64 does not hold its map onto the window "
            f"({window_lo}, {window_hi}) of basis {basis.name!r}; choose one that is neither so narrow nor so wide"
        )
    return MappedRecurrence(flat, 0.5 * lo + 0.5 * hi, lo, hi)


def check_integer(value: int, what: str, least: int, most: float = math.inf) -> int:
    """`value` as an int, if it is an integer from `least` to `most`; numpy's integers are accepted."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        end = f"from {least} up" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{what} is {value!r}; it must be an integer {end}")
    return int(value)


def check_degree(degree: int) -> int:
    """`degree` as an int, if a table can be made for it."""
    return check_integer(degree, "degree", 0, MOST_DEGREE)


def check_bool(value: bool, what: str) -> bool:
    """`value` as a bool, if it is one; Python would take a string such as "no" for true."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{what} is {value!r}; it must be True or False")
    return bool(value)


def check_real(value: float, what: str, fits: Callable[[float], bool], wanted: str) -> float:
    """`value` as a float, if it is a real number that fits; numpy's, and tensors of one element, are accepted."""
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not fits(number):
        raise ValueError(f"{what} is {value!r}; it must be {wanted}")
    return number


def check_interval(interval: Sequence[float], what: str) -> tuple[float, float]:
    """`interval` as two finite floats lo < hi, if it is such a pair."""
    try:
        lo, hi = interval
        trained = getattr(lo, "requires_grad", False) or getattr(hi, "requires_grad", False)
        lo, hi = (lo, hi) if trained else (float(lo), float(hi))
    except (TypeError, ValueError):
        raise ValueError(f"{what} is {interval!r}; it must be a pair of numbers (lo, hi)") from None
    if trained:
        raise ValueError(f"{what} is {interval!r}, which requires a gradient and would get none; detach its ends")
    if not (lo < hi and math.isfinite(lo) and math.isfinite(hi)):
        raise ValueError(f"{what} is ({lo}, {hi}); it needs finite ends with lo < hi")
    return lo, hi


def registered_name(basis: str | Basis) -> str | Basis:
    """The name of a registered basis, for whoever cannot record the object; any other basis as it is."""
    return basis.name if isinstance(basis, Basis) and _REGISTRY.get(basis.name) is basis else basis


def get(basis: str | Basis) -> Basis:
    """The basis of that name; a :class:`Basis` is returned unchanged.

    Raises:
        ValueError: no basis has that name. The message lists those that exist.

    Example:
        >>> get("hermite_e")
        Basis('hermite_e')
    """
    if isinstance(basis, Basis):
        return basis
    try:
        return _REGISTRY[basis]
    except (KeyError, TypeError):
        raise ValueError(
            f"unknown basis {basis!r}; the named ones are {', '.join(names())}. "
            "For others use bases.jacobi(alpha, beta), bases.gegenbauer(lam) or your own bases.Basis"
        ) from None


def names() -> tuple[str, ...]:
    """The names that :func:`get` knows.

    Example:
        >>> "chebyshev" in names()
        True
    """
    return tuple(_REGISTRY)


def register(basis: Basis) -> Basis:
    """Registers `basis` under its name, and returns it.

    Raises:
        ValueError: another basis has that name.
    """
    if not isinstance(basis, Basis):
        raise ValueError(f"{basis!r} is not a Basis; make one with bases.Basis(name, recurrence)")
    if _REGISTRY.setdefault(basis.name, basis) is not basis:
        raise ValueError(f"a basis named {basis.name!r} is registered already; choose another name")
    return basis


def jacobi(alpha: float, beta: float) -> Basis:
    """Jacobi polynomials P_k^(α, β), orthogonal on [−1, 1] for (1 − x)^α (1 + x)^β.

    Args:
        alpha, beta: both greater than −1.

    Raises:
        ValueError: a parameter is not greater than −1.

    Example:
        >>> jacobi(0.5, -0.5).table(1).tolist()
        [[1.0, 0.5, 0.0]]

    Source: DLMF 18.9.2; the same as scipy.special.eval_jacobi.
    """
    call, wanted = f"jacobi(alpha={alpha!r}, beta={beta!r})", "a finite number greater than -1"
    alpha = check_real(alpha, f"{call}: alpha", lambda t: -1 < t < math.inf, wanted)
    beta = check_real(beta, f"{call}: beta", lambda t: -1 < t < math.inf, wanted)
    return _parametric("jacobi", _jacobi_row, alpha, beta)


def gegenbauer(lam: float) -> Basis:
    """Gegenbauer (ultraspherical) polynomials C_k^(λ), orthogonal on [−1, 1] for (1 − x²)^(λ − 1/2).

    Args:
        lam: greater than −1/2 and not zero (at zero, C_k is zero for every k > 0; use "chebyshev").

    Raises:
        ValueError: `lam` is outside that range.

    Example:
        >>> gegenbauer(1.0).table(2).tolist()      # λ = 1 is Chebyshev U
        [[2.0, 0.0, 0.0], [2.0, 0.0, 1.0]]

    Source: DLMF 18.9.1, table 18.9.1; the same as scipy.special.eval_gegenbauer.
    """
    call, wanted = f"gegenbauer(lam={lam!r})", "a finite number greater than -1/2 and not zero"
    lam = check_real(lam, f"{call}: lam", lambda t: -0.5 < t < math.inf and t != 0, wanted)
    return _parametric("gegenbauer", _gegenbauer_row, lam)


@functools.lru_cache(maxsize=256)
def _parametric(family: str, row: Callable, *parameters: float) -> Basis:
    return Basis(f"{family}({', '.join(map(str, parameters))})", functools.partial(row, *parameters))


def _jacobi_row(alpha: float, beta: float, k: int) -> Row:
    # α + 1 and β + 1 are exact for α and β near −1, where sums of α and β would cancel.
    u = (alpha + 1) + (beta + 1)
    if k == 0:
        return u / 2, (alpha - beta) / 2, 0.0
    t = 2 * (k - 1) + u  # 2k + α + β
    d = 2 * (k + 1) * (k - 1 + u)
    return (
        (t + 1) * (t + 2) / d,
        (t + 1) * (alpha + beta) * (alpha - beta) / (d * t),
        2 * (k + alpha) * (k + beta) * (t + 2) / (d * t),
    )


def _gegenbauer_row(lam: float, k: int) -> Row:
    return 2 * (k + lam) / (k + 1), 0.0, (k - 1 + 2 * lam) / (k + 1)


_REGISTRY: dict[str, Basis] = {}

# name: k -> (A_k, B_k, C_k); C_0 is never used. A new basis is a new entry here.
for _name, _recurrence in {
    "monomial": lambda k: (1, 0, 0),  # x^k
    "taylor": lambda k: (1 / (k + 1), 0, 0),  # x^k / k!
    "chebyshev": lambda k: (2 if k else 1, 0, 1),  # T_k, first kind
    "chebyshev_u": lambda k: (2, 0, 1),  # U_k, second kind
    "chebyshev_v": lambda k: (2, 0 if k else -1, 1),  # V_k, third kind
    "chebyshev_w": lambda k: (2, 0 if k else 1, 1),  # W_k, fourth kind
    "legendre": lambda k: ((2 * k + 1) / (k + 1), 0, k / (k + 1)),  # P_k
    "hermite": lambda k: (2, 0, 2 * k),  # H_k, physicists'
    "hermite_e": lambda k: (1, 0, k),  # He_k, probabilists'
    "hermite_e_normalized": lambda k: (1 / math.sqrt(k + 1), 0, math.sqrt(k / (k + 1))),  # He_k / sqrt(k!)
    "hermite_e_factorial": lambda k: (1 / (k + 1), 0, 1 / (k + 1)),  # He_k / k!
    "fibonacci": lambda k: (1, 0, -1),  # F_{k+1}
}.items():
    register(Basis(_name, _recurrence))
# y_k; its window starts at 0, because for x < 0 φ_k shrinks as k grows, and the recurrence loses digits.
register(Basis("bessel", lambda k: (2 * k + 1, 0 if k else 1, -1), (0.0, 1.0)))
register(Basis("laguerre", lambda k: (-1 / (k + 1), (2 * k + 1) / (k + 1), k / (k + 1)), (0.0, 1.0)))  # L_k
