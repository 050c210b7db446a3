"""The CUDA kernels of the normalised form, emulated on the CPU, compared with its definition and the CPU operators."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from emulation import Case, Emulator
from emulation.cases import CLAMP, LAYOUTS, make, spec_of, tolerance

from slaf_ext import reference

pytestmark = pytest.mark.slow

NORMALIZED_DEGREES = (0, 1, 2, 4, 7)  # kernels for one degree, for several, and, beyond 5, for any
EPS = 1e-3


def definition(case: Case):
    """The mean, the variance, and the gradients of x and coeffs, from plain PyTorch in float64."""
    x, coeffs = (t.double().requires_grad_() for t in (case.x, case.coeffs))
    y, mean, variance = reference.normalized(x, coeffs, *spec_of(case), eps=EPS)
    gradients = torch.autograd.grad(
        y, (x, coeffs), case.grad_output.double(), allow_unused=True, materialize_grads=True
    )
    return mean.detach(), variance.detach(), *gradients


def normalized_allowed(case: Case, variance, dx, grad_coeffs):
    """Bounds on the rounding errors of dx and dcoeffs, where phi_k / s_k is of size 1 / s_k and its slope k^2 / s_k."""
    weights = case.coeffs[:, 1:].double().abs() / (variance + EPS).sqrt()
    slopes = (weights * torch.arange(1, len(case.rows) + 1) ** 2).sum(1).view(1, -1, 1)
    sizes = case.grad_output.double().abs()
    inverse = (1 / (variance + EPS).sqrt()).amax(1, keepdim=True) if case.rows else torch.ones(len(variance), 1)
    for_x = tolerance(case) * (1 + sizes.max()) * (1 + slopes)
    for_coeffs = tolerance(case) * (1 + sizes.sum((0, 2)).view(-1, 1)) * inverse
    yield for_x + torch.finfo(case.x.dtype).eps * dx.abs()
    yield for_coeffs + torch.finfo(case.coeffs.dtype).eps * grad_coeffs.abs()


def run_and_check_normalized(emulator: Emulator, pairs):
    """Compares moments and gradients of pairs from `make` with the definition and with the CPU operators."""
    cases = [replace(case, grad_output=grad_output) for case, grad_output in pairs]
    wanted = [definition(case) for case in cases]
    moments = emulator.moments([case for case, _ in pairs])
    results = emulator.normalized_backward(cases, [want[:2] for want in wanted], EPS)
    for case, (_, mean, variance), result, want in zip(cases, moments, results, wanted, strict=True):
        where = f"{tuple(case.x.shape)}, degree {len(case.rows)}, {case.x.dtype}"
        cpu_moments = torch.ops.slaf_ext.slaf_moments(case.x, case.coeffs, *spec_of(case))
        for got, cpu, right in zip((mean, variance), cpu_moments, want, strict=False):
            assert ((got - right).abs() <= tolerance(case) * (1 + right.abs())).all(), where
            assert ((got - cpu).abs() <= tolerance(case) * (1 + right.abs())).all(), where
        gradients = (result.out, result.grad_coeffs)
        cpu_gradients = torch.ops.slaf_ext.slaf_normalized_backward(
            case.grad_output, case.x, case.coeffs, *want[:2], *spec_of(case), EPS, True
        )
        allowed = normalized_allowed(case, *want[1:])
        for got, cpu, right, limit in zip(gradients, cpu_gradients, want[2:], allowed, strict=True):
            assert ((got.double() - right).abs() <= limit).all(), where
            assert ((got.double() - cpu.double()).abs() <= 2 * limit).all(), where
    return moments, results


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_normalized_layouts(emulator, layout, dtype):
    run_and_check_normalized(emulator, [make(layout, degree, dtype=dtype) for degree in NORMALIZED_DEGREES])


def test_normalized_bases_edges_alignments_and_grids(emulator):
    pairs = [
        make(LAYOUTS["runs of odd length"], degree, basis, domain=(2.0, 5.0), outside=CLAMP)
        for basis, degree in itertools.product(("legendre", "chebyshev"), (3, 6))
    ]
    for layout, offsets in itertools.product(((1, 1, 515), (2, 3, 64)), ((1, 0, 0), (0, 1, 0), (0, 0, 1))):
        pairs += [make(layout, 3, dtype=dtype, offsets=offsets) for dtype in (torch.float32, torch.float16)]
    for multiprocessors, threads, layout in itertools.product((1, 3), (32, 128), ("shared", "columns")):
        pairs.append(make(LAYOUTS[layout], 4, multiprocessors=multiprocessors, threads=threads))
    pairs += [make((4, 3, 40), 4, dtype=torch.bfloat16, coeffs_dtype=torch.float32)]
    # The factors of 64 columns exceed shared memory at degree 5, and the table of degree 40 needs uploads.
    pairs += [make((3, 64, 1), degree, dtype=torch.float64) for degree in (5, 40)]
    run_and_check_normalized(emulator, pairs)


def test_normalized_launches_and_needs(emulator):
    """The moments take 2 launches and the gradients 3, or 2 without dx, which is then not written."""
    case, grad_output = make((4, 3, 40), 2)
    moments, results = run_and_check_normalized(emulator, [(case, grad_output)])
    assert (moments[0][0], results[0].launches) == (2, 3)
    only_coeffs = replace(case, grad_output=grad_output, need_x=False)
    (result,) = emulator.normalized_backward([only_coeffs], [definition(only_coeffs)[:2]], EPS)
    assert result.launches == 2
    assert (result.out.view(torch.uint8) == 0x7F).all()
    torch.testing.assert_close(result.grad_coeffs, results[0].grad_coeffs, rtol=0, atol=0)


@pytest.mark.parametrize("degree", [3, 6])
@pytest.mark.parametrize("layout", [(1, 1, 20000), (60, 3, 67), (4000, 5, 1)], ids=str)
def test_variance_far_from_zero(emulator, layout, degree):
    """With mean 1e4 and deviation 1, E[phi^2] - E[phi]^2 in fp32 would have no correct digit."""
    x = (torch.randn(layout, dtype=torch.float64) + 1e4).float()
    case = replace(make(layout, degree, "monomial")[0], x=x)
    ((_, mean, variance),) = emulator.moments([case])
    for k in range(1, 4):  # the powers that both degrees have
        phi = x.double().pow(k)
        torch.testing.assert_close(mean[:, k - 1], phi.mean((0, 2)), rtol=1e-6, atol=0)
        torch.testing.assert_close(variance[:, k - 1], phi.var((0, 2), correction=0), rtol=5e-5, atol=0)


@pytest.mark.parametrize("size", [1e-3, 1e5])
@pytest.mark.parametrize("layout", [(1, 1, 5000), (9, 3, 67), (700, 5, 1)], ids=str)
def test_values_whose_squares_overflow(emulator, layout, size):
    """At 1e5 the squares of x^4 and higher powers, and the inverses of their variances, leave the range of fp32."""
    for degree in (2, 4, 6):
        case, grad_output = make(layout, degree, "monomial")
        x = size * torch.randn(layout)
        x[0, 0, 0] = 0  # the first element of the sample
        case = replace(case, x=x, grad_output=grad_output)
        mean, variance, dx, grad_coeffs = definition(case)
        ((_, *moments),) = emulator.moments([case])
        (result,) = emulator.normalized_backward([case], [(mean, variance)], EPS)
        deviation = (variance + EPS).sqrt()
        assert ((moments[0] - mean).abs() <= 1e-6 * deviation).all()
        assert ((moments[1] - variance).abs() <= 1e-5 * (variance + EPS)).all()
        assert ((result.out - dx).abs() <= 1e-5 * dx.abs().amax((0, 2), keepdim=True)).all()
        assert ((result.grad_coeffs - grad_coeffs).abs() <= 1e-4 * (1 + grad_coeffs.abs())).all()


@pytest.mark.parametrize("layout", [(1, 1, 2**18), (2**15, 2, 1)], ids=str)
def test_unlucky_sample(emulator, layout):
    """The first elements, whose mean every block takes as its shift, lie 1e6 deviations from all the others."""
    x = 0.01 * torch.randn(layout, dtype=torch.float32)
    x.view(-1)[: x.numel() // 64] += 1e4
    case = replace(make(layout, 2, "monomial", threads=32)[0], x=x)
    ((_, mean, variance),) = emulator.moments([case])
    for k in (1, 2):
        phi = x.double().pow(k)
        exact = phi.var((0, 2), correction=0)
        assert ((mean[:, k - 1] - phi.mean((0, 2))).abs() <= 1e-5 * exact.sqrt()).all()
        assert ((variance[:, k - 1] - exact).abs() <= 1e-4 * exact).all()


def test_normalized_nan_stays_in_its_group(emulator):
    for layout in ((5, 3, 49), (37, 3, 1)):
        for degree in (2, 6):
            case, grad_output = make(layout, degree)
            case.x[2, 1, 0] = torch.nan
            ((_, mean, variance),) = emulator.moments([case])
            assert mean.isnan().any(1).tolist() == variance.isnan().any(1).tolist() == [False, True, False]
            backward = replace(case, grad_output=grad_output)
            (result,) = emulator.normalized_backward([backward], [(mean, variance)], EPS)
            assert result.out.isnan().any(2).any(0).tolist() == [False, True, False]
            assert result.grad_coeffs.isnan().any(1).tolist() == [False, True, False]


def test_normalized_same_bits(emulator):
    case, grad_output = make((5, 3, 49), 5, multiprocessors=2)
    first, *others = emulator.moments([case] * 3)
    statistics = [first[1:]] * 3
    backward = emulator.normalized_backward([replace(case, grad_output=grad_output)] * 3, statistics, EPS)
    for moments, result in zip(others, backward[1:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(moments[1:], first[1:], strict=True))
        assert torch.equal(result.out, backward[0].out)
        assert torch.equal(result.grad_coeffs, backward[0].grad_coeffs)


def test_sanitized_normalized(sanitized_emulator):
    """Each path of the normalised form runs under both sanitizers."""
    pairs = [make(layout, 2, outside=CLAMP) for layout in LAYOUTS.values()]
    for degree in (3, 6):
        pairs += [make((5, 3, 49), degree), make((37, 3, 1), degree, dtype=torch.float16)]
    pairs.append(make((1, 1, 1037), 3, offsets=(1, 2, 3), threads=32, multiprocessors=4))
    run_and_check_normalized(sanitized_emulator, pairs)


def run_and_check_fold(emulator: Emulator):
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for (groups, degree), dtype in itertools.product(((1, 0), (1, 5), (3, 1), (5, 40), (9, 33)), dtypes):
        coeffs = torch.randn(groups, degree + 1).to(dtype)
        mean, variance = (torch.randn(groups, degree, dtype=torch.float64).exp() for _ in range(2))
        # Statistics of a constant, an overflow, a NaN, and a very large term.
        for k, (mean_k, variance_k) in enumerate(((7.0, 0.0), (1.0, torch.inf), (1.0, torch.nan), (1e150, 1e300))):
            if k < degree:
                mean[k % groups, k], variance[k % groups, k] = mean_k, variance_k
        wanted = reference.fold(coeffs, mean, variance, EPS)
        for in_double, threads in ((True, 64), (False, 32)):
            launches, folded = emulator.fold(coeffs, mean, variance, EPS, in_double, threads)
            assert launches == 1
            rounding = 1e-14 if in_double else 1e-6
            torch.testing.assert_close(folded, wanted.to(folded.dtype), rtol=rounding, atol=rounding, equal_nan=True)


def test_fold(emulator):
    """A warp folds one group, its lanes share the degrees, and the last block has warps without a group."""
    run_and_check_fold(emulator)


def test_sanitized_fold(sanitized_emulator):
    run_and_check_fold(sanitized_emulator)
