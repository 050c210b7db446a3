"""Cases for the emulated kernels, and the tolerance for their results."""

import torch

from slaf_ext import bases

from . import Case

EXTRAPOLATE, ZERO, CLAMP, LINEAR = range(4)
# (outer, groups, inner) for each path of the partition, with sizes that leave remainders.
LAYOUTS = {
    "one element": (1, 1, 1),
    "shared": (1, 1, 1037),
    "shared, whole vectors": (1, 1, 2048),
    "runs of whole vectors": (3, 5, 64),
    "runs of odd length": (5, 3, 49),
    "columns": (37, 3, 1),
    "more columns than a block has": (29, 101, 1),
    "columns of 4 to a group": (23, 10, 4),
    "one row of columns": (1, 70, 2),
}


def make(
    layout, degree, basis="chebyshev", dtype=torch.float32, coeffs_dtype=None, domain=None, outside=EXTRAPOLATE, **more
):
    mapped = bases.mapped(bases.get(basis), degree, domain)
    rows = [tuple(mapped.rows[i : i + 3]) for i in range(0, len(mapped.rows), 3)]
    scale = 1.0 if outside == EXTRAPOLATE else 1.6
    x = (mapped.center + (torch.rand(layout, dtype=torch.float64) - 0.5) * (mapped.hi - mapped.lo) * scale).to(dtype)
    coeffs = torch.randn(layout[1], degree + 1, dtype=torch.float64).to(coeffs_dtype or dtype)
    window = {"center": mapped.center, "lo": mapped.lo, "hi": mapped.hi, "outside": outside}
    return Case(x, coeffs, rows, **window, **more), torch.randn(layout, dtype=torch.float64).to(dtype)


def tolerance(case: Case) -> float:
    """A few rounding errors of the type that a case is computed in."""
    return 1e-12 if case.x.dtype == torch.float64 else 4e-6


def spec_of(case: Case) -> tuple:
    return [entry for row in case.rows for entry in row], 1, case.center, case.lo, case.hi, case.outside
