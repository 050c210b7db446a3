"""The kernels of the normalised form, compared with its definition in plain PyTorch, and their precision."""

import pytest
import torch
from normalized import SLAF, case, in_float64

from slaf_ext import ops, reference
from slaf_ext.functional import normalized_slaf

LAYOUTS = {
    "channels first, long groups": ((3, 4, 23, 17), 4, 1, False),
    "channels first, short groups": ((50, 6, 3), 3, 1, False),
    "channels last": ((5, 6, 9, 11), 6, 1, True),
    "features": ((300, 37), 37, -1, False),
    "one row": ((7, 11, 13), 1, 1, False),
    "many rows": ((40000, 2), 2, 1, False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("domain", "outside"), [(None, "extrapolate"), ((-1.5, 2.0), "clamp")])
def test_the_kernels_are_the_definition(layout, dtype, domain, outside):
    shape, groups, dim, channels_last = LAYOUTS[layout]
    x, coeffs = case(shape, groups, 3, dtype)
    seed = torch.randn(shape, generator=torch.Generator(torch.get_default_device()).manual_seed(5)).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    spec = reference.spec(coeffs, "chebyshev", dim, domain, outside)
    results = []
    for f in (ops.normalized, reference.normalized):
        exact = f is reference.normalized
        leaves = [t.double() if exact else t.clone() for t in (x, coeffs)]
        for leaf in leaves:
            leaf.requires_grad_()
        y, mean, var = f(*leaves, *spec, eps=1e-3)
        results.append((y.detach(), mean.detach(), var.detach(), *torch.autograd.grad(y, leaves, seed.to(y.dtype))))
    for i, (ours, exact) in enumerate(zip(*results, strict=True)):
        eps = {torch.float32: 3e-6, torch.float64: 1e-12, torch.bfloat16: 0.01}[torch.float32 if i in (1, 2) else dtype]
        assert (ours.double() - exact).abs().max() <= eps * exact.abs().max(), ["y", "mean", "var", "dx", "da"][i]
    assert results[0][0].stride() == results[0][3].stride() == x.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_definition_keeps_the_layout(layout):
    shape, groups, dim, channels_last = LAYOUTS[layout]
    x, coeffs = case(shape, groups, 2)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    y, *_ = normalized_slaf(x, coeffs, dim=dim, outside="linear")
    assert y.stride() == x.stride()


def test_the_kernels_are_what_runs(monkeypatch):
    monkeypatch.setattr(reference, "normalized", None)
    f = SLAF(2, 3, normalize=True)
    f(torch.randn(4, 3, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("basis", ["monomial", "chebyshev", "hermite_e"])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_mean_of_1e4_and_a_deviation_of_1_cost_no_digits(dtype, basis, groups):
    generator = torch.Generator(torch.get_default_device()).manual_seed(2)
    x = (torch.randn(64, 4, 500, generator=generator, dtype=torch.float64) + 1e4).to(dtype)
    coeffs = torch.ones(groups, 4).squeeze(0).to(dtype)
    _, mean, var = normalized_slaf(x, coeffs, basis)
    wide = x.double()
    phi = {
        "monomial": (wide, wide**2, wide**3),
        "chebyshev": (wide, 2 * wide**2 - 1, 4 * wide**3 - 3 * wide),
        "hermite_e": (wide, wide**2 - 1, wide**3 - 3 * wide),
    }[basis]
    for k in range(3):
        values = phi[k].movedim(1, 0).reshape(groups, -1)
        torch.testing.assert_close(mean[..., k].reshape(-1), values.mean(1), rtol=1e-6, atol=0)
        torch.testing.assert_close(var[..., k].reshape(-1), values.var(1, correction=0), rtol=1e-4, atol=0)


def test_far_from_zero_the_output_and_its_gradients_hold():
    generator = torch.Generator(torch.get_default_device()).manual_seed(3)
    x = (torch.randn(64, 2, 500, generator=generator, dtype=torch.float64) + 1e4).float()
    coeffs = torch.tensor([[0.1, 1.0, 0.5], [0.2, -1.0, 0.3]])
    seed = torch.randn(x.shape, generator=generator)
    spec = reference.spec(coeffs, "monomial", 1, None, "extrapolate")
    results = []
    for f, dtype in ((ops.normalized, torch.float32), (reference.normalized, torch.float64)):
        leaves = [t.to(dtype).clone().requires_grad_() for t in (x, coeffs)]
        y, *_ = f(*leaves, *spec, eps=1e-5)
        results.append((y.detach(), *torch.autograd.grad(y, leaves, seed.to(dtype))))
    # At 1e4 the spacing of float32 is 1e-3 of the standard deviation, which limits the accuracy of any float32 result.
    for (ours, exact), tolerance in zip(zip(*results, strict=True), (5e-3, 5e-3, 1e-3), strict=True):
        assert (ours - exact).abs().max() <= tolerance * exact.abs().max()


def test_the_moments_do_not_depend_on_which_elements_come_first():
    # The shift is the mean of a sample of the elements, and here that sample consists of the outliers.
    x = torch.zeros(1, 1, 32 * 1000, dtype=torch.float32)
    x[..., ::1000] = 1e4
    x += 0.01 * torch.randn(x.shape, generator=torch.Generator(torch.get_default_device()).manual_seed(0))
    _, mean, var = normalized_slaf(x, torch.ones(3), "monomial")
    wide = x.double().numpy(force=True)
    for k, values in enumerate((wide, wide**2)):
        assert mean[k].item() == pytest.approx(values.mean(), abs=1e-4 * values.std())
        assert var[k].item() == pytest.approx(values.var(), rel=1e-4)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("basis", "degree", "size"),
    [
        ("chebyshev", 12, 12),
        ("chebyshev", 21, 1),
        ("legendre", 20, 1),
        ("monomial", 29, 1),
        ("monomial", 5, 1e4),
        pytest.param("monomial", 8, 1e9, marks=in_float64),
    ],
)
def test_values_whose_squares_overflow_float32(basis, degree, size, dtype, groups):
    """Output, statistics and gradients agree with float64, and the module stays usable afterwards."""
    x = (size * torch.randn(256, 4)).to(dtype).requires_grad_()
    seed = torch.randn(256, 4).to(dtype)
    f = SLAF(degree, groups, basis=basis, normalize=True, momentum=1.0, init="noisy_identity")
    exact = SLAF(degree, groups, basis=basis, normalize=True, momentum=1.0, dtype=torch.float64, init=f.coeffs)
    wide = x.detach().double().requires_grad_()
    y, expected = f(x), exact(wide)
    spec = reference.spec(exact.coeffs, basis, 1, None, "extrapolate")
    torch.testing.assert_close(expected, reference.normalized(wide, exact.coeffs, *spec, eps=1e-5)[0])
    y.backward(seed)
    expected.backward(seed.double())
    eps = 2 * torch.finfo(dtype).eps + 2e-6
    for got, want in ((y, expected), (x.grad, wide.grad), (f.coeffs.grad, exact.coeffs.grad)):
        assert (got - want).norm() <= eps * want.norm()
    torch.testing.assert_close(f.running_var, exact.running_var, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        f.running_mean, exact.running_mean, rtol=1e-4, atol=1e-4 * exact.running_var.max().sqrt()
    )
    # Evaluation mode agrees as well, and stays finite after a batch of ordinary size.
    want = exact.eval()(wide)
    assert (f.eval()(x) - want).norm() <= (100 * eps) * want.norm()
    x = torch.randn(256, 4).to(dtype)
    f.train()(x)
    assert f.eval()(x).isfinite().all()


def test_values_beyond_float64_give_nan_and_leave_the_statistics():
    f = SLAF(12, normalize=True, basis="monomial", dtype=torch.float64)
    assert f(1e20 * torch.randn(64, 2, dtype=torch.float64)).isnan().all()
    assert f.eval()(torch.randn(4, 2, dtype=torch.float64)).isfinite().all()


@pytest.mark.cpu("threads are the CPU's")
def test_the_same_bits_whatever_the_number_of_threads():
    x, coeffs = case((16, 8, 40, 40), 8, 4, torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaves = x.clone().requires_grad_(), coeffs.clone().requires_grad_()
            y, mean, var = normalized_slaf(*leaves)
            results.append((y.detach(), mean, var, *torch.autograd.grad(y, leaves, x)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_only_the_gradients_that_are_needed():
    x, coeffs = case((4, 3, 5), 3, 2)
    y, *_ = normalized_slaf(x, coeffs.requires_grad_())
    (da,) = torch.autograd.grad(y.square().sum(), coeffs, create_graph=True)
    assert torch.autograd.grad(da.sum(), coeffs)[0].abs().sum() > 0
    x.requires_grad_()
    y, *_ = normalized_slaf(x, coeffs.detach())
    assert torch.autograd.grad(y.square().sum(), x)[0].shape == x.shape


@pytest.mark.parametrize(
    "spoil", [lambda t: t.float(), lambda t: t[:-1], lambda t: t.T.contiguous().T], ids=["dtype", "shape", "strides"]
)
def test_wrong_statistics_get_a_sentence(spoil):
    x, coeffs = case((4, 3, 5), 3, 2)
    spec = reference.spec(coeffs, "chebyshev", 1, None, "extrapolate")
    mean, variance = torch.ops.slaf_ext.slaf_moments(x, coeffs, *spec)
    for statistics in ((spoil(mean), variance), (mean, spoil(variance))):
        with pytest.raises(ValueError, match="must be what slaf_moments returns"):
            torch.ops.slaf_ext.slaf_normalized_backward(x, x, coeffs, *statistics, *spec, 1e-5, True)
    empty = x[:0]
    with pytest.raises(ValueError, match="no elements"):
        torch.ops.slaf_ext.slaf_normalized_backward(empty, empty, coeffs, mean, variance, *spec, 1e-5, True)


def test_coefficients_that_depend_on_x():
    """The part of dx that flows through the coefficients is counted once, with and without create_graph."""
    x, coeffs = case((4, 3), 1, 2)
    x.requires_grad_()

    def gradient(**options):
        y, *_ = normalized_slaf(x, x.mean() * coeffs)
        return torch.autograd.grad(y.sin().sum(), x, **options)[0].detach()

    torch.testing.assert_close(gradient(create_graph=True), gradient())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # raised within torch.func
def test_transforms_take_the_definition():
    x, coeffs = case((4, 3), 1, 2)
    step = 1e-6
    numeric = (normalized_slaf(x + step * x, coeffs)[0] - normalized_slaf(x - step * x, coeffs)[0]) / (2 * step)
    _, along_x = torch.func.jvp(lambda x: normalized_slaf(x, coeffs)[0], (x,), (x,))
    torch.testing.assert_close(along_x, numeric, rtol=1e-5, atol=1e-7)
