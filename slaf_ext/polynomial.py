"""A small dense network with SLAF activations, expanded into one exact polynomial."""

from __future__ import annotations

import itertools
import math
import operator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from . import bases
from .batch_norm import batch_norm_map
from .nn import SLAF, coefficient_rows

if TYPE_CHECKING:
    import sympy


class MultivariatePolynomial:
    """A polynomial in d variables; each monomial has a vector of coefficients, one for each output.

    Attributes:
        exponents: an integer array of shape (T, d), a row for each monomial, ordered by total degree.
        coeffs: a float64 array of shape (T, outputs).
        degree: the largest total degree of a monomial whose coefficients are not all zero.
        terms: a dictionary from exponents, as a tuple, to coefficients, an array of shape (outputs,).

    Called on a tensor of shape (…, d), it returns a float64 tensor of shape (…, outputs), differentiable.
    """

    def __init__(self, exponents: np.ndarray, coeffs: np.ndarray) -> None:
        self.exponents = exponents
        self.coeffs = coeffs

    @property
    def degree(self) -> int:
        return max((sum(e) for e in self.terms), default=0)

    @property
    def terms(self) -> dict[tuple[int, ...], np.ndarray]:
        return {tuple(e.tolist()): c for e, c in zip(self.exponents, self.coeffs, strict=True) if c.any()}

    def __call__(self, x: Tensor) -> Tensor:
        variables = self.exponents.shape[1]
        if x.dim() == 0 or x.shape[-1] != variables:
            raise ValueError(f"x has shape {tuple(x.shape)}; its last dimension must hold the {variables} variables")
        x = x.double()
        monomials = torch.ones((), dtype=x.dtype, device=x.device)
        for i, powers in enumerate(self.exponents.T):
            table = x[..., i : i + 1] ** torch.arange(int(powers.max()) + 1, device=x.device)
            monomials = monomials * table[..., torch.from_numpy(powers).to(x.device)]
        return monomials @ torch.from_numpy(self.coeffs).to(x.device)

    def __repr__(self) -> str:
        terms, variables = self.exponents.shape
        return (
            f"MultivariatePolynomial({variables} variables, degree {self.degree}, {terms} terms, "
            f"{self.coeffs.shape[1]} outputs)"
        )

    def to_sympy(self) -> list[sympy.Expr]:
        """A sympy expression in x0, x1, … for each output.

        Raises:
            ImportError: sympy is not installed.
        """
        try:
            import sympy
        except ImportError as error:
            raise ImportError("to_sympy needs sympy, which is not installed: pip install sympy") from error
        x = sympy.symbols(f"x:{self.exponents.shape[1]}")
        expressions = [sympy.Integer(0)] * self.coeffs.shape[1]
        for exponents, coeffs in self.terms.items():
            monomial = sympy.prod(v**e for v, e in zip(x, exponents, strict=True))
            expressions = [
                s + float(c) * monomial if c else s for s, c in zip(expressions, coeffs.tolist(), strict=True)
            ]
        return expressions


def to_polynomial(model: nn.Module, *, max_terms: int = 20_000) -> MultivariatePolynomial:
    """Expands a dense network whose activations are SLAFs into one polynomial.

    With activations of degrees n_1 … n_L and d inputs, every output is a polynomial of total degree D = Π n_l with at
    most C(d + D, D) monomials. It is expanded in float64: p(x) differs from the network's value by about 1e-15 of the
    sum of the magnitudes of its terms at x. At a high degree that sum may be far larger than p(x), and digits are lost:
    up to nine for two Chebyshev SLAFs of degree 7, whose product is of degree 49.

    Args:
        model: an nn.Sequential, nested to any depth, of nn.Linear, SLAF, nn.BatchNorm1d, nn.Flatten, nn.Identity and
            nn.Dropout; in evaluation mode if it holds a BatchNorm1d, a Dropout or a normalised SLAF. Its input has
            shape (N, d).
        max_terms: the largest C(d + D, D) allowed.

    Returns:
        A :class:`MultivariatePolynomial`.

    Raises:
        ValueError: the expansion would have more terms than `max_terms`; the message names both numbers, and nothing
            has been computed. Or a layer is in training mode, does not fit the layer before it, or is not a polynomial:
            it has another type, or is a SLAF whose `outside` is not "extrapolate".

    Example:
        >>> import torch, slaf_ext
        >>> square = slaf_ext.SLAF(2, basis="monomial", domain=None, init=[0, 0, 1])
        >>> first, last = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 1)
        >>> with torch.no_grad():
        ...     _ = first.weight.copy_(torch.tensor([[1.0, 2.0]])), last.weight.fill_(3.0), last.bias.fill_(1.0)
        >>> p = slaf_ext.to_polynomial(torch.nn.Sequential(first, square, last))      # 3 (x + 2y)² + 1
        >>> {exponents: c.tolist() for exponents, c in p.terms.items()}
        {(0, 0): [1.0], (0, 2): [12.0], (1, 1): [12.0], (2, 0): [3.0]}
        >>> p(torch.tensor([[1.0, 1.0]]))
        tensor([[28.]], dtype=torch.float64)

    Source: the last claim of the abstract of arXiv:1906.09529.
    """
    layers = list(_layers(model))
    variables = next((_width(layer) for layer in layers if _width(layer) is not None), None)
    if variables is None:
        raise ValueError("the model holds no nn.Linear and no nn.BatchNorm1d, so its number of inputs is unknown")
    degrees = [layer.degree for layer in layers if isinstance(layer, SLAF)]
    degree = max(itertools.accumulate(degrees, operator.mul, initial=1))
    digits = (math.lgamma(variables + degree + 1) - math.lgamma(variables + 1) - math.lgamma(degree + 1)) / math.log(10)
    count = f"10^{int(digits)}" if digits > 15 else f"{math.comb(variables + degree, degree):,}"
    bases.check_integer(max_terms, "max_terms", 1)
    if digits > 15 or math.comb(variables + degree, degree) > max_terms:
        raise ValueError(
            f"the polynomial has {variables} variables and degree {degree}, so up to {count} terms; max_terms is "
            f"{max_terms:,}. Use fewer inputs or lower degrees, or raise max_terms"
        )

    monomials = _Monomials(variables, degree)
    units = np.zeros((variables, monomials.count(1)))  # a row for each unit; the inputs are monomials themselves
    units[np.arange(variables), monomials.index(np.eye(variables, dtype=np.int64))] = 1.0
    reached = 1
    for layer in layers:
        width = _width(layer)
        if width not in (None, units.shape[0]):
            raise ValueError(f"{layer} takes {width} inputs and the layer before it gives {units.shape[0]}")
        if isinstance(layer, nn.Linear):
            units = _array(layer.weight) @ units
            if layer.bias is not None:
                units[:, 0] += _array(layer.bias)
        elif isinstance(layer, nn.BatchNorm1d):
            scale, shift = (t.cpu().numpy() for t in batch_norm_map(layer))
            units = units * scale[:, None]
            units[:, 0] += shift
        elif isinstance(layer, SLAF):
            units = _activation(layer, units, reached, monomials)
            reached *= layer.degree
    exponents = monomials.exponents[: units.shape[1]]
    return MultivariatePolynomial(exponents, np.ascontiguousarray(units.T))


class _Monomials:
    """All monomials up to a total degree, ordered by degree, so that those of a lower degree are a prefix."""

    def __init__(self, variables: int, degree: int) -> None:
        self.variables = variables
        rows = np.zeros((1, variables), dtype=np.int64)
        blocks = [rows]
        for _ in range(degree):
            # Each monomial of the next degree is generated once: by multiplying with its last variable.
            last = np.where(rows.any(1), variables - 1 - np.argmax(rows[:, ::-1] > 0, axis=1), 0)
            rows = np.concatenate([rows[last <= i] + np.eye(variables, dtype=np.int64)[i] for i in range(variables)])
            rows = rows[np.lexsort(rows.T[::-1])]
            blocks.append(rows)
        self.exponents = np.concatenate(blocks)
        # A random hash distinguishes exponents in 64 bits, where a positional code would overflow.
        self.weights = np.random.default_rng(0).integers(1, 2**52, size=variables, dtype=np.int64)
        codes = self.exponents @ self.weights
        self.order = np.argsort(codes)
        self.codes = codes[self.order]
        assert (np.diff(self.codes) > 0).all()

    def count(self, degree: int) -> int:
        return math.comb(self.variables + degree, degree)

    def index(self, exponents: np.ndarray) -> np.ndarray:
        return self.order[np.searchsorted(self.codes, exponents @ self.weights)]

    def product(self, p: np.ndarray, p_degree: int, q: np.ndarray, q_degree: int) -> np.ndarray:
        """The products of polynomials, row by row."""
        result = np.zeros((p.shape[0], self.count(p_degree + q_degree)))
        right = self.exponents[: q.shape[1]]
        for i in np.flatnonzero(p.any(0)):
            result[:, self.index(right + self.exponents[i])] += p[:, i : i + 1] * q
        return result


def _layers(model: nn.Module):
    """The layers in order, without those that are the identity in evaluation mode."""
    if isinstance(model, nn.Sequential):
        for child in model:
            yield from _layers(child)
        return
    if isinstance(model, nn.Flatten):
        if (model.start_dim, model.end_dim) != (1, -1):
            raise ValueError(f"{model} is not the flattening of all but the first dimension, start_dim=1, end_dim=-1")
        return
    if isinstance(model, nn.Identity):
        return
    if not isinstance(model, (nn.Linear, nn.BatchNorm1d, nn.Dropout, SLAF)):
        raise ValueError(
            f"{type(model).__name__} is not a polynomial layer that to_polynomial knows; those are Linear, SLAF, "
            "BatchNorm1d, Flatten, Identity, Dropout and Sequential. slaf_ext.convert replaces activations by SLAFs"
        )
    if model.training and not isinstance(model, nn.Linear) and not (isinstance(model, SLAF) and not model.normalize):
        raise ValueError(f"{model} is in training mode, where it is not a fixed function; call model.eval() first")
    if isinstance(model, nn.Dropout):
        return
    if isinstance(model, SLAF) and model.outside != "extrapolate":
        raise ValueError(f"{model} is a polynomial only inside its domain; only outside='extrapolate' can be expanded")
    yield model


def _width(layer: nn.Module) -> int | None:
    """The number of inputs of a layer, or None if it takes any."""
    return layer.in_features if isinstance(layer, nn.Linear) else getattr(layer, "num_features", None)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _activation(layer: SLAF, units: np.ndarray, degree: int, monomials: _Monomials) -> np.ndarray:
    """Σ_k a_k φ_k(p), by the recurrence, for the polynomials p in `units`, all of the given degree."""
    if layer.num_groups > 1 and layer.dim not in (1, -1):
        raise ValueError(
            f"{layer} has its groups along dim {layer.dim}; for input of shape (N, features) it must be 1 or -1"
        )
    if units.shape[0] % layer.num_groups:
        raise ValueError(f"{layer} has {layer.num_groups} groups, which do not divide the {units.shape[0]} units")
    coeffs = np.repeat(coefficient_rows(layer), units.shape[0] // layer.num_groups, axis=0)
    mapped = bases.mapped(layer.basis, layer.degree, layer.domain)
    centred = units.copy()
    centred[:, 0] -= mapped.center
    result = np.zeros((units.shape[0], monomials.count(degree * layer.degree)))
    previous = np.zeros((units.shape[0], 1))
    phi = np.ones((units.shape[0], 1))
    result[:, :1] += coeffs[:, :1]
    for k, (a, b, c) in enumerate(np.reshape(mapped.rows, (-1, 3))):
        factor = a * centred
        factor[:, 0] += b
        following = monomials.product(factor, degree, phi, k * degree)
        following[:, : previous.shape[1]] -= c * previous
        previous, phi = phi, following
        result[:, : phi.shape[1]] += coeffs[:, k + 1 : k + 2] * phi
    return result
