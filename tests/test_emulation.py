"""The CUDA kernels emulated on the CPU: correct values, and no data race or access out of bounds.

Every CUDA thread of a block is a thread here, and blocks run one after another; results are compared with the CPU
operators and with numpy.polynomial in float64.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from emulation import Case, Emulator, both
from emulation.cases import CLAMP, EXTRAPOLATE, LAYOUTS, LINEAR, ZERO, make, spec_of, tolerance
from numpy import polynomial

from slaf_ext import bases, reference

pytestmark = pytest.mark.slow

ORACLES = {
    "monomial": polynomial.Polynomial,
    "chebyshev": polynomial.Chebyshev,
    "legendre": polynomial.Legendre,
    "laguerre": polynomial.Laguerre,
    "hermite": polynomial.Hermite,
    "hermite_e": polynomial.HermiteE,
}


def cpu(case: Case):
    """The results of the CPU operators for a case."""
    flat = [entry for row in case.rows for entry in row]
    spec = (flat, 1, case.center, case.lo, case.hi, case.outside)
    if case.grad_output is None:
        return torch.ops.slaf_ext.slaf(case.x, case.coeffs, *spec), None
    return torch.ops.slaf_ext.slaf_backward(case.grad_output, case.x, case.coeffs, *spec, case.need_x, case.need_coeffs)


def check(case: Case, result, oracle=None):
    """Compares a result with the oracle, by default the CPU operators, allowing for the rounding of stored results."""
    out, grad_coeffs = oracle or cpu(case)
    for got, want in ((result.out, out), (result.grad_coeffs, grad_coeffs)):
        if want is None or want.numel() == 0 or got is None:
            continue
        got, want = got.double(), want.double().view(got.shape)
        rounding = torch.finfo((case.x if got.shape == case.x.shape else case.coeffs).dtype).eps
        allowed = tolerance(case) * (1 + want.abs().max()) + rounding * want.abs()
        worst = ((got - want).abs() - allowed).max()
        assert worst <= 0, f"{worst} more than allowed, {tuple(case.x.shape)}, degree {len(case.rows)}"


def numpy_oracle(case: Case, basis: str):
    """The expected output and coefficient gradient from numpy.polynomial in float64."""
    x, a = case.x.double().numpy(), case.coeffs.double().numpy()
    kind = ORACLES[basis]
    if case.grad_output is None:
        y = [kind(row)(x[:, g]) for g, row in enumerate(a)]
        return torch.from_numpy(np.stack(y, 1)), None
    g = case.grad_output.double().numpy()
    dx = [g[:, i] * (kind(row).deriv()(x[:, i]) if len(row) > 1 else 0) for i, row in enumerate(a)]
    phi = [kind.basis(k)(x) * g for k in range(a.shape[1])]
    return torch.from_numpy(np.stack(dx, 1)), torch.from_numpy(np.stack([p.sum((0, 2)) for p in phi], 1))


def run_and_check(emulator: Emulator, cases, oracle=None):
    results = emulator.run(cases)
    for case, result in zip(cases, results, strict=True):
        check(case, result, oracle and oracle(case))
    return results


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_layouts(emulator, layout, dtype):
    for degree in (2, 5, 11, 12):  # 12 has a kernel of its own beside the one for 5 .. 12
        run_and_check(emulator, both(*make(layout, degree, dtype=dtype)))


@pytest.mark.parametrize("basis", ORACLES)
def test_oracle(emulator, basis):
    """Every basis, at degrees that reach each implementation of the sweep, agrees with numpy.polynomial."""
    for degree in (0, 1, 3, 6, 8, 11, 12, 15, 32, 35):
        for layout in (LAYOUTS["runs of odd length"], LAYOUTS["columns"]):
            cases = both(*make(layout, degree, basis, torch.float64))
            run_and_check(emulator, cases, lambda case: numpy_oracle(case, basis))


@pytest.mark.parametrize("outside", [ZERO, CLAMP, LINEAR])
def test_outside(emulator, outside):
    domain = (2.0, 5.0)
    for layout, degree in itertools.product(("shared", "runs of odd length", "columns"), (0, 3, 14, 35)):
        dtype = torch.float32 if degree < 32 else torch.float64
        run_and_check(emulator, both(*make(LAYOUTS[layout], degree, dtype=dtype, domain=domain, outside=outside)))


@pytest.mark.parametrize("outside", [EXTRAPOLATE, ZERO, CLAMP, LINEAR])
def test_walked_gradient(emulator, outside):
    """In Newton's basis D a loses digits to cancellation, so the gradient is evaluated from phi_k' instead."""
    newton = bases.Basis("newton", [(2, -2 * t, 0) for t in np.cos(np.pi * (np.arange(20) + 0.5) / 20)])
    for layout, dtype in itertools.product(
        ("shared", "runs of odd length", "columns"), (torch.float64, torch.bfloat16)
    ):
        for degree in (0, 1, 2, 20):
            case, grad_output = make(LAYOUTS[layout], degree, newton, dtype, torch.float32, outside=outside)
            if dtype == torch.float64:
                case = replace(case, coeffs=case.coeffs.double())
            case = replace(case, grad_output=grad_output)
            x, coeffs = case.x.double().requires_grad_(), case.coeffs.double().requires_grad_()
            y = reference.expand(x, coeffs, *spec_of(case))
            wanted = torch.autograd.grad(
                y, (x, coeffs), grad_output.double(), allow_unused=True, materialize_grads=True
            )
            (result,) = emulator.walked_backward([case])
            check(case, result, wanted)


@pytest.mark.parametrize("offsets", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 2, 1)], ids=str)
def test_alignment(emulator, offsets):
    for dtype in (torch.float32, torch.float16):
        run_and_check(emulator, both(*make((1, 1, 515), 3, dtype=dtype, offsets=offsets)))
        run_and_check(emulator, both(*make((2, 3, 64), 3, dtype=dtype, offsets=offsets)))


def test_grids(emulator):
    """The number of blocks and threads changes the order of summation, but the result only by rounding."""
    for multiprocessors, threads, layout in itertools.product((1, 3), (32, 128), ("shared", "columns")):
        more = {"multiprocessors": multiprocessors, "threads": threads}
        run_and_check(emulator, both(*make(LAYOUTS[layout], 4, **more)))


@pytest.mark.parametrize("basis", ["monomial", "taylor", "chebyshev", "legendre", "laguerre"])
def test_nonfinite_elements_in_the_forward(emulator, basis):
    """The forward agrees with the CPU operator, which is itself compared with the definition at infinities and NaN."""
    elements = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0, -1.0], dtype=torch.float64)
    for degree in (1, 3, 4, 9, 13, 34):
        case, _ = make((1, 1, 7), degree, basis, torch.float64)
        case = replace(case, x=elements.view(1, 1, 7))
        (result,) = emulator.run([case])
        torch.testing.assert_close(result.out.view(7), cpu(case)[0].view(7), rtol=1e-12, atol=1e-12, equal_nan=True)


def test_fp32_coefficients_beside_half(emulator):
    for dtype in (torch.float16, torch.bfloat16):
        run_and_check(emulator, both(*make((4, 3, 40), 4, dtype=dtype, coeffs_dtype=torch.float32)))


def test_needs(emulator):
    """A gradient that is not needed is not written, and costs no launch."""
    for degree, dtype in ((4, torch.float32), (13, torch.float32), (33, torch.float64)):
        case, grad_output = make((4, 3, 40), degree, dtype=dtype)
        forward, backward = both(case, grad_output)
        only_x, only_coeffs = replace(backward, need_coeffs=False), replace(backward, need_x=False)
        launches = [r.launches for r in run_and_check(emulator, [forward, backward, only_x, only_coeffs])]
        if degree == 4:
            assert launches == [1, 2, 1, 2]
        untouched = emulator.run([only_coeffs])[0].out
        assert (untouched.view(torch.uint8) == 0x7F).all()


def test_empty(emulator):
    case, grad_output = make((0, 3, 4), 2)
    (result,) = emulator.run([replace(case, grad_output=grad_output)])
    assert (result.grad_coeffs == 0).all()


def test_nonfinite_elements_and_their_gradients(emulator):
    """NaN and infinities propagate as on the CPU, whatever happens outside the domain."""
    case, grad_output = make((1, 1, 40), 3)
    x = case.x.clone()
    x[0, 0, 3], x[0, 0, 7], x[0, 0, 11] = torch.nan, torch.inf, -torch.inf
    for outside in (EXTRAPOLATE, ZERO, CLAMP, LINEAR):
        cases = both(replace(case, x=x, outside=outside), grad_output)
        for one, result in zip(cases, emulator.run(cases), strict=True):
            torch.testing.assert_close(result.out, cpu(one)[0], equal_nan=True)


def test_highest_term_that_overflows(emulator):
    """dx does not depend on phi_degree, so its overflow must not reach dx."""
    for degree, layout in itertools.product((2, 3, 4, 8, 12, 15), ("shared", "columns")):
        case, grad_output = make(LAYOUTS[layout], degree, "monomial")
        backward = replace(case, x=1.1 * 2 ** (128 / degree) * torch.ones_like(case.x), grad_output=grad_output)
        (result,) = emulator.run([backward])
        wanted = cpu(backward)[0]
        assert wanted.isfinite().all()
        assert wanted.abs().max() > 1e17
        torch.testing.assert_close(result.out, wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("basis", ["monomial", "taylor"])
def test_gradients_of_powers_at_infinity(emulator, basis):
    """The recurrence of the powers must skip its term with C = 0, since 0 * inf at infinity is NaN."""
    for degree, layout in itertools.product((1, 3, 5, 9, 35), ("shared", "runs of odd length", "columns")):
        case, grad_output = make(LAYOUTS[layout], degree, basis)
        backward = replace(
            case, x=torch.full_like(case.x, torch.inf), coeffs=case.coeffs.abs(), grad_output=grad_output.abs()
        )
        (result,) = emulator.run([backward])
        dx, grad_coeffs = cpu(backward)
        assert dx.isinf().all() or degree == 1
        torch.testing.assert_close((result.out, result.grad_coeffs.view_as(grad_coeffs)), (dx, grad_coeffs))


def test_same_bits(emulator):
    case, grad_output = make((5, 3, 49), 8, multiprocessors=2)
    cases = [replace(case, grad_output=grad_output)] * 3
    first, *others = emulator.run(cases)
    for other in others:
        assert torch.equal(first.grad_coeffs, other.grad_coeffs)
        assert torch.equal(first.out, other.out)


def test_large_degree(emulator):
    """The recurrence table needs several uploads at this degree, and the matrix D needs many."""
    run_and_check(emulator, both(*make((2, 3, 33), 130, dtype=torch.float64)))


@pytest.mark.parametrize(
    "layout",
    [
        (1, 1, 2**31 + 1),
        (3, 1, 2**30),
        (2**27, 3, 7),
        (2, 64, 2**26 + 4),
        (2**31 + 5, 1, 1),
        (2, 3, 2**34),
        (2**20, 2**16, 48),
        (3, 2**33, 1),
    ],
)
@pytest.mark.parametrize(("width", "unroll"), [(1, 4), (4, 2), (8, 1)])
@pytest.mark.parametrize("sum_rows", [0, 9])
def test_more_than_2_31_elements(emulator, layout, width, unroll, sum_rows):
    """Indices need 64 bits here, and the first, middle and last blocks must visit the elements that are theirs."""
    outer, groups, inner = layout
    whole = groups * inner if groups > 1 and inner < 32 else inner
    if groups > 1 and whole % width:
        width = 1
    wrong, farthest, blocks = emulator.follow(layout, width, unroll, 132 * 16 * 5, sum_rows)
    assert wrong == 0
    assert outer * groups * inner - 1 == farthest
    assert 0 < blocks < 2**31


def draw(seed: int, degrees: int = 16) -> tuple[Case, torch.Tensor]:
    """A case with a random layout, dtype, basis, degree, alignment and grid."""
    random = np.random.default_rng(seed)
    dtype = [torch.float32, torch.bfloat16, torch.float16, torch.float64][seed % 4]
    groups = int(random.choice([1, 2, 3, 8, 33, 64]))
    inner = int(random.choice([1, 2, 4, 31, 32, 40, 49, 64, 200]))
    outer = int(random.integers(1, max(2, min(60, 4000 // (groups * inner)))))
    more = {
        "offsets": tuple(int(t) for t in random.choice([0, 0, 1, 2, 3, 4, 8], 3)),
        "multiprocessors": int(random.integers(1, 4)),
        "threads": int(random.choice([32, 64, 96, 256])),
        "outside": int(random.integers(4)),
        "domain": (-1.0, 2.0),
    }
    basis = str(random.choice(["chebyshev", "monomial", "legendre"]))
    return make((outer, groups, inner), int(random.integers(degrees)), basis, dtype, **more)


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_random(emulator, first):
    for seed in range(first, first + 20):
        try:
            run_and_check(emulator, both(*draw(seed)))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from None


def test_sanitized_random(sanitized_emulator):
    run_and_check(sanitized_emulator, [case for seed in range(200, 220) for case in both(*draw(seed, degrees=13))])


def test_sanitized(sanitized_emulator):
    """Each path runs under AddressSanitizer with UBSan, and under ThreadSanitizer."""
    cases = []
    for layout in LAYOUTS.values():
        cases += both(*make(layout, 3, outside=LINEAR, domain=(0.0, 1.0)))
    for degree in (8, 9, 13, 33):
        cases += both(*make((5, 3, 49), degree))
        cases += both(*make((37, 3, 1), degree, dtype=torch.float16))
    cases += both(*make((1, 1, 515), 3, offsets=(1, 2, 3), multiprocessors=2))
    # With this many blocks several threads take part in the reduction over blocks.
    cases += both(*make((1, 1, 1037), 3, threads=32, multiprocessors=4))
    run_and_check(sanitized_emulator, cases)
