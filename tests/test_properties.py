"""Hypothesis drives shapes, strides, dims, groups, dtypes and degrees; the definition judges in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slaf_ext
from slaf_ext import bases, reference

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@st.composite
def cases(draw):
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    if draw(st.booleans()):
        shape = [*shape, draw(st.integers(10, 300))]  # long enough for whole vectors and whole tiles
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    # Each dimension may be read backwards in order, or with gaps, or not at all (expanded).
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 1, 2])) for _ in shape]
    expanded = draw(st.sampled_from([None, *range(len(shape))])) if draw(st.booleans()) else None
    generator = torch.Generator(torch.get_default_device()).manual_seed(draw(st.integers(0, 2**32)))

    def tensor():
        size = [1 if d == expanded else shape[d] * steps[d] for d in order]
        t = torch.rand(size, generator=generator, dtype=torch.float64).mul(2).sub(1).to(dtype)
        t = t.permute([order.index(d) for d in range(len(shape))])
        t = t[tuple(slice(None, None, 1 if d == expanded else steps[d]) for d in range(len(shape)))]
        return t.expand(shape)

    basis, degree = draw(st.sampled_from(bases.names())), draw(st.integers(0, 9))
    if basis in ("chebyshev", "legendre"):  # which stay small
        degree = draw(st.sampled_from([degree, 16, 31, 32, 35]))
    coeffs_shape, dim = [degree + 1], 0
    if shape and draw(st.booleans()):
        dim = draw(st.integers(-len(shape), len(shape) - 1))
        divisors = [g for g in range(1, shape[dim] + 1) if shape[dim] % g == 0] or [1, 3]
        coeffs_shape = [draw(st.sampled_from(divisors)), degree + 1]
    coeffs_dtype = torch.float32 if dtype.itemsize == 2 and draw(st.booleans()) else dtype
    coeffs = torch.randn(coeffs_shape, generator=generator, dtype=torch.float64).to(coeffs_dtype)
    options = {
        "basis": basis,
        "dim": dim,
        "domain": draw(st.sampled_from([None, (-1.0, 1.0), (-0.5, 0.8), (0.0, 3.0)])),
        "outside": draw(st.sampled_from(["extrapolate", "clamp", "linear"])),
    }
    return tensor(), coeffs, tensor(), options


@settings(max_examples=400, deadline=None)
@given(cases())
def test_kernel_equals_definition(case):
    x, coeffs, grad_output, options = case
    results = []
    for f, convert in ((slaf_ext.slaf, lambda t: t), (reference.slaf, torch.Tensor.double)):
        a, b = convert(x).detach().requires_grad_(), convert(coeffs).detach().requires_grad_()
        y = f(a, b, **options)
        gradients = torch.autograd.grad(y, (a, b), convert(grad_output), allow_unused=True)
        gradients = [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, (a, b), strict=True)]
        results.append([y.detach(), *gradients])
    # Rounding is judged by the largest value that takes part in a sum, as a result may cancel to nearly nothing.
    degree = coeffs.shape[-1] - 1
    lo, hi = -1.0, 1.0
    grid = torch.linspace(lo, hi, 33, dtype=torch.float64)
    phi = slaf_ext.basis_values(grid, degree, options["basis"], domain=options["domain"]).abs().amax()
    window = bases.mapped(bases.get(options["basis"]), degree, options["domain"])
    steepness = (1 + degree) ** 2 * max(1.0, 2 / (window.hi - window.lo)) * 4
    size = float(phi) * steepness * (degree + 1) * (1 + float(coeffs.abs().amax()))
    for name, actual, expected in zip(("y", "dx", "dcoeffs"), *results, strict=True):
        scale = size * (max(1, x.numel()) if name == "dcoeffs" else 1)
        most = torch.finfo(actual.dtype).max  # beyond it a result is infinite
        assert actual[expected.abs() < most / 2].isfinite().all(), name
        difference = actual.double().clamp(-most, most) - expected.clamp(-most, most)
        tolerance, error = TOLERANCE[actual.dtype], difference.abs().amax() if actual.numel() else 0
        assert error <= tolerance * scale, f"{name} is off by {error}, scale {scale}"
    y, dx, dcoeffs = results[0]
    assert (y.dtype, dx.dtype, dcoeffs.dtype) == (x.dtype, x.dtype, coeffs.dtype)
    assert y.stride() == torch.empty_like(x).stride()
