"""Folding the normalised form with fixed statistics into plain coefficients, by the module and by the operator."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from normalized import SLAF, case, in_float64
from torch.fx.experimental.proxy_tensor import make_fx

from slaf_ext import bases, reference
from slaf_ext.arguments import DTYPES

slaf_fold = torch.ops.slaf_ext.slaf_fold


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


@in_float64
def test_folded_coefficients_beyond_float32_are_refused():
    f = SLAF(8, basis="monomial", normalize=True)
    f(1e9 * torch.randn(256, 4))
    with pytest.raises(ValueError, match=r"a running variance is .*; fold the module in float64"):
        f.fold()
    x = torch.randn(5, 4).double()
    torch.testing.assert_close(f.double().fold()(x), f.eval()(x))


def statistics_of(coeffs, seed=0):
    """A random mean and variance with the dtype and shape that slaf_moments returns for coeffs."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    shape = (*coeffs.shape[:-1], coeffs.shape[-1] - 1)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).exp() for _ in range(2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 67])
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
    # Coefficients that are not contiguous.
    transposed = coeffs.t().contiguous().t() if groups > 1 else coeffs.repeat_interleave(2)[::2]
    torch.testing.assert_close(slaf_fold(transposed, mean, variance, 1e-3, True), folded, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_folding_extreme_and_nonfinite_statistics(dtype):
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
    # A term that is NaN affects no group but its own.
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
