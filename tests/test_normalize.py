"""The normalised form held to a twin made of numpy's polynomials and torch's own operations, in float64."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

import slaf_ext
from slaf_ext import bases, ops, reference
from slaf_ext.arguments import DTYPES
from slaf_ext.functional import normalized_slaf
from slaf_ext.series import to_numpy

slaf_fold = torch.ops.slaf_ext.slaf_fold
SLAF = functools.partial(slaf_ext.SLAF, domain=None)  # as the paper has it: of x itself, everywhere


def twin(x, coeffs, basis, dim=1, domain=None, eps=1e-5):
    """β + Σ w_k ẑ_k, by expanding φ_k in monomials and by nn.functional.batch_norm, group by group."""
    x, coeffs = x.double(), coeffs.double()
    groups = coeffs.shape[0] if coeffs.dim() == 2 else 1
    rows = coeffs.reshape(groups, -1)
    parts = []
    for g, part in enumerate(x.movedim(dim, 0).chunk(groups) if groups > 1 else [x]):
        y = rows[g, 0].expand(part.shape)
        for k in range(1, rows.shape[1]):
            unit = np.zeros(k + 1)
            unit[k] = 1
            powers = to_numpy(unit, basis, domain).convert(kind=np.polynomial.Polynomial).coef
            phi = sum(float(c) * part**i for i, c in enumerate(powers))
            z = nn.functional.batch_norm(phi.reshape(-1, 1), None, None, training=True, eps=eps)
            y = y + rows[g, k] * z.reshape(part.shape)
        parts.append(y)
    return torch.cat(parts).movedim(0, dim) if groups > 1 else parts[0]


def case(shape, groups, degree, dtype=torch.float64, seed=0):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    coeffs = torch.randn((groups, degree + 1) if groups > 1 else (degree + 1,), generator=generator).to(dtype)
    return x, coeffs


@pytest.mark.parametrize("basis", [*bases.names(), bases.jacobi(0.5, -0.25)], ids=str)
@pytest.mark.parametrize(("groups", "domain"), [(1, None), (6, None), (2, (-3.0, 4.0))])
def test_values_and_gradients_are_the_twins(basis, groups, domain):
    x, coeffs = case((4, 6, 5), groups, 3)
    seed = torch.randn(x.shape, dtype=torch.float64)
    results = []
    for f in (lambda x, a: normalized_slaf(x, a, basis, domain=domain)[0], lambda x, a: twin(x, a, basis, 1, domain)):
        leaves = x.clone().requires_grad_(), coeffs.clone().requires_grad_()
        y = f(*leaves)
        first = torch.autograd.grad(y, leaves, seed, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        results.append((y.detach(), *(g.detach() for g in first), *second))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.lists(st.integers(2, 5), min_size=2, max_size=4),
    dim=st.integers(-2, 1),
    degree=st.integers(0, 5),
    grouped=st.booleans(),
    permuted=st.booleans(),
)
def test_shapes_and_layouts(seed, shape, dim, degree, grouped, permuted):
    groups = shape[dim] if grouped else 1
    x, coeffs = case(shape, groups, degree, seed=seed)
    if permuted:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    y, mean, var = normalized_slaf(x, coeffs, "legendre", dim=dim, eps=0.1)
    torch.testing.assert_close(y, twin(x, coeffs, "legendre", dim, eps=0.1), rtol=1e-9, atol=1e-9)
    assert mean.shape == var.shape == (*coeffs.shape[:-1], degree)


@pytest.mark.parametrize("outside", ["extrapolate", "clamp", "linear"])
@pytest.mark.parametrize("groups", [1, 3])
def test_gradcheck_and_gradgradcheck(outside, groups):
    x, coeffs = case((3, 3, 2), groups, 3)
    x.requires_grad_()
    coeffs.requires_grad_()

    def f(x, coeffs):
        return normalized_slaf(x, coeffs, "chebyshev", domain=(-1.2, 1.3), outside=outside, eps=0.01)[0]

    assert gradcheck(f, (x, coeffs))
    assert gradgradcheck(f, (x, coeffs))


@pytest.mark.parametrize("groups", [1, 3])
def test_statistics_are_numpys(groups):
    x, coeffs = case((7, 3, 4), groups, 3)
    _, mean, var = normalized_slaf(x, coeffs, "monomial")
    for g in range(groups):
        part = x.numpy(force=True)[:, g] if groups > 1 else x.numpy(force=True)
        for k in (1, 2, 3):
            at = (g, k - 1) if groups > 1 else (k - 1,)
            assert mean[at].item() == pytest.approx(np.mean(part**k))
            assert var[at].item() == pytest.approx(np.var(part**k))


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_rounded_float64(dtype):
    x, _ = case((8, 4, 9), 4, 3, dtype)
    f = SLAF(3, 4, normalize=True, init="noisy_identity")
    y = f(x)
    expected = twin(x, f.coeffs.detach(), "chebyshev")
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_the_first_start_is_batch_norm():
    x, _ = case((8, 4, 5), 4, 3, torch.float32)
    f, norm = SLAF(3, 4, basis="monomial", normalize=True), nn.BatchNorm1d(4)
    torch.testing.assert_close(f(x), norm(x), rtol=1e-4, atol=1e-5)
    assert f.coeffs.tolist() == [[0, 1, 0, 0]] * 4


def test_the_papers_start():
    torch.manual_seed(0)
    f = SLAF(2, 5000, normalize=True, init="noisy_identity")
    assert torch.equal(f.coeffs[:, 0], torch.full((5000,), 0.1))
    assert f.coeffs[:, 1:].mean(0).tolist() == pytest.approx([1, 0], abs=0.06)
    assert f.coeffs[:, 1:].std(0).tolist() == pytest.approx([1, 1], abs=0.06)
    with pytest.raises(ValueError, match=r"init is 'gelu' and normalize is True"):
        SLAF(2, normalize=True, init="gelu")


def test_running_statistics_with_momentum():
    f = SLAF(2, 3, basis="monomial", normalize=True, momentum=0.25)
    mean, var = np.zeros((3, 2)), np.ones((3, 2))
    for seed in range(4):
        x, _ = case((5, 3, 7), 3, 2, torch.float32, seed)
        f(x)
        powers = np.stack([x.double().numpy(force=True), x.double().numpy(force=True) ** 2], -1)
        mean = 0.75 * mean + 0.25 * powers.mean((0, 2))
        var = 0.75 * var + 0.25 * powers.var((0, 2))
    np.testing.assert_allclose(f.running_mean.numpy(force=True), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(f.running_var.numpy(force=True), var, rtol=1e-5)
    assert f.num_batches_tracked.item() == 4


def test_cumulative_statistics_are_the_average_of_the_batches():
    f = SLAF(1, basis="monomial", normalize=True, momentum=None)
    batches = [case((6, 2), 1, 1, torch.float32, seed)[0] for seed in range(5)]
    for x in batches:
        f(x)
    assert f.running_mean.item() == pytest.approx(np.mean([x.mean().item() for x in batches]), abs=1e-6)
    assert f.running_var.item() == pytest.approx(np.mean([x.var(correction=0).item() for x in batches]), rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    basis=st.sampled_from(bases.names()),
    groups=st.sampled_from([1, 3]),
    degree=st.integers(0, 6),
    outside=st.sampled_from(["extrapolate", "clamp", "linear"]),
)
def test_fold_equals_evaluation_mode(seed, basis, groups, degree, outside):
    torch.manual_seed(seed)
    options = {"basis": basis, "domain": (-2, 2), "outside": outside, "dtype": torch.float64}
    f = SLAF(degree, groups, normalize=True, momentum=0.3, init="noisy_identity", **options)
    for _ in range(2):
        f(torch.randn(9, 3, dtype=torch.float64))
    f.eval()
    plain = f.fold()
    x = torch.randn(9, 3, dtype=torch.float64) * 2
    torch.testing.assert_close(plain(x), f(x), rtol=1e-12, atol=1e-12)
    assert not plain.normalize
    assert not plain.training
    if groups == 1 and outside == "extrapolate":
        np.testing.assert_allclose(
            f.to_numpy()(x.numpy(force=True)), f(x).detach().numpy(force=True), rtol=1e-9, atol=1e-9
        )


def test_fold_of_a_plain_module_is_a_copy():
    f = SLAF(2, 2, init=torch.randn(2, 3))
    copy = f.fold()
    assert torch.equal(copy.coeffs, f.coeffs)
    with torch.no_grad():
        copy.coeffs.zero_()
    assert f.coeffs.any()


def test_evaluation_trains_nothing_and_tracks_nothing():
    f = SLAF(2, normalize=True).eval()
    before = {name: value.clone() for name, value in f.state_dict().items()}
    f(torch.randn(4, 3)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in f.state_dict().items())
    assert f.coeffs.grad.abs().sum() > 0


def test_a_constant_channel_gives_the_bias():
    f = SLAF(3, 2, normalize=True, init=torch.tensor([[0.5, 1, 2, 3], [-1.0, 1, 2, 3]]))
    # The variance is 0, so the folded coefficients are 1 / sqrt(eps) = 316 times the weights, and round accordingly.
    x = torch.tensor([[0.7, -0.3], [0.7, -0.3]], requires_grad=True)
    y = f(x)
    torch.testing.assert_close(y, torch.tensor([[0.5, -1.0]]).expand(2, 2), atol=1e-3, rtol=0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.zeros(2, 2), atol=1e-3, rtol=0)
    y = f(torch.full((4, 2, 3), 0.5))
    torch.testing.assert_close(y, torch.tensor([0.5, -1.0]).view(1, 2, 1).expand(4, 2, 3), atol=1e-3, rtol=0)
    f, x = f.double(), x.detach().double()
    torch.testing.assert_close(f(x), torch.tensor([[0.5, -1.0]] * 2, dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("shape", "groups"), [((1, 2), 2), ((1,), 1), ((1, 3, 1, 1), 3)])
def test_one_element_a_group_has_no_variance(shape, groups):
    f = SLAF(2, groups, normalize=True)
    with pytest.raises(ValueError, match="one element for each row of coeffs, and so no variance"):
        f(torch.ones(shape))
    assert f.num_batches_tracked == 0
    assert f.eval()(torch.ones(shape)).isfinite().all()


@pytest.mark.parametrize("value", [5.0, -100.0])
@pytest.mark.parametrize("degree", [3, 7])
def test_a_constant_channel_far_from_zero_gives_the_bias(value, degree):
    # The mean of x⁷ is 1e14, the variance 0, and so a folded coefficient 316: their product rounds to 1e9.
    f = SLAF(degree, 2, basis="monomial", normalize=True, momentum=1.0, init="noisy_identity")
    x = torch.randn(64, 2)
    x[:, 0] = value
    for y in (f(x), f.eval()(x), f.fold()(x)):
        torch.testing.assert_close(y[:, 0], torch.full((64,), 0.1), atol=1e-3, rtol=0)
        assert y[:, 1].std() > 0.1


def test_an_empty_batch_leaves_the_statistics():
    f = SLAF(2, 3, normalize=True)
    x = torch.zeros(0, 3, requires_grad=True)
    y = f(x)
    y.sum().backward()
    assert y.shape == (0, 3)
    assert x.grad.shape == (0, 3)
    assert f.num_batches_tracked == 0
    assert torch.equal(f.running_var, torch.ones(3, 2))
    with pytest.raises(ValueError, match="no elements"):
        normalized_slaf(x, f.coeffs)


def test_nan_stays_in_its_group():
    f = SLAF(2, 3, normalize=True)
    x = torch.randn(4, 3, 5)
    x[1, 2, 3] = float("nan")
    y = f(x)
    assert y[:, 2].isnan().all()
    assert not y[:, :2].isnan().any()
    # The statistics that it would spoil for good stay what they were; the others move on.
    assert f.running_mean.isfinite().all()
    assert (f.running_mean[:2] != 0).all()
    assert torch.equal(f.running_mean[2], torch.zeros(2))
    assert f.eval()(torch.randn(4, 3, 5)).isfinite().all()


in_float64 = pytest.mark.cpu("a GPU computes φ_k in float32 where x is not float64, and beyond its range f is NaN")


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
def test_values_whose_squares_float32_does_not_hold(basis, degree, size, dtype, groups):
    """Output, statistics and gradients are those of float64, and the module goes on as if nothing had happened."""
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
    # In evaluation mode too, and after an ordinary batch.
    want = exact.eval()(wide)
    assert (f.eval()(x) - want).norm() <= (100 * eps) * want.norm()
    x = torch.randn(256, 4).to(dtype)
    f.train()(x)
    assert f.eval()(x).isfinite().all()


def test_what_float64_does_not_hold_is_nan_and_spoils_nothing():
    f = SLAF(12, normalize=True, basis="monomial", dtype=torch.float64)
    assert f(1e20 * torch.randn(64, 2, dtype=torch.float64)).isnan().all()
    assert f.eval()(torch.randn(4, 2, dtype=torch.float64)).isfinite().all()


@in_float64
def test_folded_coefficients_that_float32_does_not_hold_are_refused():
    f = SLAF(8, basis="monomial", normalize=True)
    f(1e9 * torch.randn(256, 4))
    with pytest.raises(ValueError, match=r"a running variance is .*; fold the module in float64"):
        f.fold()
    x = torch.randn(5, 4).double()
    torch.testing.assert_close(f.double().fold()(x), f.eval()(x))


@pytest.mark.parametrize("eps", [-1.0, 0.0, float("nan"), float("inf"), "a", None, [1.0]])
def test_an_eps_that_is_none_gets_a_sentence(eps):
    x, coeffs = case((4, 3, 5), 3, 2)
    spec = reference.spec(coeffs, "chebyshev", 1, None, "extrapolate")
    mean, variance = torch.ops.slaf_ext.slaf_moments(x, coeffs, *spec)
    calls = [lambda: SLAF(2, normalize=True, eps=eps), lambda: normalized_slaf(x, coeffs, eps=eps)]
    if isinstance(eps, float):
        calls += [
            lambda: torch.ops.slaf_ext.slaf_normalized_backward(x, x, coeffs, mean, variance, *spec, eps, True),
            lambda: slaf_fold(coeffs, mean, variance, eps, True),
            lambda: slaf_fold(*(t.to("meta") for t in (coeffs, mean, variance)), eps, True),
        ]
    for call in calls:
        with pytest.raises(ValueError, match=r"eps is .*; it must be a finite number greater than 0"):
            call()


def test_degree_0_and_linear_edges():
    x = torch.randn(3, 4, requires_grad=True)
    for outside in ("extrapolate", "linear"):
        y, *_ = normalized_slaf(x, torch.tensor([0.5]), outside=outside)
        assert torch.equal(y, torch.full((3, 4), 0.5))
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.5}, "momentum is 1.5; it must be a number from 0 to 1, or None"),
        ({"momentum": "a"}, "momentum is 'a'; it must be"),
        ({"momentum": float("nan")}, "momentum is nan; it must be"),
    ],
)
def test_wrong_options_get_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        SLAF(2, normalize=True, **options)


def test_state_dict_and_repr():
    f, g = SLAF(2, 3, normalize=True), SLAF(2, 3, normalize=True)
    f(torch.randn(5, 3))
    g.load_state_dict(f.state_dict())
    assert set(f.state_dict()) == {"coeffs", "running_mean", "running_var", "num_batches_tracked"}
    assert torch.equal(g.running_mean, f.running_mean)
    assert "normalize=True, momentum=0.01, eps=1e-05" in repr(f)
    assert set(SLAF(2).state_dict()) == {"coeffs"}
    narrow = {key: t.float() if t.is_floating_point() else t for key, t in f.state_dict().items()}
    for assign in (False, True):
        g.load_state_dict(narrow, assign=assign)
        assert g.running_var.dtype == torch.float64
    f.reset_parameters()
    assert torch.equal(f.running_mean, torch.zeros(3, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_the_statistics_stay(dtype):
    f = SLAF(5, 2, basis="monomial", normalize=True, momentum=1.0)
    x = 20 * torch.randn(64, 2)
    f(x)  # the variance of x⁵ is 1e16 now
    before = f.running_var.clone()
    assert f.to(dtype) is f
    assert f.coeffs.dtype == dtype
    assert torch.equal(f.running_var, before)
    assert torch.equal(f._buffers["running_var"], before)
    f.eval()
    torch.testing.assert_close(f.fold()(x.to(dtype)), f(x.to(dtype)), rtol=0, atol=0)
    assert f.double().running_var.dtype == torch.float64


def test_a_gradient_penalty():
    # A gradient penalty through the normalised form: what physics-informed nets and WGAN-GP do.
    f = SLAF(3, 2, normalize=True, dtype=torch.float64)
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(f(x).square().sum(), x, create_graph=True)[0]
    slope.square().sum().backward()
    assert x.grad.isfinite().all()
    assert f.coeffs.grad.abs().sum() > 0


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
    # One step of float32 at 1e4 is 1e-3 of the deviation: no answer in float32 can be much nearer.
    for (ours, exact), tolerance in zip(zip(*results, strict=True), (5e-3, 5e-3, 1e-3), strict=True):
        assert (ours - exact).abs().max() <= tolerance * exact.abs().max()


def test_the_moments_do_not_depend_on_which_elements_come_first():
    # The shift is a sample's mean; here the sample is as unlucky as can be.
    x = torch.zeros(1, 1, 32 * 1000, dtype=torch.float32)
    x[..., ::1000] = 1e4
    x += 0.01 * torch.randn(x.shape, generator=torch.Generator(torch.get_default_device()).manual_seed(0))
    _, mean, var = normalized_slaf(x, torch.ones(3), "monomial")
    wide = x.double().numpy(force=True)
    for k, values in enumerate((wide, wide**2)):
        assert mean[k].item() == pytest.approx(values.mean(), abs=1e-4 * values.std())
        assert var[k].item() == pytest.approx(values.var(), rel=1e-4)


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
def test_statistics_that_are_none_get_a_sentence(spoil):
    x, coeffs = case((4, 3, 5), 3, 2)
    spec = reference.spec(coeffs, "chebyshev", 1, None, "extrapolate")
    mean, variance = torch.ops.slaf_ext.slaf_moments(x, coeffs, *spec)
    for statistics in ((spoil(mean), variance), (mean, spoil(variance))):
        with pytest.raises(ValueError, match="must be what slaf_moments returns"):
            torch.ops.slaf_ext.slaf_normalized_backward(x, x, coeffs, *statistics, *spec, 1e-5, True)
    empty = x[:0]
    with pytest.raises(ValueError, match="no elements"):
        torch.ops.slaf_ext.slaf_normalized_backward(empty, empty, coeffs, mean, variance, *spec, 1e-5, True)


def statistics_of(coeffs, seed=0):
    """A mean and a variance that could be those of slaf_moments."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    shape = (*coeffs.shape[:-1], coeffs.shape[-1] - 1)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).exp() for _ in range(2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 3, 64])
@pytest.mark.parametrize("degree", [0, 1, 5, 40])
def test_folding_is_the_formula(degree, groups, dtype):
    _, coeffs = case((1,), groups, degree, dtype)
    mean, variance = statistics_of(coeffs)
    folded = slaf_fold(coeffs, mean, variance, 1e-3, True)
    assert folded.dtype == torch.float64
    assert folded.is_contiguous()
    torch.testing.assert_close(folded, reference.fold(coeffs, mean, variance, 1e-3), rtol=1e-14, atol=1e-14)
    wide, mu, v = (t.numpy(force=True) for t in (coeffs.double(), mean, variance))
    weights = wide[..., 1:] / np.sqrt(v + 1e-3)
    exact = np.concatenate([wide[..., :1] - (weights * mu).sum(-1, keepdims=True), weights], -1)
    np.testing.assert_allclose(folded.numpy(force=True), exact, rtol=1e-13, atol=1e-13)
    narrow = slaf_fold(coeffs, mean, variance, 1e-3, False)
    torch.testing.assert_close(narrow, folded.float(), rtol=0, atol=0)
    # Rows that do not lie one after another in memory.
    transposed = coeffs.t().contiguous().t() if groups > 1 else coeffs.repeat_interleave(2)[::2]
    torch.testing.assert_close(slaf_fold(transposed, mean, variance, 1e-3, True), folded, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_folding_where_statistics_are_not_ordinary(dtype):
    inf, nan = torch.inf, torch.nan
    mean = torch.tensor([[5.0, 5.0, 0.0, 1e150, 1e200, -1e14, 1.0, 1.0, inf]], dtype=torch.float64)
    variance = torch.tensor([[0.0, 1e-13, 0.0, 1e300, 1.7e308, 1e12, inf, nan, inf]], dtype=torch.float64)
    for k in range(mean.shape[1]):
        coeffs = torch.tensor([[0.5, 2.0]], dtype=dtype)
        statistics = mean[:, k : k + 1].contiguous(), variance[:, k : k + 1].contiguous()
        wanted = reference.fold(coeffs, *statistics, 1e-5)
        for in_double in (True, False):
            folded = slaf_fold(coeffs, *statistics, 1e-5, in_double)
            torch.testing.assert_close(folded, wanted.to(folded.dtype), rtol=1e-6, atol=0, equal_nan=True)
    # One such term spoils its own group alone.
    coeffs = torch.ones(2, 10, dtype=dtype)
    mean, variance = torch.cat([mean, torch.ones_like(mean)]), torch.cat([variance, torch.ones_like(variance)])
    folded = slaf_fold(coeffs, mean, variance, 1e-5, True)
    torch.testing.assert_close(folded, reference.fold(coeffs, mean, variance, 1e-5), equal_nan=True)
    assert folded[0].isnan().tolist() == [True, *[False] * 6, True, True, False]
    assert folded[1].isfinite().all()


@pytest.mark.parametrize("groups", [1, 3])
def test_folding_as_pytorch_sees_it(groups):
    _, coeffs = case((1,), groups, 4, torch.float32)
    for in_double in (True, False):
        arguments = (coeffs, *statistics_of(coeffs), 1e-5, in_double)
        torch.library.opcheck(slaf_fold.default, arguments)
        torch.library.opcheck(slaf_fold.default, (coeffs[..., ::2], *statistics_of(coeffs[..., ::2]), 1e-5, in_double))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"coeffs": torch.Tensor.long}, "coeffs (are|is) int64; slaf needs float16, bfloat16, float32 or float64"),
        ({"coeffs": lambda t: t[None]}, r"coeffs have shape \(1, 3, 3\); they must be \(K,\) or \(G, K\)"),
        ({"coeffs": lambda t: t[:0]}, r"coeffs have shape \(0, 3\); they must be"),
        ({"mean": torch.Tensor.float}, r"the mean is float32 of shape \(3, 2\) on .*; it must be what slaf_moments"),
        ({"variance": lambda t: t[:2]}, r"the variance is float64 of shape \(2, 2\) on .*, without its first column"),
        ({"variance": lambda t: t[0]}, r"the variance is float64 of shape \(2,\)"),
        ({"coeffs": lambda t: t[0]}, r"the mean is .* of the shape of coeffs, \(3,\), without"),
    ],
)
def test_what_cannot_be_folded_gets_a_sentence(change, sentence):
    _, coeffs = case((1,), 3, 2, torch.float32)
    arguments = dict(zip(("coeffs", "mean", "variance"), (coeffs, *statistics_of(coeffs)), strict=True))
    arguments |= {name: spoil(arguments[name]) for name, spoil in change.items()}
    for device in (coeffs.device, "meta"):
        with pytest.raises(ValueError, match=sentence):
            slaf_fold(*(t.to(device) for t in arguments.values()), 1e-5, True)


def test_statistics_on_another_device_are_not_folded():
    _, coeffs = case((1,), 3, 2, torch.float32)
    mean, variance = statistics_of(coeffs)
    for statistics, name in (((mean.to("meta"), variance), "mean"), ((mean, variance.to("meta")), "variance")):
        with pytest.raises(ValueError, match=rf"the {name} is .* on meta; it must be what slaf_moments returns"):
            slaf_fold(coeffs, *statistics, 1e-5, True)


def test_evaluation_folds_by_the_kernel_where_nothing_is_differentiated(monkeypatch):
    f = SLAF(3, 2, normalize=True)
    f(torch.randn(50, 2))
    f.eval()
    x = torch.randn(5, 2)
    expected = f(x)
    traced = make_fx(f)(x)
    with torch.no_grad():
        traced_without = make_fx(f)(x)
    for graph in (traced, traced_without):
        assert not any("slaf_fold" in str(node.target) for node in graph.graph.nodes)
    monkeypatch.setattr(reference, "fold", None)
    with torch.no_grad():
        torch.testing.assert_close(f(x), expected)
        assert f(x.requires_grad_()).requires_grad is False
        f.running_mean, f.running_var = f.running_mean.t().contiguous().t(), f.running_var.float()
        torch.testing.assert_close(f(x), expected.detach(), rtol=1e-5, atol=1e-5)
    frozen = f.requires_grad_(False)(x)
    torch.testing.assert_close(frozen, expected)
    (dx,) = torch.autograd.grad(frozen.sum(), x)
    assert dx.abs().sum() > 0


def test_coefficients_that_depend_on_x():
    """What flows through the coefficients is theirs to hand on: recorded or not, dx holds it once."""
    x, coeffs = case((4, 3), 1, 2)
    x.requires_grad_()

    def gradient(**options):
        y, *_ = normalized_slaf(x, x.mean() * coeffs)
        return torch.autograd.grad(y.sin().sum(), x, **options)[0].detach()

    torch.testing.assert_close(gradient(create_graph=True), gradient())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch.func's own
def test_transforms_take_the_definition():
    x, coeffs = case((4, 3), 1, 2)
    step = 1e-6
    numeric = (normalized_slaf(x + step * x, coeffs)[0] - normalized_slaf(x - step * x, coeffs)[0]) / (2 * step)
    _, along_x = torch.func.jvp(lambda x: normalized_slaf(x, coeffs)[0], (x,), (x,))
    torch.testing.assert_close(along_x, numeric, rtol=1e-5, atol=1e-7)
