"""The ways to compute the activation, and the yardsticks beside them.

Every way takes x and parameters and returns y. All of them compute the same polynomial: a form in powers of x
gets the coefficients converted to powers in float64. Eager forms are written as one would write them for speed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import slaf_ext
from slaf_ext import bases
from slaf_ext.bases import Basis

from .cases import DTYPES, Case

Form = Callable[..., Tensor]


@dataclass(frozen=True)
class Prepared:
    """A variant ready to run: ``forward(x, *params)``. `basis` is that of its coefficients, None for a yardstick."""

    forward: Form
    params: tuple[Tensor, ...] = ()
    basis: Basis | None = None


class Unavailable(Exception):
    """The variant cannot serve this case here; the message says why."""


def coefficients(case: Case) -> np.ndarray:
    """The case's coefficients in its own basis, float64, (K,) or (G, K): falling off, as fitted ones do."""
    K = case.degree + 1
    shape = (K,) if case.sharing == "layer" else (case.groups, K)
    coeffs = np.random.default_rng(1).standard_normal(shape) / np.arange(1, K + 1)
    return torch.tensor(coeffs, dtype=DTYPES[case.dtype]).double().numpy()  # what every variant can represent


def to_monomials(coeffs: np.ndarray, basis: Basis) -> np.ndarray:
    """The same polynomials in powers of x."""
    K = coeffs.shape[-1]
    phi = np.zeros((K, K))
    phi[0, 0] = 1
    for k, (a, b, c) in enumerate(basis.table(K - 1)):
        phi[k + 1, 1:] = a * phi[k, :-1]
        phi[k + 1] += b * phi[k] - (c * phi[k - 1] if k else 0)
    return coeffs @ phi


def columns(coeffs: Tensor, x: Tensor, dim: int) -> Sequence[Tensor]:
    """a_0, a_1, …, each shaped to broadcast against x."""
    if coeffs.dim() == 1:
        return coeffs.unbind()
    shape = [1] * x.dim()
    shape[dim] = x.shape[dim]
    rows = coeffs if len(coeffs) == x.shape[dim] else coeffs.repeat_interleave(x.shape[dim] // len(coeffs), dim=0)
    return [column.view(shape) for column in rows.unbind(1)]


def fused(case: Case) -> Form:
    return lambda x, coeffs: slaf_ext.slaf(x, coeffs, case.basis, dim=case.dim)


def naive(case: Case) -> Form:
    return lambda x, coeffs: slaf_ext.reference.naive(x, columns(coeffs, x, case.dim))


def horner(case: Case) -> Form:
    def forward(x: Tensor, coeffs: Tensor) -> Tensor:
        *rest, y = columns(coeffs, x, case.dim)
        if not rest:
            return y.expand_as(x).clone()
        for a in reversed(rest):
            y = y * x + a
        return y

    return forward


def clenshaw(case: Case) -> Form:
    """b_k = a_k + (A_k x + B_k) b_{k+1} − C_{k+1} b_{k+2}, f = b_0; Chebyshev shares its 2x."""
    table = bases.get(case.basis).table(case.degree + 1).tolist()

    def forward(x: Tensor, coeffs: Tensor) -> Tensor:
        *rest, b1 = columns(coeffs, x, case.dim)
        if not rest:
            return b1.expand_as(x).clone()
        b2: Tensor | None = None
        factors: dict[tuple[float, float], Tensor] = {}
        for k in reversed(range(len(rest))):
            a, b, _ = table[k]
            if (a, b) not in factors:
                t = x if a == 1 else a * x
                factors[a, b] = t if b == 0 else t + b
            following = rest[k] + factors[a, b] * b1
            c = table[k + 1][2]
            if b2 is not None and c != 0:
                following = following - (b2 if c == 1 else c * b2)
            b1, b2 = following, b1
        return b1

    return forward


def stacked(case: Case) -> Form:
    def forward(x: Tensor, coeffs: Tensor) -> Tensor:
        phi = slaf_ext.reference.basis_values(x, case.degree, case.basis)
        if coeffs.dim() == 1:
            return phi @ coeffs
        return (phi * torch.stack(list(columns(coeffs, x, case.dim)), dim=-1)).sum(-1)

    return forward


def compiled(form: Callable[[Case], Form], mode: str | None = None) -> Callable[[Case], Form]:
    return lambda case: torch.compile(form(case), mode=mode, dynamic=False, fullgraph=True)


# name: (the form, whether its coefficients are those of powers of x)
POLYNOMIALS: dict[str, tuple[Callable[[Case], Form], bool]] = {
    "fused": (fused, False),
    "naive": (naive, True),
    "stacked": (stacked, False),
    "horner": (horner, True),
    "clenshaw": (clenshaw, False),
    "compiled horner": (compiled(horner), True),
    "compiled clenshaw": (compiled(clenshaw), False),
    "max-autotune horner": (compiled(horner, "max-autotune"), True),
    "max-autotune clenshaw": (compiled(clenshaw, "max-autotune"), False),
}

YARDSTICKS: dict[str, Form] = {
    "clone": torch.clone,
    "relu": torch.relu,
    "gelu": functional.gelu,
}


def names() -> tuple[str, ...]:
    return *POLYNOMIALS, *YARDSTICKS, "prelu", *PEERS


def prepare(name: str, case: Case) -> Prepared:
    """The variant of that name, with its parameters, for `case`.

    Raises:
        Unavailable: it is not installed, or does not serve such a case.
    """
    options = {"dtype": DTYPES[case.dtype], "device": case.device}
    if name in POLYNOMIALS:
        form, powers = POLYNOMIALS[name]
        coeffs = coefficients(case)
        basis = bases.get(case.basis)
        if powers:
            coeffs, basis = to_monomials(coeffs, basis), bases.get("monomial")
        return Prepared(form(case), (torch.tensor(coeffs, **options).requires_grad_(),), basis)
    if name == "prelu":
        if case.sharing == "group" or (case.sharing == "feature" and len(case.shape) != 2):
            raise Unavailable("nn.PReLU has one parameter, or one a channel")
        return Prepared(functional.prelu, (torch.full((case.groups,), 0.25, **options).requires_grad_(),))
    if name in YARDSTICKS:
        return Prepared(YARDSTICKS[name])
    return PEERS[name](case)


def _need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise Unavailable(f"{module} is not installed")


def _torch_activation(case: Case) -> Prepared:
    """torch_activation's SLAF(k): k coefficients of powers of x, one vector a module."""
    _need("torch_activation")
    from torch_activation.adaptive.abu import SLAF

    if case.sharing != "layer":
        raise Unavailable("torch_activation.SLAF has one polynomial a layer")
    module = SLAF(k=case.degree + 1)
    coeffs = to_monomials(coefficients(case), bases.get(case.basis))
    a = torch.tensor(coeffs, dtype=DTYPES[case.dtype], device=case.device).requires_grad_()
    return Prepared(lambda x, a: torch.func.functional_call(module, {"a": a}, x), (a,), bases.get("monomial"))


PEERS: dict[str, Callable[[Case], Prepared]] = {"torch_activation": _torch_activation}
