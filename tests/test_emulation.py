"""The logic of the CUDA kernels, run on the CPU: right values, and no race or access out of bounds.

Each case goes through the kernels, block by block, with a thread for every CUDA thread, and is compared with the
CPU operators and with numpy.polynomial in float64.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from emulation import Case, Emulator, both
from numpy import polynomial

import slaf_ext  # noqa: F401 (registers the operators)
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
EXTRAPOLATE, ZERO, CLAMP, LINEAR = range(4)
# (outer, groups, inner): what each path of `partition` serves, at odd sizes.
LAYOUTS = {
    "one number": (1, 1, 1),
    "shared": (1, 1, 1037),
    "shared, whole vectors": (1, 1, 2048),
    "runs of whole vectors": (3, 5, 64),
    "runs of odd length": (5, 3, 49),
    "columns": (37, 3, 1),
    "more columns than a block has": (29, 101, 1),
    "columns of 4 to a group": (23, 10, 4),
    "one row of columns": (1, 70, 2),
}


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    return Emulator(tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="session", params=["address", "thread"])
def sanitized(request, tmp_path_factory):
    return Emulator(tmp_path_factory.mktemp("emulation"), request.param)


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


def cpu(case: Case):
    """The same case on the CPU operators."""
    flat = [number for row in case.rows for number in row]
    spec = (flat, 1, case.center, case.lo, case.hi, case.outside)
    if case.grad_output is None:
        return torch.ops.slaf_ext.slaf(case.x, case.coeffs, *spec), None
    return torch.ops.slaf_ext.slaf_backward(case.grad_output, case.x, case.coeffs, *spec, case.need_x, case.need_coeffs)


def tolerance(case: Case) -> float:
    """A few roundings of what the numbers are computed in."""
    return 1e-12 if case.x.dtype == torch.float64 else 4e-6


def check(case: Case, result, oracle=None):
    """result against the CPU's, or the oracle's, out and grad_coeffs; half types are stored with one rounding more."""
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
    """out and grad_coeffs from numpy.polynomial in float64."""
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
def test_layouts(plain, layout, dtype):
    for degree in (2, 5):
        run_and_check(plain, both(*make(layout, degree, dtype=dtype)))


@pytest.mark.parametrize("basis", ORACLES)
def test_oracle(plain, basis):
    """Every basis at every way of serving a degree, against numpy.polynomial."""
    for degree in (0, 1, 3, 6, 8, 11, 12, 15, 32, 35):
        for layout in (LAYOUTS["runs of odd length"], LAYOUTS["columns"]):
            cases = both(*make(layout, degree, basis, torch.float64))
            run_and_check(plain, cases, lambda case: numpy_oracle(case, basis))


@pytest.mark.parametrize("outside", [ZERO, CLAMP, LINEAR])
def test_outside(plain, outside):
    domain = (2.0, 5.0)
    for layout, degree in itertools.product(("shared", "runs of odd length", "columns"), (0, 3, 14, 35)):
        dtype = torch.float32 if degree < 32 else torch.float64
        run_and_check(plain, both(*make(LAYOUTS[layout], degree, dtype=dtype, domain=domain, outside=outside)))


@pytest.mark.parametrize("outside", [EXTRAPOLATE, ZERO, CLAMP, LINEAR])
def test_walked_gradient(plain, outside):
    """Newton's basis, in which D a cancels: the gradient from the walk over phi_k', beside plain PyTorch's."""
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
            (result,) = plain.walked_backward([case])
            check(case, result, wanted)


@pytest.mark.parametrize("offsets", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 2, 1)], ids=str)
def test_alignment(plain, offsets):
    for dtype in (torch.float32, torch.float16):
        run_and_check(plain, both(*make((1, 1, 515), 3, dtype=dtype, offsets=offsets)))
        run_and_check(plain, both(*make((2, 3, 64), 3, dtype=dtype, offsets=offsets)))


def test_grids(plain):
    """More blocks, or fewer threads, add in another order; the values stay."""
    for multiprocessors, threads, layout in itertools.product((1, 3), (32, 128), ("shared", "columns")):
        more = {"multiprocessors": multiprocessors, "threads": threads}
        run_and_check(plain, both(*make(LAYOUTS[layout], 4, **more)))


@pytest.mark.parametrize("basis", ["monomial", "taylor", "chebyshev", "legendre", "laguerre"])
def test_numbers_that_are_not_ordinary(plain, basis):
    """At the infinities too the forward is the CPU's, whose own test holds it to the definition."""
    numbers = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0, -1.0], dtype=torch.float64)
    for degree in (1, 3, 4, 9, 13, 34):
        case, _ = make((1, 1, 7), degree, basis, torch.float64)
        case = replace(case, x=numbers.view(1, 1, 7))
        (result,) = plain.run([case])
        torch.testing.assert_close(result.out.view(7), cpu(case)[0].view(7), rtol=1e-12, atol=1e-12, equal_nan=True)


def test_fp32_coefficients_beside_half(plain):
    for dtype in (torch.float16, torch.bfloat16):
        run_and_check(plain, both(*make((4, 3, 40), 4, dtype=dtype, coeffs_dtype=torch.float32)))


def test_needs(plain):
    """What is not needed is not written, and costs no launch."""
    for degree, dtype in ((4, torch.float32), (13, torch.float32), (33, torch.float64)):
        case, grad_output = make((4, 3, 40), degree, dtype=dtype)
        forward, backward = both(case, grad_output)
        only_x, only_coeffs = replace(backward, need_coeffs=False), replace(backward, need_x=False)
        launches = [r.launches for r in run_and_check(plain, [forward, backward, only_x, only_coeffs])]
        if degree == 4:
            assert launches == [1, 2, 1, 2]
        untouched = plain.run([only_coeffs])[0].out
        assert (untouched.view(torch.uint8) == 0x7F).all()


def test_empty(plain):
    case, grad_output = make((0, 3, 4), 2)
    (result,) = plain.run([replace(case, grad_output=grad_output)])
    assert (result.grad_coeffs == 0).all()


def test_special_numbers(plain):
    """NaN and infinity go where the CPU puts them."""
    case, grad_output = make((1, 1, 40), 3)
    x = case.x.clone()
    x[0, 0, 3], x[0, 0, 7], x[0, 0, 11] = torch.nan, torch.inf, -torch.inf
    for outside in (EXTRAPOLATE, ZERO, CLAMP, LINEAR):
        cases = both(replace(case, x=x, outside=outside), grad_output)
        for one, result in zip(cases, plain.run(cases), strict=True):
            torch.testing.assert_close(result.out, cpu(one)[0], equal_nan=True)


def test_highest_term_that_overflows(plain):
    """dx has no phi_degree, which may be infinite where dx is not."""
    for degree, layout in itertools.product((2, 3, 4, 8, 12, 15), ("shared", "columns")):
        case, grad_output = make(LAYOUTS[layout], degree, "monomial")
        backward = replace(case, x=1.1 * 2 ** (128 / degree) * torch.ones_like(case.x), grad_output=grad_output)
        (result,) = plain.run([backward])
        wanted = cpu(backward)[0]
        assert wanted.isfinite().all()
        assert wanted.abs().max() > 1e17
        torch.testing.assert_close(result.out, wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("basis", ["monomial", "taylor"])
def test_gradients_of_powers_at_infinity(plain, basis):
    """No power meets a power before it, which 0 * inf would turn into NaN."""
    for degree, layout in itertools.product((1, 3, 5, 9, 35), ("shared", "runs of odd length", "columns")):
        case, grad_output = make(LAYOUTS[layout], degree, basis)
        backward = replace(
            case, x=torch.full_like(case.x, torch.inf), coeffs=case.coeffs.abs(), grad_output=grad_output.abs()
        )
        (result,) = plain.run([backward])
        dx, grad_coeffs = cpu(backward)
        assert dx.isinf().all() or degree == 1
        torch.testing.assert_close((result.out, result.grad_coeffs.view_as(grad_coeffs)), (dx, grad_coeffs))


def test_same_bits(plain):
    case, grad_output = make((5, 3, 49), 8, multiprocessors=2)
    cases = [replace(case, grad_output=grad_output)] * 3
    first, *others = plain.run(cases)
    for other in others:
        assert torch.equal(first.grad_coeffs, other.grad_coeffs)
        assert torch.equal(first.out, other.out)


def test_large_degree(plain):
    """A table that takes several uploads, and a matrix D that takes many."""
    run_and_check(plain, both(*make((2, 3, 33), 130, dtype=torch.float64)))


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
def test_more_than_2_31_elements(plain, layout, width, unroll, sum_rows):
    """64-bit places: the first, the middle and the last blocks end where division says they end."""
    outer, groups, inner = layout
    whole = groups * inner if groups > 1 and inner < 32 else inner
    if groups > 1 and whole % width:
        width = 1
    wrong, farthest, blocks = plain.follow(layout, width, unroll, 132 * 16 * 5, sum_rows)
    assert wrong == 0
    assert outer * groups * inner - 1 == farthest
    assert 0 < blocks < 2**31


def draw(seed: int, degrees: int = 16) -> tuple[Case, torch.Tensor]:
    """A case with a way of reading, a run length, a number of groups, alignments and a grid drawn at random."""
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
def test_random(plain, first):
    for seed in range(first, first + 20):
        try:
            run_and_check(plain, both(*draw(seed)))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from None


NORMALIZED_DEGREES = (0, 1, 2, 4, 7)  # those of a kernel, of one that several share, and beyond 5 the long way
EPS = 1e-3


def spec_of(case: Case) -> tuple:
    return [number for row in case.rows for number in row], 1, case.center, case.lo, case.hi, case.outside


def definition(case: Case):
    """The mean, the variance, and the gradients in x and in coeffs, from plain PyTorch in float64."""
    x, coeffs = (t.double().requires_grad_() for t in (case.x, case.coeffs))
    y, mean, variance = reference.normalized(x, coeffs, *spec_of(case), eps=EPS)
    gradients = torch.autograd.grad(
        y, (x, coeffs), case.grad_output.double(), allow_unused=True, materialize_grads=True
    )
    return mean.detach(), variance.detach(), *gradients


def normalized_allowed(case: Case, variance, dx, grad_coeffs):
    """Roundings of what is added up: phi_k / s_k is of the size 1 / s_k, and its slope of the size k^2 / s_k."""
    weights = case.coeffs[:, 1:].double().abs() / (variance + EPS).sqrt()
    slopes = (weights * torch.arange(1, len(case.rows) + 1) ** 2).sum(1).view(1, -1, 1)
    sizes = case.grad_output.double().abs()
    inverse = (1 / (variance + EPS).sqrt()).amax(1, keepdim=True) if case.rows else torch.ones(len(variance), 1)
    for_x = tolerance(case) * (1 + sizes.max()) * (1 + slopes)
    for_coeffs = tolerance(case) * (1 + sizes.sum((0, 2)).view(-1, 1)) * inverse
    yield for_x + torch.finfo(case.x.dtype).eps * dx.abs()
    yield for_coeffs + torch.finfo(case.coeffs.dtype).eps * grad_coeffs.abs()


def run_and_check_normalized(emulator: Emulator, pairs):
    """Moments and gradients of (case, grad_output)s, as `make` gives them, beside the definition and the CPU's."""
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
def test_normalized_layouts(plain, layout, dtype):
    run_and_check_normalized(plain, [make(layout, degree, dtype=dtype) for degree in NORMALIZED_DEGREES])


def test_normalized_bases_edges_alignments_and_grids(plain):
    pairs = [
        make(LAYOUTS["runs of odd length"], degree, basis, domain=(2.0, 5.0), outside=CLAMP)
        for basis, degree in itertools.product(("legendre", "chebyshev"), (3, 6))
    ]
    for layout, offsets in itertools.product(((1, 1, 515), (2, 3, 64)), ((1, 0, 0), (0, 1, 0), (0, 0, 1))):
        pairs += [make(layout, 3, dtype=dtype, offsets=offsets) for dtype in (torch.float32, torch.float16)]
    for multiprocessors, threads, layout in itertools.product((1, 3), (32, 128), ("shared", "columns")):
        pairs.append(make(LAYOUTS[layout], 4, multiprocessors=multiprocessors, threads=threads))
    pairs += [make((4, 3, 40), 4, dtype=torch.bfloat16, coeffs_dtype=torch.float32)]
    # 64 columns whose factors overflow shared memory, and a table that takes uploads.
    pairs += [make((3, 64, 1), degree, dtype=torch.float64) for degree in (5, 40)]
    run_and_check_normalized(plain, pairs)


def test_normalized_launches_and_needs(plain):
    """2 for the moments and 3 for the gradients; dx is not written where it is not needed."""
    case, grad_output = make((4, 3, 40), 2)
    moments, results = run_and_check_normalized(plain, [(case, grad_output)])
    assert (moments[0][0], results[0].launches) == (2, 3)
    only_coeffs = replace(case, grad_output=grad_output, need_x=False)
    (result,) = plain.normalized_backward([only_coeffs], [definition(only_coeffs)[:2]], EPS)
    assert result.launches == 2
    assert (result.out.view(torch.uint8) == 0x7F).all()
    torch.testing.assert_close(result.grad_coeffs, results[0].grad_coeffs, rtol=0, atol=0)


@pytest.mark.parametrize("degree", [3, 6])
@pytest.mark.parametrize("layout", [(1, 1, 20000), (60, 3, 67), (4000, 5, 1)], ids=str)
def test_variance_far_from_zero(plain, layout, degree):
    """Mean 1e4, deviation 1: the difference of E[phi^2] and E[phi]^2 in fp32 would have no digit that is right."""
    x = (torch.randn(layout, dtype=torch.float64) + 1e4).float()
    case = replace(make(layout, degree, "monomial")[0], x=x)
    ((_, mean, variance),) = plain.moments([case])
    for k in range(1, 4):  # x^4 has squares beyond fp32's range
        phi = x.double().pow(k)
        torch.testing.assert_close(mean[:, k - 1], phi.mean((0, 2)), rtol=1e-6, atol=0)
        torch.testing.assert_close(variance[:, k - 1], phi.var((0, 2), correction=0), rtol=5e-5, atol=0)


@pytest.mark.parametrize("size", [1e-3, 1e5])
@pytest.mark.parametrize("layout", [(1, 1, 5000), (9, 3, 67), (700, 5, 1)], ids=str)
def test_values_whose_squares_overflow(plain, layout, size):
    """x^2 .. x^6 of 1e5: their squares, sums of squares and 1 / variance lie beyond float32."""
    for degree in (2, 4, 6):
        case, grad_output = make(layout, degree, "monomial")
        x = size * torch.randn(layout)
        x[0, 0, 0] = 0  # the sample's first
        case = replace(case, x=x, grad_output=grad_output)
        mean, variance, dx, grad_coeffs = definition(case)
        ((_, *moments),) = plain.moments([case])
        (result,) = plain.normalized_backward([case], [(mean, variance)], EPS)
        deviation = (variance + EPS).sqrt()
        assert ((moments[0] - mean).abs() <= 1e-6 * deviation).all()
        assert ((moments[1] - variance).abs() <= 1e-5 * (variance + EPS)).all()
        assert ((result.out - dx).abs() <= 1e-5 * dx.abs().amax((0, 2), keepdim=True)).all()
        assert ((result.grad_coeffs - grad_coeffs).abs() <= 1e-4 * (1 + grad_coeffs.abs())).all()


@pytest.mark.parametrize("layout", [(1, 1, 2**18), (2**15, 2, 1)], ids=str)
def test_unlucky_sample(plain, layout):
    """The storage's start, from which every block takes its shift, lies 1e6 deviations from all the rest."""
    x = 0.01 * torch.randn(layout, dtype=torch.float32)
    x.view(-1)[: x.numel() // 64] += 1e4
    case = replace(make(layout, 2, "monomial", threads=32)[0], x=x)
    ((_, mean, variance),) = plain.moments([case])
    for k in (1, 2):
        phi = x.double().pow(k)
        exact = phi.var((0, 2), correction=0)
        assert ((mean[:, k - 1] - phi.mean((0, 2))).abs() <= 1e-5 * exact.sqrt()).all()
        assert ((variance[:, k - 1] - exact).abs() <= 1e-4 * exact).all()


def test_normalized_nan_stays_in_its_group(plain):
    for layout in ((5, 3, 49), (37, 3, 1)):
        for degree in (2, 6):
            case, grad_output = make(layout, degree)
            case.x[2, 1, 0] = torch.nan
            ((_, mean, variance),) = plain.moments([case])
            assert mean.isnan().any(1).tolist() == variance.isnan().any(1).tolist() == [False, True, False]
            backward = replace(case, grad_output=grad_output)
            (result,) = plain.normalized_backward([backward], [(mean, variance)], EPS)
            assert result.out.isnan().any(2).any(0).tolist() == [False, True, False]
            assert result.grad_coeffs.isnan().any(1).tolist() == [False, True, False]


def test_normalized_same_bits(plain):
    case, grad_output = make((5, 3, 49), 5, multiprocessors=2)
    first, *others = plain.moments([case] * 3)
    statistics = [first[1:]] * 3
    backward = plain.normalized_backward([replace(case, grad_output=grad_output)] * 3, statistics, EPS)
    for moments, result in zip(others, backward[1:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(moments[1:], first[1:], strict=True))
        assert torch.equal(result.out, backward[0].out)
        assert torch.equal(result.grad_coeffs, backward[0].grad_coeffs)


def test_sanitized_random(sanitized):
    run_and_check(sanitized, [case for seed in range(200, 220) for case in both(*draw(seed, degrees=13))])


def run_and_check_fold(emulator: Emulator):
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for (groups, degree), dtype in itertools.product(((1, 0), (1, 5), (3, 1), (5, 40), (9, 33)), dtypes):
        coeffs = torch.randn(groups, degree + 1).to(dtype)
        mean, variance = (torch.randn(groups, degree, dtype=torch.float64).exp() for _ in range(2))
        # Constant, too large, in no number, and huge.
        for k, (mean_k, variance_k) in enumerate(((7.0, 0.0), (1.0, torch.inf), (1.0, torch.nan), (1e150, 1e300))):
            if k < degree:
                mean[k % groups, k], variance[k % groups, k] = mean_k, variance_k
        wanted = reference.fold(coeffs, mean, variance, EPS)
        for in_double, threads in ((True, 64), (False, 32)):
            launches, folded = emulator.fold(coeffs, mean, variance, EPS, in_double, threads)
            assert launches == 1
            rounding = 1e-14 if in_double else 1e-6
            torch.testing.assert_close(folded, wanted.to(folded.dtype), rtol=rounding, atol=rounding, equal_nan=True)


def test_fold(plain):
    """Every group has a warp, whose lanes share its degrees; the last block has warps without a group."""
    run_and_check_fold(plain)


def test_sanitized_fold(sanitized):
    run_and_check_fold(sanitized)


def test_sanitized_normalized(sanitized):
    """Its paths, too, under both sanitizers."""
    pairs = [make(layout, 2, outside=CLAMP) for layout in LAYOUTS.values()]
    for degree in (3, 6):
        pairs += [make((5, 3, 49), degree), make((37, 3, 1), degree, dtype=torch.float16)]
    pairs.append(make((1, 1, 1037), 3, offsets=(1, 2, 3), threads=32, multiprocessors=4))
    run_and_check_normalized(sanitized, pairs)


def test_sanitized(sanitized):
    """All paths again, under AddressSanitizer with UBSan, and under ThreadSanitizer."""
    cases = []
    for layout in LAYOUTS.values():
        cases += both(*make(layout, 3, outside=LINEAR, domain=(0.0, 1.0)))
    for degree in (8, 9, 13, 33):
        cases += both(*make((5, 3, 49), degree))
        cases += both(*make((37, 3, 1), degree, dtype=torch.float16))
    cases += both(*make((1, 1, 515), 3, offsets=(1, 2, 3), multiprocessors=2))
    # So many blocks that several threads share the work of `reduce`.
    cases += both(*make((1, 1, 1037), 3, threads=32, multiprocessors=4))
    run_and_check(sanitized, cases)
