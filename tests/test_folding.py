"""Folded networks compute the same, in float64 to rounding, and have lost what was folded."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from slaf_ext import SLAF, bases, convert, training
from slaf_ext.export import fold_batch_norm, polynomials

EDGES = ["extrapolate", "clamp", "linear"]


def norm(cls, channels, **options):
    layer = cls(channels, dtype=torch.float64, **options)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    if layer.affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer


def broken(layer):
    layer.running_mean[0] = float("nan")
    return layer


def slaf(channels=1, degree=3, **options):
    options = {"domain": (-3.0, 4.0), "init": "noisy_identity", "dtype": torch.float64, **options}
    return SLAF(degree, channels, **options)


def fold(net, x):
    """The folded network, which computes the same and has left the original as it was."""
    state, kinds = copy.deepcopy(net.state_dict()), [type(m) for m in net.modules()]
    folded = fold_batch_norm(net, x)
    assert [type(m) for m in net.modules()] == kinds
    assert all(torch.equal(a, b) for a, b in zip(state.values(), net.state_dict().values(), strict=True))
    assert not folded.training
    expected = copy.deepcopy(net).eval()(x)
    torch.testing.assert_close(folded(x), expected, rtol=1e-11, atol=1e-11 * expected.abs().max().item())
    return folded


def kinds(net):
    return [type(m).__name__ for m in net]


@pytest.mark.parametrize("outside", EDGES)
@pytest.mark.parametrize("basis", [*bases.names(), bases.jacobi(0.5, -0.25)], ids=str)
def test_into_the_layer_before(basis, outside):
    linear = nn.Linear(3, 4, bias=False), norm(nn.BatchNorm1d, 4), nn.Dropout(), slaf(4, basis=basis, outside=outside)
    folded = fold(nn.Sequential(*linear).double(), torch.randn(9, 3, dtype=torch.float64))
    assert kinds(folded) == ["Linear", "Identity", "Dropout", "SLAF"]
    assert folded[3].domain is None
    assert folded[3].outside == outside


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_into_convolutions(size, affine):
    conv = getattr(nn, f"Conv{size}d")(4, 6, 3, padding=1, stride=2, groups=2, padding_mode="reflect")
    batch_norm = norm(getattr(nn, f"BatchNorm{size}d"), 6, affine=affine)
    folded = fold(nn.Sequential(conv, batch_norm, slaf(3)).double(), torch.randn(2, 4, *[5] * size).double())
    assert kinds(folded) == [f"Conv{size}d", "Identity", "SLAF"]
    assert folded[2].domain is None


@pytest.mark.parametrize("basis", [*bases.names(), bases.gegenbauer(1.5)], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("domain", [None, (-3.0, 4.0)])
def test_into_the_coefficients(basis, groups, domain):
    net = nn.Sequential(norm(nn.BatchNorm2d, 4), slaf(groups, basis=basis, domain=domain, outside="extrapolate"))
    folded = fold(net, torch.randn(5, 4, 3, 3, dtype=torch.float64))
    assert kinds(folded) == ["Identity", "SLAF"]
    assert folded[1].coeffs.shape == (4, 4)
    if domain is None:
        assert folded[1].domain is None
    else:  # it covers that of every channel
        scale = net[0].weight / (net[0].running_var + net[0].eps).sqrt()
        ends = [(t - net[0].bias) / scale + net[0].running_mean for t in domain]
        assert folded[1].domain == pytest.approx((torch.stack(ends).min().item(), torch.stack(ends).max().item()))


def test_into_the_coefficients_of_one_channel_and_a_negative_dim():
    x = torch.randn(5, 1, dtype=torch.float64)
    fold(nn.Sequential(norm(nn.BatchNorm1d, 1), slaf(outside="extrapolate")), x)
    folded = fold(nn.Sequential(norm(nn.BatchNorm1d, 4), slaf(2, dim=-1, outside="extrapolate")), x.expand(5, 4))
    assert kinds(folded) == ["Identity", "SLAF"]


@pytest.mark.parametrize(("mean", "spread"), [(100.0, 1.0), (1000.0, 10.0), (30.0, 1.0), (3.0, 1.0), (0.0, 1e-2)])
@pytest.mark.parametrize("domain", [None, (-4.0, 4.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_coefficients_that_would_lose_digits_keep_a_batch_norm(mean, spread, domain, dtype):
    """In float32; and whatever stays or goes, the network computes the same."""
    net = nn.Sequential(nn.BatchNorm1d(3), SLAF(4, 3, domain=domain, outside="extrapolate", init="noisy_identity"))
    net[0].running_mean.fill_(mean)
    net[0].running_var.fill_(spread**2)
    x = (spread * torch.randn(50, 3) + mean).to(dtype)
    expected = copy.deepcopy(net).double().eval()(x.double())
    folded = fold_batch_norm(net.to(dtype), x)
    tolerance = {torch.float32: 3e-4, torch.float16: 1.0 if mean or spread < 1 else 1e-2}[dtype]
    assert (folded(x) - expected).abs().max() <= tolerance * expected.abs().max()
    if dtype == torch.float32 and (domain or mean <= 3):
        assert isinstance(folded[0], nn.Identity) == (domain is not None or spread == 1)
    if dtype == torch.float32 and domain is None and mean >= 30:
        assert isinstance(folded[0], nn.BatchNorm1d)


def test_a_dead_channel():
    net = nn.Sequential(nn.BatchNorm1d(2), SLAF(3, domain=None, outside="extrapolate", init="gelu")).half()
    net[0].running_var[0] = 0
    x = torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float16)
    torch.testing.assert_close(fold_batch_norm(net, x)(x), net.eval()(x))


class Reads(nn.Module):
    """A layer whose weight is read once more."""

    def __init__(self):
        super().__init__()
        self.linear, self.f = nn.Linear(4, 4), slaf()

    def forward(self, x):
        return nn.functional.linear(self.f(self.linear(x)), self.linear.weight.t())


class Listed(nn.Module):
    """Modules that are also in a list, which no replacement reaches."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.f = nn.Linear(4, 4), norm(nn.BatchNorm1d, 4), slaf()
        self.order = [self.linear, self.norm, self.f]

    def forward(self, x):
        for module in self.order:
            x = module(x)
        return x


class Rectified(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x).relu()


def hooked(net):
    net[0].register_forward_hook(lambda module, args, out: out + 1)
    return net


@pytest.mark.parametrize(
    "net",
    [
        *(Reads(), Listed(), nn.Sequential(nn.Linear(4, 4), norm(Rectified, 4), slaf())),
        hooked(nn.Sequential(nn.Linear(4, 4), norm(nn.BatchNorm1d, 4), slaf())),
    ],
    ids=["reads", "listed", "subclass", "hook"],
)
def test_what_would_compute_something_else_is_refused(net):
    with pytest.raises(ValueError, match=r"the folded network differs from the model by \S+ of its largest output"):
        fold_batch_norm(net.double(), torch.randn(9, 4, dtype=torch.float64))


def test_frozen_parameters_stay_frozen():
    net = nn.Sequential(nn.Linear(4, 4), norm(nn.BatchNorm1d, 4), slaf())
    net = net.extend([norm(nn.BatchNorm1d, 4), slaf(outside="extrapolate")]).double().requires_grad_(False)
    assert not any(p.requires_grad for p in fold(net, torch.randn(5, 4, dtype=torch.float64)).parameters())


def test_pruned_layers_stay():
    net = nn.Sequential(nn.Linear(4, 4), norm(nn.BatchNorm1d, 4), slaf()).double().requires_grad_(False)
    prune.l1_unstructured(net[0], "weight", 0.5)
    x = torch.randn(5, 4, dtype=torch.float64)
    net.eval()(x)
    assert kinds(fold(net, x)) == ["Linear", "BatchNorm1d", "SLAF"]


def test_modules_called_by_keyword():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.drop, self.f = nn.Linear(4, 4), nn.Dropout(), slaf()

        def forward(self, x):
            return self.f(x=self.drop(input=self.linear(input=x)))

    assert fold(Keywords().double(), torch.randn(5, 4, dtype=torch.float64)).f.domain is None


def test_a_normalised_module_alone():
    f = slaf(4, normalize=True, momentum=None, domain=(-2.0, 2.0))
    f(torch.randn(50, 4, dtype=torch.float64))
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(fold_batch_norm(f, x)(x), f.eval()(x))


@pytest.mark.parametrize("outside", ["clamp", "linear"])
def test_edges_keep_a_batch_norm_without_a_layer_before(outside):
    folded = fold(nn.Sequential(norm(nn.BatchNorm1d, 4), slaf(4, outside=outside)), torch.randn(5, 4).double())
    assert kinds(folded) == ["BatchNorm1d", "SLAF"]


@pytest.mark.parametrize("features", [4, 5])
def test_the_last_dimension_of_a_linear_layer_is_no_channel(features):
    """BatchNorm1d of (N, C, L) normalises C, which nn.Linear does not give, even where C = L."""
    net = nn.Sequential(nn.Linear(3, features), norm(nn.BatchNorm1d, 4), slaf(4, outside="extrapolate")).double()
    folded = fold(net, torch.randn(6, 4, 3, dtype=torch.float64))
    assert kinds(folded) == ["Linear", "Identity", "SLAF"]  # into the coefficients
    assert folded[2].domain is not None


def test_groups_along_another_dimension_stay():
    net = nn.Sequential(norm(nn.BatchNorm1d, 4), slaf(3, dim=2, outside="extrapolate"))
    assert kinds(fold(net, torch.randn(2, 4, 3, dtype=torch.float64))) == ["BatchNorm1d", "SLAF"]


def test_what_is_used_twice_stays():
    shared = slaf(outside="extrapolate")
    net = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared).double()
    folded = fold(net, torch.randn(5, 4, dtype=torch.float64))
    assert folded[1].domain is not None
    assert folded[1] is folded[3]

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4), norm(nn.BatchNorm1d, 4)
            self.f, self.g = slaf(), slaf(2)

        def forward(self, x):
            y = self.linear(x)
            z = self.norm(y)
            return y + self.f(z) + self.g(z + 1)

    folded = fold(Branches().double(), torch.randn(5, 4, dtype=torch.float64))
    assert isinstance(folded.norm, nn.BatchNorm1d)
    assert folded.f.domain is not None


def test_other_layers_keep_a_shared_weight():
    tied = nn.Linear(4, 4), nn.Linear(4, 4)
    tied[1].weight = tied[0].weight
    net = nn.Sequential(tied[0], norm(nn.BatchNorm1d, 4), slaf(), tied[1]).double()
    fold(net, torch.randn(5, 4, dtype=torch.float64))


def test_a_computed_weight_stays():
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), norm(nn.BatchNorm1d, 4), slaf(4)).double()
    assert kinds(fold(net, torch.randn(5, 4, dtype=torch.float64)))[1] == "BatchNorm1d"


def test_normalised_modules_become_plain():
    net = nn.Sequential(nn.Linear(4, 4), slaf(4, normalize=True, momentum=None, domain=(-2.0, 2.0))).double()
    net(torch.randn(50, 4, dtype=torch.float64))
    folded = fold(net, torch.randn(5, 4, dtype=torch.float64))
    assert not folded[1].normalize
    assert folded[1].domain is None


@pytest.mark.parametrize("name", ["encrypted", "drop-in"])
def test_recipes(name):
    """Their BatchNorm, which takes any number of dimensions, folds."""
    r = training.recipe(name)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), r.activation(3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 5), r.activation(5)
    )
    net = net.double()
    net(torch.randn(20, 1, 8, 8, dtype=torch.float64))
    folded = fold(net, torch.randn(5, 1, 8, 8, dtype=torch.float64))
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    assert [p.domain for p in polynomials(folded)] == [None, None]


def test_a_converted_network_with_calls_folds():
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(torch.relu(self.first(x)))

    x = torch.randn(50, 3, dtype=torch.float64)
    converted, _ = convert(Calls().double(), x, degree=4, outside="extrapolate")
    (p,) = polynomials(fold(converted, x))
    assert p.domain is None


def test_half_precision_and_parity():
    f = slaf(domain=(-4.0, 4.0))
    training.parity(f, "odd")
    folded = fold_batch_norm(nn.Sequential(nn.Linear(4, 4), f).double(), torch.randn(2, 4, dtype=torch.float64))
    assert folded[1].coeffs[::2].abs().max() == 0
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), SLAF(3, 4)).bfloat16()
    assert {p.dtype for p in fold_batch_norm(net, torch.randn(2, 4, dtype=torch.bfloat16)).parameters()} == {
        torch.bfloat16
    }


@pytest.mark.parametrize(
    ("net", "error", "sentence"),
    [
        (
            nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), SLAF(1)),
            ValueError,
            "keeps no running statistics",
        ),
        (nn.Sequential(broken(nn.BatchNorm1d(4)), SLAF(1)), ValueError, "has running statistics that are not finite"),
        (nn.Sequential(nn.Linear(3, 4), SLAF(1)), ValueError, "the model fails on a trial batch"),
        ([nn.Linear(4, 4)], TypeError, "model is a list"),
    ],
)
def test_wrong_arguments(net, error, sentence):
    with pytest.raises(error, match=sentence):
        fold_batch_norm(net, torch.randn(5, 4))


def test_a_model_that_cannot_be_traced():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = SLAF(1)

        def forward(self, x):
            return self.f(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match=r"torch.fx cannot trace the model, so what is before a SLAF is unknown: "):
        fold_batch_norm(Branching(), torch.randn(5, 4))
