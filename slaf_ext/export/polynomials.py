"""The polynomials of a network, in the terms of whoever evaluates them."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from .. import bases
from ..arguments import OUTSIDE, check_dim, check_model
from ..bases import Basis
from ..convert.ranges import Range, check
from ..nn import SLAF, coefficient_rows
from ..series import change_of_basis, combine, window_map

FORMAT, VERSION = "slaf_ext polynomials", 1
TOLERANCE = 1e-6


class Depth(NamedTuple):
    """The levels of an encrypted evaluation, in which a product with a plaintext coefficient takes one too, as in CKKS.

    Attributes:
        horner: n levels: a_0 + x (a_1 + x (…)).
        powers: ceil(log2 n) + 1: the powers by products of lower ones, then the coefficients.
        bsgs: ceil(log2(n + 1)), the fewest for a polynomial of that degree in general: Paterson–Stockmeyer's division,
            or baby steps and giant steps, with every coefficient multiplied into a factor that has a level to spare.
    """

    horner: int
    powers: int
    bsgs: int


@dataclass(frozen=True, eq=False)
class Polynomial:
    """One SLAF of a network as plain numbers; made by :func:`polynomials`.

    Attributes:
        name: of the module within the network.
        basis: the φ_k.
        domain: (lo, hi), mapped onto the basis's window, or None for no map.
        coeffs: float64, low order first: (K,), or (G, K) with a row for each group. Folded if the SLAF is normalised.
        dim: the dimension of x that the G groups divide.
        outside: what the SLAF does outside its domain. Whoever evaluates the polynomial alone extrapolates.
        ranges: the inputs and outputs on data, if :func:`polynomials` was given some.
    """

    name: str
    basis: Basis
    domain: tuple[float, float] | None
    coeffs: np.ndarray
    dim: int = 1
    outside: str = "extrapolate"
    ranges: Range | None = None

    @property
    def degree(self) -> int:
        return self.coeffs.shape[-1] - 1

    @property
    def interval(self) -> tuple[float, float]:
        """The domain, or without one the basis's window."""
        return self.domain or self.basis.domain

    @property
    def depth(self) -> Depth:
        """The levels for evaluating it at x, once x is mapped onto the window; see :class:`Depth`.

        The map is a level more, unless :func:`fold_batch_norm` has put it into the layer before, or
        :meth:`power_basis` into the coefficients.
        """
        n = self.degree
        return Depth(n, math.ceil(math.log2(n)) + 1 if n else 0, math.ceil(math.log2(n + 1)))

    def power_basis(self) -> np.ndarray:
        """The c_k with Σ_k c_k x^k = p(x), low order first, in the shape of `coeffs`: x needs no map onto a window.

        Computed exactly and rounded once. Warns where powers are ill-conditioned: where this rounding alone can move
        p by more than 1e-6 of its largest magnitude on the domain. An arithmetic of less precision than float64 loses
        more in proportion: multiply by 2^29 for float32.

        Raises:
            ValueError: a c_k is beyond float64.

        Example:
            >>> import slaf_ext
            >>> net = slaf_ext.SLAF(2, domain=(0, 4), init=[0, 0, 1])       # T_2((x − 2) / 2)
            >>> slaf_ext.export.polynomials(net)[0].power_basis()
            array([ 1. , -2. ,  0.5])
        """
        powers = self._in("monomial", None)
        loss = self._loss(powers)
        if not loss <= TOLERANCE:
            warnings.warn(
                f"the polynomial of {self.name!r}, of degree {self.degree} on {self.interval}, is ill-conditioned in "
                f"powers of x: rounding them to float64 can move it by {loss:.1g} of its largest value. Evaluate it in "
                f"the basis {self.basis.name!r}, narrow the domain or lower the degree",
                stacklevel=2,
            )
        return powers

    def coefficients(self, convention: str) -> np.ndarray:
        """The coefficients as a library takes them, in the shape of `coeffs`.

        | convention | what evaluates them | they are |
        |---|---|---|
        | "numpy" | numpy.polynomial.polynomial.polyval | of powers of x, low order first |
        | "tenseal" | TenSEAL's CKKSVector.polyval | the same |
        | "orion" | Orion's nn.Activation | of powers of x, high order first |
        | "openfhe" | OpenFHE's EvalChebyshevSeries, with a, b = `interval` | of T_k, low order first, 2 c_0 for c_0 |

        OpenFHE's EvalPoly takes those of "numpy". The first three warn as :meth:`power_basis` does.

        Raises:
            ValueError: another convention, or a coefficient is beyond float64.

        Example:
            >>> import slaf_ext
            >>> p = slaf_ext.export.polynomials(slaf_ext.SLAF(2, domain=None, init=[0.5, 1, 3]))[0]
            >>> p.coefficients("openfhe"), p.interval
            (array([1., 1., 3.]), (-1.0, 1.0))
            >>> p.coefficients("orion")
            array([ 6. ,  1. , -2.5])

        Source: run in TenSEAL 0.3.18 and OpenFHE 1.6.1, on encrypted inputs; for Orion, its `orion/nn/activation.py`.
        """
        if not isinstance(convention, str) or convention not in CONVENTIONS:
            raise ValueError(f"convention is {convention!r}; it must be one of {', '.join(map(repr, CONVENTIONS))}")
        return CONVENTIONS[convention](self)

    def _in(self, basis: str, domain: tuple[float, float] | None) -> np.ndarray:
        """The coefficients in another basis with that domain."""
        target = bases.get(basis)
        (scale, shift), (own_scale, own_shift) = window_map(self.basis, self.domain), window_map(target, domain)
        ratio = scale / own_scale
        rows = change_of_basis(self.degree, self.basis, target, ratio, shift - ratio * own_shift)
        try:
            return combine(self.coeffs, rows)
        except OverflowError:
            raise ValueError(
                f"a coefficient of {self.name!r} in the basis {basis!r} is beyond float64; its degree is "
                f"{self.degree} and its domain {self.interval}: lower the degree or widen the domain"
            ) from None

    def _loss(self, powers: np.ndarray) -> float:
        """What rounding every c_k moves p by, over the largest |p|, both on the domain; the worst of the groups."""
        x, on_window = np.linspace(*self.interval, 501), np.linspace(-1.0, 1.0, 501)
        series = self._in("chebyshev", self.interval)
        with np.errstate(over="ignore", invalid="ignore"):
            largest = np.abs(np.polynomial.chebyshev.chebval(on_window, series.T)).max(-1)
            terms = np.polynomial.polynomial.polyval(np.abs(x), np.abs(powers).T).max(-1)
            return float(np.max(2.0**-53 * terms / np.maximum(largest, np.finfo(np.float64).tiny)))


CONVENTIONS: dict[str, Callable[[Polynomial], np.ndarray]] = {
    "numpy": Polynomial.power_basis,
    "tenseal": Polynomial.power_basis,
    "orion": lambda p: p.power_basis()[..., ::-1].copy(),
    "openfhe": lambda p: p._in("chebyshev", p.interval) * np.r_[2.0, np.ones(p.degree)],
}


def polynomials(model: nn.Module, data: Tensor | Iterable | None = None) -> list[Polynomial]:
    """The polynomial of every SLAF in a network, as an encrypted or embedded evaluation needs it.

    A normalised SLAF gives the polynomial that it is in evaluation mode. A module that is used twice is listed once.
    SLAFs alone: :func:`check` names what else in a network is no polynomial, and a KANLinear has its own in `weight`.

    Args:
        model: any module.
        data: inputs like those that the network will see: a batch or an iterable of batches, as for
            :func:`slaf_ext.convert`. If given, :func:`check` fills in the `ranges` of each polynomial that ran.

    Returns:
        A list of :class:`Polynomial`, in the order of ``model.named_modules()``.

    Raises:
        TypeError: the model is not an nn.Module.
        ValueError: it holds no SLAF, or a coefficient that is not finite.

    Example:
        >>> import torch, slaf_ext
        >>> nn = torch.nn
        >>> net = nn.Sequential(nn.Linear(2, 3), slaf_ext.SLAF(7, init="silu", outside="extrapolate"))
        >>> (p,) = slaf_ext.export.polynomials(net)
        >>> p.name, p.basis.name, p.domain, p.degree, p.depth
        ('1', 'chebyshev', (-4.0, 4.0), 7, Depth(horner=7, powers=4, bsgs=3))
    """
    check_model(model)
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, SLAF)]
    if not named:
        raise ValueError("the model holds no SLAF; slaf_ext.convert puts them in place of its activations")
    ranges = {each.name: each for each in check(model, data).layers} if data is not None else {}
    found = []
    for name, module in named:
        coeffs = coefficient_rows(module)
        if not np.isfinite(coeffs).all():
            bad = coeffs[~np.isfinite(coeffs)][0]
            raise ValueError(f"the coefficients of {name!r} hold {bad}; a polynomial must be finite")
        coeffs = coeffs[0] if module.num_groups == 1 else coeffs
        found.append(
            Polynomial(name, module.basis, module.domain, coeffs, module.dim, module.outside, ranges.get(name))
        )
    return found


def to_json(polynomials: Iterable[Polynomial]) -> str:
    """Polynomials as JSON, with the rows (A_k, B_k, C_k) of their bases: a reader needs nothing of this package.

    Example:
        >>> import slaf_ext
        >>> text = to_json(slaf_ext.export.polynomials(slaf_ext.SLAF(1, domain=None, init="identity")))
        >>> print(text)
        {
         "format": "slaf_ext polynomials",
         "version": 1,
         "polynomials": [
          {
           "name": "",
           "basis": "chebyshev",
           "recurrence": [[1.0, 0.0, 0.0]],
           "window": [-1.0, 1.0],
           "domain": null,
           "outside": "extrapolate",
           "dim": 1,
           "degree": 1,
           "depth": {"horner": 1, "powers": 1, "bsgs": 1},
           "coeffs": [0.0, 1.0],
           "ranges": null
          }
         ]
        }
    """
    entries = []
    for p in polynomials:
        fields = {
            "name": p.name,
            "basis": p.basis.name,
            "recurrence": p.basis.rows(p.degree),
            "window": p.basis.domain,
            "domain": None if p.domain is None else [*map(float, p.domain)],
            "outside": p.outside,
            "dim": int(p.dim),
            "degree": p.degree,
            "depth": p.depth._asdict(),
            "coeffs": p.coeffs.tolist(),
            "ranges": None if p.ranges is None else p.ranges.as_dict(),
        }
        # A line for each field: coefficients of hundreds of groups would take thousands.
        lines = (
            f"   {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
            for key, value in fields.items()
        )
        entries.append("  {\n" + ",\n".join(lines) + "\n  }")
    head = f' "format": "{FORMAT}",\n "version": {VERSION},\n "polynomials": ['
    return "{\n" + head + "\n" + ",\n".join(entries) + "\n ]\n}"


def from_json(text: str) -> list[Polynomial]:
    """The polynomials that :func:`to_json` wrote, to the bit.

    A basis is the registered one of that name, if its rows are the same, and otherwise a new one with these rows.

    Raises:
        ValueError: the text is not such JSON, or is of a later version.

    Example:
        >>> import slaf_ext
        >>> p = slaf_ext.export.polynomials(slaf_ext.SLAF(3))
        >>> (q,) = from_json(to_json(p))
        >>> q.basis is p[0].basis, (q.coeffs == p[0].coeffs).all()
        (True, np.True_)
    """
    try:
        read = json.loads(text)
        if read["format"] != FORMAT or not 1 <= read["version"] <= VERSION:
            raise ValueError(f"it is {read['format']!r}, version {read['version']}")
        return [_from_dict(each) for each in read["polynomials"]]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"the text is not what to_json of this version of slaf_ext writes, {FORMAT!r}, version {VERSION}: {error!r}"
        ) from error


def _from_dict(fields: dict[str, Any]) -> Polynomial:
    coeffs = np.array(fields["coeffs"], dtype=np.float64)
    if coeffs.ndim not in (1, 2) or coeffs.size == 0 or not np.isfinite(coeffs).all():
        raise ValueError(f"coeffs of {fields['name']!r} are of shape {coeffs.shape}, or not finite")
    degree = bases.check_integer(fields["degree"], "degree", coeffs.shape[-1] - 1, coeffs.shape[-1] - 1)
    basis = Basis(fields["basis"], fields["recurrence"], tuple(fields["window"]))
    rows = basis.rows(degree)
    if basis.name in bases.names():
        known = bases.get(basis.name)
        is_long_enough = callable(known.recurrence) or len(known.recurrence) >= degree
        if is_long_enough and known.domain == basis.domain and known.rows(degree) == rows:
            basis = known
    domain = None if fields["domain"] is None else bases.check_interval(fields["domain"], "domain")
    if fields["outside"] not in OUTSIDE:
        raise ValueError(f"outside of {fields['name']!r} is {fields['outside']!r}")
    ranges = None if fields["ranges"] is None else Range.from_dict(fields["ranges"])
    return Polynomial(str(fields["name"]), basis, domain, coeffs, check_dim(fields["dim"]), fields["outside"], ranges)
