"""The ways to compute the activation, and the yardsticks beside them.

Every way takes x and parameters and returns y. All of them compute the same polynomial: a form in powers of x
gets the coefficients converted to powers in float64. Eager forms are written as one would write them for speed.
"""

from __future__ import annotations

import importlib
import importlib.util
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import slaf_ext
from slaf_ext import bases
from slaf_ext.bases import Basis

from .cases import DTYPES, Case

Form = Callable[..., Tensor]
SLAF_EPS, LIGER_EPS = 1e-5, 1e-6


@dataclass(frozen=True)
class Prepared:
    """A variant ready to run: ``forward(x, *params)``.

    Attributes:
        basis: that of its coefficients; None for what computes another function than the case's polynomial.
        normalized: whether it is the normalised form with these coefficients.
        definition: what another function is, in plain PyTorch; None if `forward` is that already.
    """

    forward: Form
    params: tuple[Tensor, ...] = ()
    basis: Basis | None = None
    normalized: bool = False
    definition: Form | None = None

    @property
    def gradients(self) -> tuple[str, ...]:
        """What to call the gradients: in x, and in each of the parameters."""
        several = (f"dparameter{i}" for i in range(len(self.params)))
        return "dx", *(("dcoeffs",) if len(self.params) == 1 else several)


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
    return lambda x, coeffs: slaf_ext.slaf(x, coeffs, case.recurrence, dim=case.dim)


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
    table = bases.get(case.recurrence).table(case.degree + 1).tolist()

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
        phi = slaf_ext.reference.basis_values(x, case.degree, case.recurrence)
        if coeffs.dim() == 1:
            return phi @ coeffs
        return (phi * torch.stack(list(columns(coeffs, x, case.dim)), dim=-1)).sum(-1)

    return forward


def compile_afresh(form: types.FunctionType, mode: str | None = None) -> Form:
    """torch.compile of a copy of `form` whose code is its own.

    By its code dynamo finds what it has compiled, and counts it up to a limit beyond which a function runs eagerly.
    """
    code = form.__code__.replace()
    fresh = types.FunctionType(code, form.__globals__, form.__name__, form.__defaults__, form.__closure__)
    return torch.compile(fresh, mode=mode, dynamic=False, fullgraph=True)


def compiled(form: Callable[[Case], Form], mode: str | None = None) -> Callable[[Case], Form]:
    return lambda case: compile_afresh(form(case), mode)


# Graphs of its own would not be captured in the one that is timed.
AUTOTUNED = "max-autotune-no-cudagraphs"

# name: (the form, whether its coefficients are those of powers of x)
POLYNOMIALS: dict[str, tuple[Callable[[Case], Form], bool]] = {
    "fused": (fused, False),
    "naive": (naive, True),
    "stacked": (stacked, False),
    "horner": (horner, True),
    "clenshaw": (clenshaw, False),
    "compiled horner": (compiled(horner), True),
    "compiled clenshaw": (compiled(clenshaw), False),
    "compiled naive": (compiled(naive), True),
    "autotuned horner": (compiled(horner, AUTOTUNED), True),
    "autotuned clenshaw": (compiled(clenshaw, AUTOTUNED), False),
}

YARDSTICKS: dict[str, Form] = {
    "clone": torch.clone,
    "relu": torch.relu,
    "gelu": functional.gelu,
}


def names() -> tuple[str, ...]:
    return *POLYNOMIALS, *YARDSTICKS, *OTHERS


def prepare(name: str, case: Case) -> Prepared:
    """The variant of that name, with its parameters, for `case`.

    Raises:
        Unavailable: it is not installed, or does not serve such a case.
    """
    options = {"dtype": DTYPES[case.dtype], "device": case.device}
    if name in POLYNOMIALS:
        form, powers = POLYNOMIALS[name]
        coeffs = coefficients(case)
        basis = bases.get(case.recurrence)
        if powers:
            coeffs, basis = to_monomials(coeffs, basis), bases.get("monomial")
        return Prepared(form(case), (torch.tensor(coeffs, **options).requires_grad_(),), basis)
    if name in YARDSTICKS:
        return Prepared(YARDSTICKS[name])
    return OTHERS[name](case)


def _prelu(case: Case) -> Prepared:
    if case.sharing == "group" or (case.sharing == "feature" and len(case.shape) != 2):
        raise Unavailable("nn.PReLU has one parameter, or one a channel")
    slope = torch.full((case.groups,), 0.25, dtype=DTYPES[case.dtype], device=case.device)
    return Prepared(functional.prelu, (slope.requires_grad_(),))


class _InPython(torch.autograd.Function):
    """The cost of a call of such a function: it saves two tensors, and does one relu and one product. No derivative."""

    @staticmethod
    def forward(ctx, x: Tensor, coeffs: Tensor) -> Tensor:
        ctx.save_for_backward(x, coeffs)
        return torch.relu(x)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        x, coeffs = ctx.saved_tensors
        return grad_output * x, coeffs


def _python_function(case: Case) -> Prepared:
    coeffs = torch.tensor(coefficients(case), dtype=DTYPES[case.dtype], device=case.device)
    return Prepared(_InPython.apply, (coeffs.requires_grad_(),))


def _normalized(case: Case) -> Prepared:
    """SLAF(normalize=True) in training, running statistics included."""
    module = slaf_ext.SLAF(
        case.degree, case.groups, basis=case.recurrence, dim=case.dim, domain=None, outside="extrapolate",
        normalize=True, eps=SLAF_EPS, init=torch.tensor(coefficients(case)),
        device=case.device, dtype=DTYPES[case.dtype],
    )  # fmt: skip
    return Prepared(lambda x, _: module(x), (module.coeffs,), bases.get(case.recurrence), normalized=True)


def _batchnorm_relu(case: Case) -> Prepared:
    """nn.BatchNorm2d and relu in training, running statistics included."""
    if len(case.shape) != 4 or case.sharing != "channel":
        raise Unavailable("nn.BatchNorm2d needs images, and normalises each channel")
    module = nn.BatchNorm2d(case.shape[1], device=case.device, dtype=DTYPES[case.dtype])
    with torch.no_grad():  # channels above zero and channels below: at the kink rounding chooses the gradient
        module.bias.copy_(torch.where(torch.arange(case.shape[1]) % 2 == 0, 3.0, -3.0))

    def definition(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        z = (x - mean) / (variance + module.eps).sqrt()
        return (weight.view(-1, 1, 1) * z + bias.view(-1, 1, 1)).clamp(min=0)

    return Prepared(lambda x, *_: torch.relu(module(x)), (module.weight, module.bias), definition=definition)


def _peer(package: str, path: str, root: str | None = None) -> ModuleType:
    """The module at `path`, of a package that need not be there; `root` is its top module, if not named like it."""
    if importlib.util.find_spec(root or package) is None:
        raise Unavailable(f"{package} is not installed")
    try:
        return importlib.import_module(path)
    except Exception as error:
        raise Unavailable(f"{package} does not import here: {type(error).__name__}: {error}") from error


def _torch_activation(case: Case) -> Prepared:
    """torch_activation's SLAF(k): k coefficients of powers of x, one vector a module."""
    peer = _peer("torch_activation", "torch_activation.adaptive.abu")
    if case.sharing != "layer":
        raise Unavailable("torch_activation.SLAF has one polynomial a layer")
    module = peer.SLAF(k=case.degree + 1)
    coeffs = to_monomials(coefficients(case), bases.get(case.recurrence))
    a = torch.tensor(coeffs, dtype=DTYPES[case.dtype], device=case.device).requires_grad_()
    return Prepared(lambda x, a: torch.func.functional_call(module, {"a": a}, x), (a,), bases.get("monomial"))


def _liger_kernel(case: Case) -> Prepared:
    """Liger's PolyNorm: w_0 norm(x³) + w_1 norm(x²) + w_2 norm(x) + b, norm(u) = u / sqrt(mean(u²) + eps) by row."""
    if not case.device.startswith("cuda") and importlib.util.find_spec("liger_kernel"):
        raise Unavailable("Liger's PolyNorm is a Triton kernel, which needs a GPU")
    function = _peer("liger_kernel", "liger_kernel.ops").LigerPolyNormFunction
    if len(case.shape) != 2:
        raise Unavailable("Liger's PolyNorm takes means over rows")
    options = {"dtype": DTYPES[case.dtype], "device": case.device}
    params = torch.full((3,), 1 / 3, **options).requires_grad_(), torch.ones((), **options).requires_grad_()

    def definition(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return b + sum(
            w[3 - k] * x**k * (x ** (2 * k)).mean(-1, keepdim=True).add(LIGER_EPS).rsqrt() for k in (1, 2, 3)
        )

    def forward(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return function.apply(x, w, b, LIGER_EPS, False)  # not in place, which would overwrite grad_output

    return Prepared(forward, params, definition=definition)


def _rational_activations(case: Case) -> Prepared:
    """rational_activations' default, Σ_0^5 a_i x^i / (1 + Σ_1^4 |b_i x^i|), whatever the degree; one a module."""
    peer = _peer("rational_activations", "rational.torch", root="rational")
    if case.sharing != "layer":
        raise Unavailable("rational_activations has one function a layer")
    if case.device != "cpu":
        raise Unavailable("the CUDA kernels of rational_activations are not in its package")
    module = peer.Rational(cuda=False)

    def definition(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return sum(a[i] * x**i for i in range(6)) / (1 + sum((b[i - 1] * x**i).abs() for i in range(1, 5)))

    params = tuple(p.detach().to(DTYPES[case.dtype]).requires_grad_() for p in (module.numerator, module.denominator))
    return Prepared(lambda x, a, b: module.activation_function(x, a, b, True), params, definition=definition)


# What computes another function, needs a package, or takes only some of the cases.
OTHERS: dict[str, Callable[[Case], Prepared]] = {
    "prelu": _prelu,
    "python function": _python_function,
    "normalized": _normalized,
    "batchnorm + relu": _batchnorm_relu,
    "torch_activation": _torch_activation,
    "liger_kernel": _liger_kernel,
    "rational_activations": _rational_activations,
}
