"""The ways to compute the activation, and the yardsticks beside them.

All polynomial variants compute the same function of the same x: a form in powers of x gets coefficients that were
converted to powers in float64. Eager forms are written as one would write them for speed.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import slaf_ext
from slaf_ext import bases
from slaf_ext.bases import Basis

from .cases import DTYPES, JACOBI, Case

Form = Callable[..., Tensor]
SLAF_EPS = 1e-5


@dataclass(frozen=True)
class Prepared:
    """A variant ready to run: ``forward(x, *params)``."""

    forward: Form
    params: tuple[Tensor, ...] = ()
    basis: Basis | None = None  # of its coefficients; None if it computes another function than the case's polynomial
    normalized: bool = False  # whether it is the normalised form of that polynomial
    definition: Form | None = None  # of another function, in plain PyTorch, unless `forward` is that already

    @property
    def gradients(self) -> tuple[str, ...]:
        """The names of the gradients in x and in each parameter."""
        return "dx", *(["dcoeffs"] if len(self.params) == 1 else [f"dparameter{i}" for i in range(len(self.params))])


class Unavailable(Exception):
    """The variant does not take this case; the message says why."""


def coefficients(case: Case) -> Tensor:
    """The case's coefficients, float64, (K,) or (G, K), which decay as fitted ones do."""
    K = case.degree + 1
    shape = (K,) if case.sharing == "layer" else (case.groups, K)
    coeffs = np.random.default_rng(1).standard_normal(shape) / np.arange(1, K + 1)
    return torch.tensor(coeffs, dtype=DTYPES[case.dtype]).double()  # rounded to what every variant can hold


def to_monomials(coeffs: Tensor, basis: Basis) -> Tensor:
    """The same polynomials in powers of x."""
    K = coeffs.shape[-1]
    phi = np.zeros((K, K))
    phi[0, 0] = 1
    for k, (a, b, c) in enumerate(basis.table(K - 1)):
        phi[k + 1, 1:] = a * phi[k, :-1]
        phi[k + 1] += b * phi[k] - (c * phi[k - 1] if k else 0)
    return coeffs @ torch.tensor(phi)


def columns(coeffs: Tensor, x: Tensor, dim: int) -> Sequence[Tensor]:
    """a_0, a_1, …, each shaped to broadcast against x."""
    if coeffs.dim() == 1:
        return coeffs.unbind()
    shape = [1] * x.dim()
    shape[dim] = x.shape[dim]
    rows = coeffs if len(coeffs) == x.shape[dim] else coeffs.repeat_interleave(x.shape[dim] // len(coeffs), dim=0)
    return [column.view(shape) for column in rows.unbind(1)]


def fused(case: Case) -> Form:
    basis, dim = JACOBI if case.basis == JACOBI.name else case.basis, case.dim
    return lambda x, coeffs: slaf_ext.slaf(x, coeffs, basis, dim=dim)


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
    table = case.recurrence.table(case.degree + 1).tolist()

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


def compile_afresh(form: types.FunctionType, mode: str | None = None) -> Form:
    """torch.compile of a copy of `form` with a code object of its own.

    Dynamo keys its cache by code object, and runs a function eagerly once its cache holds a certain number of graphs.
    """
    code = form.__code__.replace()
    fresh = types.FunctionType(code, form.__globals__, form.__name__, form.__defaults__, form.__closure__)
    return torch.compile(fresh, mode=mode, dynamic=False, fullgraph=True)


def compiled(form: Callable[[Case], Form], mode: str | None = None) -> Callable[[Case], Form]:
    return lambda case: compile_afresh(form(case), mode)


AUTOTUNED = "max-autotune-no-cudagraphs"  # CUDA graphs of its own could not be captured in the one that is timed

# name: (the form, whether its coefficients multiply powers of x)
POLYNOMIALS: dict[str, tuple[Callable[[Case], Form], bool]] = {
    "fused": (fused, False),
    "naive": (naive, True),
    "horner": (horner, True),
    "clenshaw": (clenshaw, False),
    "compiled horner": (compiled(horner), True),
    "compiled clenshaw": (compiled(clenshaw), False),
    "compiled naive": (compiled(naive), True),
    "autotuned horner": (compiled(horner, AUTOTUNED), True),
    "autotuned clenshaw": (compiled(clenshaw, AUTOTUNED), False),
}
YARDSTICKS: dict[str, Form] = {"relu": torch.relu, "gelu": functional.gelu}


def names() -> tuple[str, ...]:
    return *POLYNOMIALS, *YARDSTICKS, *OTHERS


def prepare(name: str, case: Case) -> Prepared:
    """The variant of that name, with its parameters, for `case`."""
    if name in YARDSTICKS:
        return Prepared(YARDSTICKS[name])
    if name in OTHERS:
        return OTHERS[name](case)
    form, in_powers = POLYNOMIALS[name]
    coeffs, basis = coefficients(case), case.recurrence
    if in_powers:
        coeffs, basis = to_monomials(coeffs, basis), bases.get("monomial")
    return Prepared(form(case), (_parameter(coeffs, case),), basis)


def _parameter(values: Tensor, case: Case) -> Tensor:
    return values.to(case.device, DTYPES[case.dtype]).requires_grad_()


def _prelu(case: Case) -> Prepared:
    if case.sharing == "group" or (case.sharing == "feature" and len(case.shape) != 2):
        raise Unavailable("nn.PReLU has one parameter, or one for each channel")
    return Prepared(functional.prelu, (_parameter(torch.full((case.groups,), 0.25), case),))


class _InPython(torch.autograd.Function):
    """The cost of calling such a function: it saves two tensors and does one relu and one product (no derivative)."""

    @staticmethod
    def forward(ctx, x: Tensor, coeffs: Tensor) -> Tensor:
        ctx.save_for_backward(x, coeffs)
        return torch.relu(x)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        x, coeffs = ctx.saved_tensors
        return grad_output * x, coeffs


def _python_function(case: Case) -> Prepared:
    return Prepared(_InPython.apply, (_parameter(coefficients(case), case),))


def _normalized(case: Case) -> Prepared:
    """SLAF(normalize=True) in training, running statistics included."""
    module = slaf_ext.SLAF(
        case.degree, case.groups, basis=case.recurrence, dim=case.dim, domain=None, outside="extrapolate",
        normalize=True, eps=SLAF_EPS, init=coefficients(case), device=case.device, dtype=DTYPES[case.dtype],
    )  # fmt: skip
    return Prepared(lambda x, _: module(x), (module.coeffs,), case.recurrence, normalized=True)


def _batchnorm_relu(case: Case) -> Prepared:
    """nn.BatchNorm2d and relu in training, running statistics included."""
    if len(case.shape) != 4 or case.sharing != "channel":
        raise Unavailable("nn.BatchNorm2d needs images, and normalises each channel")
    module = nn.BatchNorm2d(case.shape[1], device=case.device, dtype=DTYPES[case.dtype])
    with torch.no_grad():  # no value near relu's kink, where rounding would choose the gradient
        module.bias.copy_(torch.where(torch.arange(case.shape[1]) % 2 == 0, 3.0, -3.0))

    def definition(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.relu(functional.batch_norm(x, None, None, weight, bias, training=True))

    return Prepared(lambda x, *_: torch.relu(module(x)), (module.weight, module.bias), definition=definition)


def _edges(case: Case, *sizes: int) -> Tensor:
    """A parameter for a layer of as many outputs as inputs, which keeps their scale."""
    values = np.random.default_rng(1).standard_normal(sizes) / np.sqrt(case.shape[-1] * case.degree)
    return _parameter(torch.tensor(values), case)


def _kan(case: Case) -> Prepared:
    size = case.shape[-1]
    params = _edges(case, size, size, case.degree), _edges(case, size)
    basis = case.recurrence
    return Prepared(
        lambda *t: slaf_ext.kan_linear(*t, basis), params,
        definition=lambda *t: slaf_ext.reference.kan_linear(*t, basis),
    )  # fmt: skip


def _kan_product(case: Case) -> Prepared:
    """nn.Linear on terms that are ready. The gradient of x, on which it does not depend, is a tensor of zeros."""
    size, terms = case.shape[-1], case.shape[-1] * case.degree
    params = _edges(case, *case.shape[:-1], terms), _edges(case, size, terms), _edges(case, size)
    return Prepared(lambda _, *t: functional.linear(*t), params)


def _chebykan(case: Case) -> Prepared:
    """As ChebyKAN is written: T_k(tanh x) = cos(k acos(tanh x)), and einsum."""
    size, K = case.shape[-1], case.degree + 1

    def forward(x: Tensor, coeffs: Tensor) -> Tensor:
        t = torch.tanh(x).view(-1, size, 1).expand(-1, -1, K)
        t = (t.acos() * torch.arange(K, device=x.device)).cos()
        return torch.einsum("bid,iod->bo", t, coeffs)

    return Prepared(forward, (_edges(case, size, size, K),))


# Variants that compute another function, or take only some of the cases.
OTHERS: dict[str, Callable[[Case], Prepared]] = {
    "prelu": _prelu,
    "python function": _python_function,
    "normalized": _normalized,
    "batchnorm + relu": _batchnorm_relu,
    "kan": _kan,
    "kan product": _kan_product,
    "chebykan": _chebykan,
}
