"""The CUDA kernels of KANLinear's panels, emulated on the CPU, beside the CPU kernels."""

import pytest
import torch

from slaf_ext.arguments import spec_of_degree

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outside", ["extrapolate", "clamp", "linear"])
@pytest.mark.parametrize(
    ("rows", "columns", "degree", "multiprocessors"), [(3, 5, 1, 1), (7, 33, 4, 1), (90, 50, 3, 2), (2, 3, 40, 1)]
)
def test_panels(sanitized_emulator, rows, columns, degree, multiprocessors, outside, dtype):
    reach = 1.2 if degree < 40 else 1.0  # float16 would not hold more
    x = ((torch.rand(rows, columns, dtype=torch.float64) * 2 - 1) * reach).to(dtype)
    g = torch.randn(rows, degree, columns, dtype=torch.float64).to(dtype)
    spec = spec_of_degree(degree, "legendre", 0, (-1.0, 1.1), outside)
    terms, grad_x = torch.empty_like(g), torch.empty_like(x)
    torch.ops.slaf_ext.kan_expand(x, spec.packed, terms)
    torch.ops.slaf_ext.kan_contract(x, spec.packed, g, grad_x)
    options = {"multiprocessors": multiprocessors, "threads": 32}
    for got, want in (
        (sanitized_emulator.panel(x, spec, **options), terms),
        (sanitized_emulator.panel(x, spec, g, **options), grad_x),
    ):
        rounding = 4 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps * degree
        rounding += torch.finfo(dtype).eps if dtype.itemsize == 2 else 0
        worst = (got.double() - want.double()).abs().max() / want.double().abs().max()
        assert worst <= rounding
