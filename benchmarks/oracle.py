"""The float64 oracle that every variant is held to before it is timed.

It walks the recurrence and its derivative over the elements in float64, with nothing of the package but the table
of the basis (which the tests hold to numpy.polynomial and scipy.special). The normalised form is that walk, torch's
batch_norm and torch's autograd.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from slaf_ext.bases import Basis

from .cases import Case

# A block of this many elements in float64 stays in a core's cache; a GPU wants more of them at once.
BLOCK, GPU_BLOCK = 2**15, 2**24


def by_group(t: Tensor, case: Case) -> Tensor:
    """t as (groups, elements of the group)."""
    return t.reshape(1, -1) if case.sharing == "layer" else t.movedim(case.dim, 0).reshape(case.groups, -1)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """A block is too small to be shared, and on a busy machine the threads would wait for each other at every step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@_one_thread()
def errors(
    case: Case, coeffs: np.ndarray, basis: Basis, x: Tensor, grad_output: Tensor, outputs: dict[str, Tensor],
    own_coeffs_basis: Basis,
) -> dict[str, float]:  # fmt: skip
    """The largest error of y, dx and dcoeffs, each as a fraction of the largest true magnitude.

    Args:
        coeffs, basis: the polynomial, float64.
        outputs: "y", and "dx" and "dcoeffs" where the pass has gradients.
        own_coeffs_basis: the basis in which the variant takes its coefficients, and so gives dcoeffs.
    """
    K = coeffs.shape[-1]
    a = torch.tensor(coeffs, device=x.device).reshape(-1, K)
    worst = Worst()
    flat = _flat(case, x, grad_output, outputs)
    true_dcoeffs = torch.zeros_like(a)
    step = max(1, (GPU_BLOCK if case.on_gpu else BLOCK) // len(a))
    for start in range(0, flat["x"].shape[1], step):
        block = {name: t[:, start : start + step] for name, t in flat.items()}
        t, g = block["x"].double(), block["g"].double()
        y, slope = torch.zeros_like(t), torch.zeros_like(t)
        for k, (phi, derivative) in enumerate(_walk(t, basis.table(K - 1))):
            y += a[:, k : k + 1] * phi
            slope += a[:, k : k + 1] * derivative
        if "y" in outputs:
            worst.note("y", block["y"], y)
        if "dx" in outputs:
            worst.note("dx", block["dx"], g * slope)
        if "dcoeffs" in outputs:
            for k, phi in enumerate(_values(t, own_coeffs_basis.table(K - 1))):
                true_dcoeffs[:, k] += (g * phi).sum(1)
    if "dcoeffs" in outputs:
        worst.note("dcoeffs", outputs["dcoeffs"].reshape(-1, K), true_dcoeffs)
    return worst.relative()


@_one_thread()
def normalized_errors(
    case: Case, coeffs: np.ndarray, basis: Basis, x: Tensor, grad_output: Tensor, outputs: dict[str, Tensor], eps: float
) -> dict[str, float]:
    """As `errors`, for β + Σ w_k (φ_k(x) − mean) / sqrt(variance + eps), (β, w_1, …) = coeffs, group by group."""
    rows = torch.tensor(coeffs, device=x.device).reshape(-1, coeffs.shape[-1])
    worst = Worst()
    flat = _flat(case, x, grad_output, outputs)
    for i, row in enumerate(rows):
        t, a = flat["x"][i].double().requires_grad_(), row.clone().requires_grad_()
        y = a[0].expand_as(t)
        for w, phi in list(zip(a, _values(t, basis.table(len(a) - 1)), strict=True))[1:]:
            y = y + w * functional.batch_norm(phi.view(1, 1, -1), None, None, training=True, eps=eps).view(-1)
        dx, dcoeffs = torch.autograd.grad(y, (t, a), flat["g"][i].double())
        for name, true in (("y", y.detach()), ("dx", dx), ("dcoeffs", dcoeffs)):
            if name in outputs:
                got = outputs[name].reshape(rows.shape) if name == "dcoeffs" else flat[name]
                worst.note(name, got[i], true)
    return worst.relative()


class Worst:
    """The largest difference seen, and the largest true magnitude, by name."""

    def __init__(self) -> None:
        self.difference: dict[str, float] = {}
        self.scale: dict[str, float] = {}

    def note(self, name: str, got: Tensor, true: Tensor) -> None:
        difference = (got.double() - true).abs().max().item()
        difference = difference if np.isfinite(difference) else np.inf
        self.difference[name] = max(self.difference.get(name, 0.0), difference)
        self.scale[name] = max(self.scale.get(name, 0.0), true.abs().max().item())

    def relative(self) -> dict[str, float]:
        return {name: difference / (self.scale[name] or 1.0) for name, difference in self.difference.items()}


def _flat(case: Case, x: Tensor, grad_output: Tensor, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {"x": x.detach(), "g": grad_output, **outputs}
    return {name: by_group(t, case) for name, t in named.items() if name != "dcoeffs"}


def _values(t: Tensor, table: np.ndarray) -> Iterator[Tensor]:
    """φ_k for k = 0, 1, …"""
    phi, previous = torch.ones_like(t), torch.zeros_like(t)
    yield phi
    for a, b, c in table.tolist():
        phi, previous = (a * t + b) * phi - c * previous, phi
        yield phi


def _walk(t: Tensor, table: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """(φ_k, φ_k') for k = 0, 1, …"""
    phi, previous = torch.ones_like(t), torch.zeros_like(t)
    slope, previous_slope = torch.zeros_like(t), torch.zeros_like(t)
    yield phi, slope
    for a, b, c in table.tolist():
        factor = a * t + b
        slope, previous_slope = a * phi + factor * slope - c * previous_slope, slope
        phi, previous = factor * phi - c * previous, phi
        yield phi, slope
