"""Precision and determinism: how near the sums come, and that their bits never change."""

import pytest
import torch

import slaf_ext
from slaf_ext import bases, reference

HALF = [torch.float16, torch.bfloat16]


def gradients(f, x, coeffs, grad_output, **options):
    x, coeffs = x.detach().requires_grad_(), coeffs.detach().requires_grad_()
    y = f(x, coeffs, **options)
    return (y.detach(), *torch.autograd.grad(y, (x, coeffs), grad_output))


def eager(x, coeffs, basis, dim):
    """The expansion as one would write it, every step rounded to x's dtype; a row of coeffs for each row of x."""
    phi = [torch.ones_like(x)]
    for k, (a, b, c) in enumerate(bases.get(basis).rows(coeffs.shape[1] - 1)):
        phi.append((a * x + b) * phi[-1] - (c * phi[-2] if k else 0))
    return sum(coeffs[:, k, None] * phi[k] for k in range(coeffs.shape[1]))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("degree", [1, 3, 8, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", bases.names())
def test_error_is_below_twice_that_of_the_naive_form(name, degree, dtype):
    lo, hi = bases.get(name).domain
    x = (lo + (hi - lo) * torch.rand(16, 4096, dtype=torch.float64)).to(dtype)
    # Coefficients that keep every term near 1, so that half precision does not overflow.
    size = slaf_ext.basis_values(torch.linspace(lo, hi, 65, dtype=torch.float64), degree, name).abs().amax(0)
    coeffs = (torch.randn(16, degree + 1, dtype=torch.float64) / size.clamp_min(1)).to(dtype)
    grad_output = torch.randn(16, 4096, dtype=torch.float64).to(dtype)
    options = {"basis": name, "dim": 0}
    exact = gradients(reference.slaf, x.double(), coeffs.double(), grad_output.double(), **options)
    ours = gradients(slaf_ext.slaf, x, coeffs, grad_output, **options)
    naive = gradients(eager, x, coeffs, grad_output, **options)
    terms = grad_output.double()[..., None] * slaf_ext.basis_values(x.double(), degree, name)
    eps = torch.finfo(dtype).eps
    # A unit in the last place of the result; of each term, where the result is the sum of many.
    floors = [eps * exact[0].abs().amax(), eps * exact[1].abs().amax(), eps * terms.square().sum(1).sqrt()]
    for got, theirs, truth, floor in zip(ours, naive, exact, floors, strict=True):
        fits = truth.abs() < torch.finfo(dtype).max / 8  # else both overflow
        error = ((got - truth).abs() - floor).clamp_min(0).where(fits, 0)
        naive_error = (theirs - truth).abs().nan_to_num(torch.inf).where(fits, 0)
        assert error.norm() <= 2 * naive_error.norm()


def test_naive_is_what_people_write():
    x, coeffs = torch.randn(100), torch.randn(6)
    torch.testing.assert_close(reference.naive(x, coeffs), slaf_ext.slaf(x, coeffs, "monomial"))


@pytest.mark.parametrize("shape", [(2**24,), (2**14, 2**10)])
def test_coefficient_gradients_of_many_elements(shape):
    """Same-sign fp32 terms, 2^24 of them: one after another they would lose 3 %."""
    groups = 1 if len(shape) == 1 else shape[1]
    x = torch.rand(shape)
    grad_output = torch.rand(shape)
    coeffs = torch.randn(groups, 5) if groups > 1 else torch.randn(5)
    _, _, actual = gradients(slaf_ext.slaf, x, coeffs, grad_output, basis="monomial", dim=-1)
    for k in range(5):
        terms = x.double() ** k * grad_output.double()
        expected = terms.sum(0) if groups > 1 else terms.sum()
        torch.testing.assert_close(actual[..., k].double(), expected, rtol=3e-7, atol=0)


# Rows that end inside a vector or a cache line, more rows than a strip or a tile has, rows and groups that no task
# holds whole, and short rows, taken several at a time, that tasks share.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("degree", [1, 2, 5])
@pytest.mark.parametrize(
    ("shape", "groups"), [((9, 5), 5), ((37, 771), 771), ((203, 48), 16), ((129, 1041), 347), ((4096, 12), 4)]
)
def test_columns(shape, groups, degree, dtype):
    """Every column its own coefficients, or few to a group: none is mixed with its neighbours, and none left out."""
    x = (torch.rand(shape, dtype=torch.float64) * 2 - 1).to(dtype)
    coeffs = torch.randn(groups, degree + 1, dtype=torch.float64).to(dtype)
    grad_output = torch.randn(shape, dtype=torch.float64).to(dtype)
    exact = gradients(reference.slaf, x.double(), coeffs.double(), grad_output.double(), dim=-1)
    actual = gradients(slaf_ext.slaf, x, coeffs, grad_output, dim=-1)
    for got, want in zip(actual, exact, strict=True):
        allowed = 4 * torch.finfo(torch.float32 if dtype in HALF else dtype).eps * (1 + degree) ** 2 * 40
        allowed = allowed + torch.finfo(dtype).eps * want.abs()
        assert ((got - want).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("how", [{}, *({"domain": (-0.5, 1.5), "outside": outside} for outside in reference.OUTSIDE)])
def test_groups_of_every_length(how, dtype):
    """Numbers of few bits have results that are exact but for a rounding: each counts once, in its group alone."""
    for length in (*range(20, 75), 1535, 1537, 16391):
        x = torch.randint(-4, 7, (3, 4, length)).to(dtype) / 2
        coeffs, grad_output = torch.randint(-3, 4, (4, 3)).to(dtype), torch.randint(-2, 3, x.shape).to(dtype)
        x[0, 1, -5] = torch.nan
        exact = gradients(reference.slaf, x.double(), coeffs.double(), grad_output.double(), **how)
        for got, want in zip(gradients(slaf_ext.slaf, x, coeffs, grad_output, **how), exact, strict=True):
            torch.testing.assert_close(got, want.to(dtype), rtol=0, atol=0, equal_nan=True)


SHAPES = {
    "shared": ((100_003,), 0, 1),
    "long groups": ((6, 8, 3001), 8, 1),
    "short groups": ((50, 64, 5), 32, 1),
    "features": ((3001, 96), 96, -1),
}


@pytest.mark.cpu("threads are the CPU's; test_cuda.py has the bits of every run")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_for_any_number_of_threads_and_every_run(shape, dtype):
    size, groups, dim = SHAPES[shape]
    x, grad_output = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
    coeffs = torch.randn((groups, 9) if groups else 9).to(dtype) / 100
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(gradients(slaf_ext.slaf, x, coeffs, grad_output, dim=dim, outside="linear"))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.cpu("its results of that size are written past the caches")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [1, 3, (64,), (50,), (3,), (600,)], ids=str)
def test_large_results_are_those_of_their_parts(dtype, groups):
    """To the bit, of runs and of (columns,), at any alignment and with a remainder."""
    columns = isinstance(groups, tuple)
    groups = groups[0] if columns else groups
    length = 20 * 2**20 // dtype.itemsize // groups // 2 + 5
    shape, along, dim = ((2 * length, groups), 0, -1) if columns else ((2, groups, length), 2, 1)
    full = torch.randn(2 * groups * length + 1).to(dtype)
    coeffs = torch.randn(groups, 6).to(dtype).squeeze(0)
    for offset in (0, 1):
        x = full[offset : offset + 2 * groups * length].view(shape).requires_grad_()
        y = slaf_ext.slaf(x, coeffs, dim=dim)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert y.nbytes > 16 * 2**20
        for part in torch.arange(shape[along]).tensor_split(3):
            at = along, int(part[0]), len(part)
            chosen = x.detach().narrow(*at).clone().requires_grad_()
            small = slaf_ext.slaf(chosen, coeffs, dim=dim)
            assert torch.equal(y.narrow(*at), small)
            (slope,) = torch.autograd.grad(small, chosen, torch.ones_like(small))
            assert torch.equal(dx.narrow(*at), slope)
