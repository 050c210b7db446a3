"""Runs every kernel once, on few elements, and checks the values: a program for compute-sanitizer to watch.

Every layout and way to read, aligned and not; degrees with and without a kernel of their own; the plain form with each
edge mode and the normalised one; forward and backward, in float32 and bfloat16. The definition in float64 on the host
tells what is right.

usage: python tests/sanitize.py --device cuda
"""

import argparse
import itertools
import sys

import torch
from torch import Tensor

from slaf_ext import reference, slaf
from slaf_ext.functional import normalized_slaf

# shape, groups, dim, memory format
LAYOUTS = {
    "one row": ((4099,), 1, 0, torch.contiguous_format),
    "channels": ((3, 8, 301), 8, 1, torch.contiguous_format),
    "short channels": ((50, 6, 3), 3, 1, torch.contiguous_format),
    "channels last": ((3, 64, 5, 7), 64, 1, torch.channels_last),
    "odd channels last": ((3, 37, 5, 7), 37, 1, torch.channels_last),
    "features": ((65, 300), 300, -1, torch.contiguous_format),
    "few features": ((700, 6), 3, -1, torch.contiguous_format),
}
DEGREES = (4, 9, 40)
FORMS = (*reference.OUTSIDE, "normalised")
DTYPES = {torch.float32: 3e-5, torch.bfloat16: 1e-4}  # and the rounding of each result
EPS = 1e-3


def placed(tensor: Tensor, offset: int, device: str) -> Tensor:
    """The tensor on the device with the strides that it has, `offset` elements behind an aligned address."""
    memory = torch.empty(offset + tensor.numel(), dtype=tensor.dtype, device=device)
    return memory.as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor)


def results(form: str, x: Tensor, coeffs: Tensor, grad_output: Tensor, dim: int, exact: bool = False) -> list[Tensor]:
    """The value and both gradients, by the kernels or by the definition."""
    leaves = [t.detach().requires_grad_() for t in (x, coeffs)]
    if form != "normalised":
        f = reference.slaf if exact else slaf
        y = f(*leaves, dim=dim, outside=form)
    elif exact:
        y = reference.normalized(*leaves, *reference.spec(coeffs, "chebyshev", dim, None, "extrapolate"), eps=EPS)[0]
    else:
        y = normalized_slaf(*leaves, dim=dim, eps=EPS)[0]
    return [y.detach(), *torch.autograd.grad(y, leaves, grad_output)]


def wrong(layout: str, degree: int, form: str, dtype: torch.dtype, device: str) -> list[str]:
    """What is not as near to the definition as it must be."""
    shape, groups, dim, memory_format = LAYOUTS[layout]
    reach = 1.25 if form in ("clamp", "linear") else 1.0  # beyond the edges ±1, where there are any
    x = (torch.rand(shape) * 2 * reach - reach).to(dtype).to(memory_format=memory_format)
    grad_output = torch.randn(shape).to(dtype).to(memory_format=memory_format)
    coeffs = torch.randn((groups, degree + 1) if groups > 1 else (degree + 1,)).to(dtype)
    right = results(form, *(t.double() for t in (x, coeffs, grad_output)), dim, exact=True)
    found = []
    for offset in (0, 1):
        ours = results(form, placed(x, offset, device), coeffs.to(device), placed(grad_output, offset, device), dim)
        for name, got, want in zip(("y", "dx", "dcoeffs"), ours, right, strict=True):
            allowed = DTYPES[dtype] * (1 + want.abs().max()) + torch.finfo(dtype).eps * want.abs()
            error = (got.cpu().double() - want).abs()
            if not (error <= allowed).all():
                found.append(
                    f"{layout}, degree {degree}, {form}, {dtype}, {offset=}: {name} is off by {error.max():.3g}"
                )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="where the kernels run: cuda (the default) or cpu")
    device = parser.parse_args().device
    torch.manual_seed(0)
    cases = list(itertools.product(LAYOUTS, DEGREES, FORMS, DTYPES))
    found = [sentence for case in cases for sentence in wrong(*case, device)]
    print(*found, f"{len(cases)} cases on {device}, {len(found)} wrong results", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
