"""The tables of numbers in bases.md and precision.md: `python docs/tables.py` computes and writes them, in two minutes.

The true values are those of sympy's polynomials, whose coefficients are exact, in mpmath's numbers of 200 digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import sympy
import tabulate
import torch
from mpmath import MPContext
from numpy.polynomial import Chebyshev
from sympy import chebyshevu, factorial, hermite_prob

import slaf_ext
from slaf_ext import bases

DEGREES = (4, 8, 16, 32)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
X = sympy.Symbol("x")
POLYNOMIALS: dict[str, Callable[[int], sympy.Expr]] = {
    "monomial": lambda k: X**k,
    "taylor": lambda k: X**k / factorial(k),
    "chebyshev": lambda k: sympy.chebyshevt(k, X),
    "chebyshev_u": lambda k: chebyshevu(k, X),
    "chebyshev_v": lambda k: chebyshevu(k, X) - chebyshevu(k - 1, X),
    "chebyshev_w": lambda k: chebyshevu(k, X) + chebyshevu(k - 1, X),
    "legendre": lambda k: sympy.legendre(k, X),
    "hermite": lambda k: sympy.hermite(k, X),
    "hermite_e": lambda k: hermite_prob(k, X),
    "hermite_e_normalized": lambda k: hermite_prob(k, X) / sympy.sqrt(factorial(k)),
    "hermite_e_factorial": lambda k: hermite_prob(k, X) / factorial(k),
    "fibonacci": lambda k: sympy.fibonacci(k + 1, X),
    "bessel": lambda k: sum(math.comb(k, j) * math.perm(k + j, j) * (X / 2) ** j for j in range(k + 1)),
    "laguerre": lambda k: sympy.laguerre(k, X),
}
MP = MPContext()
MP.dps = 200


def in_powers(name: str, degree: int) -> np.ndarray:
    """Row k holds the coefficients of φ_k in powers of x."""
    rows = np.full((degree + 1, degree + 1), MP.mpf(0))
    for k in range(degree + 1):
        coeffs = sympy.Poly(POLYNOMIALS[name](k), X).all_coeffs()
        rows[k, : k + 1] = [MP.mpf(c.evalf(MP.dps)) for c in reversed(coeffs)]
    return rows


def exact(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The polynomials at x: a column for each row of coefficients."""
    return np.array([[MP.mpf(t) ** m for m in range(rows.shape[1])] for t in x.tolist()]) @ rows.T


def conditions(name: str, inputs: str, degrees: tuple[int, ...] = DEGREES) -> list[float]:
    """The condition number of E φ_j(X) φ_k(X) for each degree, then those with every φ_k scaled to E φ_k(X)² = 1."""
    rows, (lo, hi) = in_powers(name, max(degrees)), map(MP.mpf, bases.get(name).domain)
    moments = {
        "uniform": lambda m: (hi ** (m + 1) - lo ** (m + 1)) / ((m + 1) * (hi - lo)),
        "normal": lambda m: MP.mpf(0 if m % 2 else MP.fac2(m - 1)),
    }
    gram = rows @ np.array([[moments[inputs](i + j) for i in range(len(rows))] for j in range(len(rows))]) @ rows.T
    size = np.array([MP.sqrt(t) for t in gram.diagonal()])
    found = []
    for matrix in (gram, gram / size / size[:, None]):
        for n in degrees:
            values = MP.eigsy(MP.matrix(matrix[: n + 1, : n + 1].tolist()), eigvals_only=True)
            found.append(float(max(values) / min(values)))
    return found


def errors(name: str, dtype: torch.dtype, degrees: tuple[int, ...] = DEGREES) -> Iterator[list[float]]:
    """For each degree the largest error of y, dx and da, in ulps of the largest value of each."""
    random, (lo, hi) = np.random.default_rng(0), bases.get(name).domain
    rows = in_powers(name, max(degrees))
    sizes = np.abs(exact(np.linspace(lo, hi, 65), rows).astype(float)).max(0)
    a = random.standard_normal(max(DEGREES) + 1)[: len(rows)] / np.maximum(sizes, 1)  # no term is much larger than 1
    x, g = random.uniform(lo, hi, 256), random.standard_normal(256)
    x, g, a = (torch.from_numpy(t).to(dtype) for t in (x, g, a))
    phi, slopes = (exact(x.double().numpy(), r) for r in (rows, rows[:, 1:] * np.arange(1, len(rows))))
    seed, coeffs = (np.array([MP.mpf(t) for t in given.tolist()]) for given in (g, a))
    for K in (n + 1 for n in degrees):
        inputs = x.clone().requires_grad_(), a[:K].clone().requires_grad_()
        y = slaf_ext.slaf(*inputs, name)
        got = y.detach(), *torch.autograd.grad(y, inputs, g)
        true = phi[:, :K] @ coeffs[:K], seed * (slopes[:, :K] @ coeffs[:K]), seed @ phi[:, :K]
        yield [in_ulps(t, u) for t, u in zip(got, true, strict=True)]


def in_ulps(got: torch.Tensor, true: np.ndarray) -> float:
    limits, largest = torch.finfo(got.dtype), float(np.abs(true).max())
    if largest > limits.max or not got.isfinite().all():
        return math.nan
    error = max(abs(MP.mpf(t) - u) for t, u in zip(got.tolist(), true, strict=True))
    return float(error) / (limits.eps * 2.0 ** math.floor(math.log2(largest)))


def held(name: str, degrees: tuple[int, ...] = DEGREES) -> list[float]:
    """For each degree the largest error of ReLU's fit in float32, in ulps of its largest value, 4."""
    domain, x, found = (-4.0, 4.0), torch.linspace(-4, 4, 4097), []
    for n in degrees:
        true = Chebyshev(slaf_ext.fit("relu", n, domain=domain).coeffs, domain=domain)(x.double().numpy())
        coeffs = torch.from_numpy(slaf_ext.fit("relu", n, name, domain=domain).coeffs).float()
        y = slaf_ext.slaf(x, coeffs, name, domain=domain)
        found.append(float(np.abs(y.double().numpy() - true).max()) / 2.0**-21)
    return found


def number(t: float) -> str:
    """Two digits, or one and the power of ten; - for what the dtype does not hold."""
    if t < 99.5:
        return f"{t:.1f}" if t < 9.95 else f"{t:.0f}"
    return f"{t:.0e}".replace("e+0", "e").replace("e+", "e") if math.isfinite(t) else "-"


def error_rows() -> list[list[str]]:
    rows = []
    for name in POLYNOMIALS:
        for n, *full, bf16, fp16 in zip(DEGREES, *(errors(name, dtype) for dtype in DTYPES), strict=True):
            worst = (number(float(np.max(found))) for found in (bf16, fp16))
            rows.append([name, str(n), *(", ".join(map(number, found)) for found in full), *worst])
    return rows


def rows_of(numbers: Callable[[str], list[float]]) -> list[list[str]]:
    return [[name, *map(number, numbers(name))] for name in POLYNOMIALS]


GRAM_HEADS = ["basis", *map(str, DEGREES), *(f"{n}*" for n in DEGREES)]
ERROR_HEADS = ["basis", "n", "fp64: y, dx, da", "fp32: y, dx, da", "bf16", "fp16"]
TABLES: dict[str, tuple[str, list[str], Callable[[], list[list[str]]]]] = {
    "uniform": ("bases.md", GRAM_HEADS, lambda: rows_of(lambda name: conditions(name, "uniform"))),
    "normal": ("bases.md", GRAM_HEADS, lambda: rows_of(lambda name: conditions(name, "normal"))),
    "errors": ("precision.md", ERROR_HEADS, error_rows),
    "held": ("precision.md", ["basis", *map(str, DEGREES)], lambda: rows_of(held)),
}

if __name__ == "__main__":
    tabulate.MIN_PADDING = 0
    for name, (page, heads, rows) in TABLES.items():
        path, aligned = Path(__file__).with_name(page), ["left", *["right"] * (len(heads) - 1)]
        table = tabulate.tabulate(rows(), heads, "pipe", disable_numparse=True, colalign=aligned)
        before, begin, rest = path.read_text().partition(f"<!-- begin {name} -->\n")
        _, end, after = rest.partition(f"<!-- end {name} -->")
        path.write_text(f"{before}{begin}\n{table}\n\n{end}{after}")
