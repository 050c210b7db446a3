"""The float64 oracle that every variant is held to before it is timed.

It walks the recurrence and its derivative over the elements in float64, with nothing of the package but the table
of the basis (which the tests hold to numpy.polynomial and scipy.special).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from slaf_ext.bases import Basis

from .cases import Case

# A block of this many elements in float64 stays in a core's cache.
BLOCK = 2**15


def by_group(t: Tensor, case: Case) -> Tensor:
    """t as (groups, elements of the group)."""
    return t.reshape(1, -1) if case.sharing == "layer" else t.movedim(case.dim, 0).reshape(case.groups, -1)


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
    worst = {name: 0.0 for name in outputs}
    scale = {name: 0.0 for name in outputs}

    def note(name: str, got: Tensor, true: Tensor) -> None:
        difference = (got.double() - true).abs().max().item()
        worst[name] = max(worst[name], difference if np.isfinite(difference) else np.inf)
        scale[name] = max(scale[name], true.abs().max().item())

    flat = {
        name: by_group(t, case) for name, t in (("x", x), ("g", grad_output), *outputs.items()) if name != "dcoeffs"
    }
    true_dcoeffs = torch.zeros_like(a)
    step = max(1, BLOCK // len(a))
    for start in range(0, flat["x"].shape[1], step):
        block = {name: t[:, start : start + step] for name, t in flat.items()}
        t, g = block["x"].double(), block["g"].double()
        y, slope = torch.zeros_like(t), torch.zeros_like(t)
        for k, (phi, derivative) in enumerate(_walk(t, basis.table(K - 1))):
            y += a[:, k : k + 1] * phi
            slope += a[:, k : k + 1] * derivative
        if "y" in outputs:
            note("y", block["y"], y)
        if "dx" in outputs:
            note("dx", block["dx"], g * slope)
        if "dcoeffs" in outputs:
            for k, (phi, _) in enumerate(_walk(t, own_coeffs_basis.table(K - 1))):
                true_dcoeffs[:, k] += (g * phi).sum(1)
    if "dcoeffs" in outputs:
        note("dcoeffs", outputs["dcoeffs"].reshape(-1, K), true_dcoeffs)
    return {name: worst[name] / (scale[name] or 1.0) for name in outputs}


def _walk(t: Tensor, table: np.ndarray):
    """(φ_k, φ_k') for k = 0, 1, …"""
    phi, previous = torch.ones_like(t), torch.zeros_like(t)
    slope, previous_slope = torch.zeros_like(t), torch.zeros_like(t)
    yield phi, slope
    for a, b, c in table.tolist():
        factor = a * t + b
        phi, previous, slope, previous_slope = (
            factor * phi - c * previous,
            phi,
            a * phi + factor * slope - c * previous_slope,
            slope,
        )
        yield phi, slope
