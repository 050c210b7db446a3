"""The normalised form, compared in float64 with an oracle made of numpy's polynomials and torch's batch_norm."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from normalized import SLAF, case
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from slaf_ext import bases, reference
from slaf_ext.functional import normalized_slaf
from slaf_ext.series import to_numpy


def twin(x, coeffs, basis, dim=1, domain=None, eps=1e-5):
    """β + Σ w_k ẑ_k group by group, with φ_k expanded in monomials and normalised by nn.functional.batch_norm."""
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_rounded_float64(dtype):
    x, _ = case((8, 4, 9), 4, 3, dtype)
    f = SLAF(3, 4, normalize=True, init="noisy_identity")
    y = f(x)
    expected = twin(x, f.coeffs.detach(), "chebyshev")
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_the_default_start_is_batch_norm():
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


def test_evaluation_trains_nothing_and_tracks_nothing():
    f = SLAF(2, normalize=True).eval()
    before = {name: value.clone() for name, value in f.state_dict().items()}
    f(torch.randn(4, 3)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in f.state_dict().items())
    assert f.coeffs.grad.abs().sum() > 0


def test_a_constant_channel_gives_the_bias():
    f = SLAF(3, 2, normalize=True, init=torch.tensor([[0.5, 1, 2, 3], [-1.0, 1, 2, 3]]))
    # With variance 0 the folded coefficients are 1 / sqrt(eps) = 316 times the weights, which amplifies rounding.
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
    # x⁷ has mean 1e14 and variance 0, so the folded coefficient is 316, and its product with the mean rounds to 1e9.
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
    # A NaN would never leave a running average, so its group's statistics are not updated; the others are.
    assert f.running_mean.isfinite().all()
    assert (f.running_mean[:2] != 0).all()
    assert torch.equal(f.running_mean[2], torch.zeros(2))
    assert f.eval()(torch.randn(4, 3, 5)).isfinite().all()


@pytest.mark.parametrize("eps", [-1.0, 0.0, float("nan"), float("inf"), "a", None, [1.0]])
def test_a_wrong_eps_gets_a_sentence(eps):
    x, coeffs = case((4, 3, 5), 3, 2)
    spec = reference.spec(coeffs, "chebyshev", 1, None, "extrapolate")
    mean, variance = torch.ops.slaf_ext.slaf_moments(x, coeffs, *spec)
    calls = [lambda: SLAF(2, normalize=True, eps=eps), lambda: normalized_slaf(x, coeffs, eps=eps)]
    if isinstance(eps, float):
        calls += [
            lambda: torch.ops.slaf_ext.slaf_normalized_backward(x, x, coeffs, mean, variance, *spec, eps, True),
            lambda: torch.ops.slaf_ext.slaf_fold(coeffs, mean, variance, eps, True),
            lambda: torch.ops.slaf_ext.slaf_fold(*(t.to("meta") for t in (coeffs, mean, variance)), eps, True),
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
    f(x)  # gives x⁵ a variance of 1e16, beyond float16
    before = f.running_var.clone()
    assert f.to(dtype) is f
    assert f.coeffs.dtype == dtype
    assert torch.equal(f.running_var, before)
    assert torch.equal(f._buffers["running_var"], before)
    f.eval()
    torch.testing.assert_close(f.fold()(x.to(dtype)), f(x.to(dtype)), rtol=0, atol=0)
    assert f.double().running_var.dtype == torch.float64


def test_a_gradient_penalty():
    # Physics-informed networks and WGAN-GP differentiate an input gradient once more.
    f = SLAF(3, 2, normalize=True, dtype=torch.float64)
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(f(x).square().sum(), x, create_graph=True)[0]
    slope.square().sum().backward()
    assert x.grad.isfinite().all()
    assert f.coeffs.grad.abs().sum() > 0
