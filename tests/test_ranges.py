"""What `check` and `convert` report of ranges: counted by hand, on networks whose values are known."""

import copy
import math

import numpy as np
import pytest
import torch
from small_networks import inputs, mlp
from torch import nn
from torch.nn import functional as F

import slaf_ext
from slaf_ext import SLAF, convert, export, training


class Net(nn.Module):
    """Two SLAFs of one input, the second of twice the first's output; and what is no polynomial."""

    def __init__(self, forward=lambda self, x: self.second(2 * self.first(x)), **modules):
        super().__init__()
        self.second = SLAF(2, basis="monomial", domain=(-1, 4), init=[0, 0, 1])
        self.first = SLAF(1, basis="monomial", domain=(-1, 1), init=[0, 1], outside="clamp")
        for name, module in modules.items():
            setattr(self, name, module)
        self.own = forward

    def forward(self, x):
        return self.own(self, x)


def test_ranges_are_those_of_the_data():
    x = torch.tensor([[-0.5], [1.0], [2.5]])
    net = Net()
    state = copy.deepcopy(net.state_dict())
    report = export.check(net, [x[:2], (x[2:], "a label")])
    first, second = report.layers
    # t ↦ t on the window: the monomials of (−1, 1) and of (−1, 4), whose map is t = (2 x − 3) / 5.
    assert (first.name, first.domain, first.inputs, first.outputs) == ("first", (-1, 1), (-0.5, 2.5), (-0.5, 2.5))
    assert (first.elements, first.outside, first.largest, first.blown) == (3, 1, 1.0, 0)
    assert (second.name, second.inputs, second.outside, second.elements) == ("second", (-1, 5), 1, 3)
    assert second.outputs == pytest.approx((0.04, 1.96))
    assert report.outside == pytest.approx(1 / 3)
    assert (report.blows_up, report.not_polynomial) == ([], [])
    assert net.training
    assert net.first.outside == "clamp"
    assert all(torch.equal(a, b) for a, b in zip(state.values(), net.state_dict().values(), strict=True))


@pytest.mark.parametrize("bad", [12.0, 1e30])
def test_it_says_where_a_network_blows_up(bad):
    report = export.check(Net(), torch.tensor([[0.5], [bad], [-0.5], [bad]]))
    first, second = report.layers
    assert (first.outside, first.blown, second.blown) == (2, 2, 2)
    assert report.blows_up == ["first", "second"]
    assert "first blows up first: 2 of 4 outputs are beyond\n  10 times the largest in its domain, 1; 1 more" in str(
        report
    )
    assert "first blows up first" not in str(export.check(Net(), torch.tensor([[0.5]])))


def test_ten_times_the_largest_is_no_blow_up():
    report = export.check(Net(), torch.tensor([[10.0]]))
    assert report.blows_up == ["second"]


@pytest.mark.parametrize(("dtype", "huge"), [(torch.float16, 1e4), (torch.float32, 3e38), (torch.float64, 1.7e308)])
def test_an_overflow_is_a_blow_up_however_large_the_domain_is(dtype, huge):
    net = nn.Sequential(SLAF(1, basis="monomial", domain=(-1, 1), init=[huge, huge], dtype=dtype))
    (layer,) = export.check(net, torch.tensor([[-0.5], [9.0]], dtype=dtype)).layers
    assert (layer.outputs[1], layer.blown) == (math.inf, 1)


def test_values_that_are_not_finite_count_as_outside_and_blown():
    net = Net(lambda self, x: self.first(x - 0.5) + self.second(self.first(x).log()))
    report = export.check(net, torch.tensor([[-1.0], [0.5]]))
    second = report.layers[1]
    assert (second.name, second.outside, second.blown) == ("second", 1, 1)
    assert math.isnan(second.outputs[0])
    assert report.layers[0].elements == 4  # both calls


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (nn.MaxPool2d(2), "a maximum; put nn.AvgPool2d in its place, and train again"),
        (nn.AdaptiveMaxPool1d(2), "a maximum; put nn.AdaptiveAvgPool1d in its place, and train again"),
        (nn.FractionalMaxPool2d(2, 2), "a maximum; put nn.AvgPool2d in its place, and train again"),
        (nn.ReLU(), "ReLU is an activation; slaf_ext.convert replaces it"),
        (
            nn.LayerNorm(4),
            "LayerNorm takes a root, or divides by a function of its input; BatchNorm is linear in evaluation mode",
        ),
        (nn.Softmax(-1), "Softmax is no polynomial"),
        (
            nn.InstanceNorm2d(3),
            "InstanceNorm2d takes a root, or divides by a function of its input",
        ),
        (
            nn.LPPool2d(2, 2),
            "LPPool2d takes a root, or divides by a function of its input",
        ),
        (nn.BatchNorm2d(3, track_running_stats=False), "BatchNorm2d divides by a deviation of each batch; let it keep"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_polynomial_is_named(module, sentence):
    net = nn.Sequential(SLAF(2), nn.Sequential(module), nn.AvgPool2d(1), nn.Dropout())
    x = torch.randn(3, 4, 4) if isinstance(module, nn.AdaptiveMaxPool1d) else torch.randn(2, 3, 4, 4)
    report = export.check(net, x)
    ((name, why),) = report.not_polynomial
    assert name == "1.0"
    assert why.startswith(sentence)
    assert f"not polynomial: 1.0: {why}" in str(report)


def test_functions_that_are_no_polynomials_are_named():
    net = Net(lambda self, x: F.max_pool1d(torch.relu(self.second(self.first(x))), 2))
    found = dict(export.check(nn.Sequential(net), torch.randn(2, 3, 4)).not_polynomial)
    assert found == {
        "0: relu": "called as a function",
        "0: max_pool1d": "a maximum; call avg_pool instead, and train again",
    }


def test_more_functions_that_are_no_polynomials():
    functions = {
        "layer_norm": lambda x: F.layer_norm(x, (4,)),
        "normalize": F.normalize,
        "amax": lambda x: x - x.amax(1, keepdim=True),
        "norm": lambda x: x * x.norm(),
        "std": lambda x: x * x.std(),
    }
    for name, function in functions.items():
        net = nn.Sequential(Net(lambda self, x, function=function: function(self.second(self.first(x)))))
        (found,) = export.check(net, torch.randn(2, 3, 4)).not_polynomial
        assert found[0] == f"0: {name}"


def test_other_polynomials_extrapolate_too():
    net = nn.Sequential(slaf_ext.KANLinear(1, 1, 1, domain=(-1, 1), outside="clamp"), SLAF(1, init=[0, 1]))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.zero_()
    assert export.check(net, torch.tensor([[5.0]])).layers[0].inputs == (5, 5)
    assert net[0].outside == "clamp"


def test_modules_called_by_keyword():
    report = export.check(Net(lambda self, x: self.second(x=self.first(x=x))), torch.tensor([[0.5]]))
    assert [layer.inputs for layer in report.layers] == [(0.5, 0.5)] * 2


def test_a_module_alone_has_a_name():
    assert str(export.check(SLAF(1, domain=(-1, 1)), torch.tensor([[1e9]]))).splitlines()[3].startswith("SLAF blows up")


def test_a_model_that_is_watched_can_be_checked_and_converted():
    """While what a range penalty has seen waits for its loss."""
    model = nn.Sequential(nn.Linear(1, 3), SLAF(2), nn.Tanh())
    seen = training.range_penalty(model)
    x = torch.randn(9, 1)
    model(100 * x)
    export.check(model, x)
    convert(model, x, degree=2)
    assert seen.penalty() > 0


@pytest.mark.parametrize("given", [True, False])
def test_convert_reports_ranges(given):
    net, x = mlp(nn.Tanh), inputs()
    held_out = 3 * x
    converted, report = convert(net, x, degree=5, held_out=held_out if given else None)
    seen = []
    hooks = [converted[i].register_forward_hook(lambda m, args, out: seen.append((args[0], out))) for i in (1, 3)]
    converted(held_out if given else x)
    for hook in hooks:
        hook.remove()
    for layer, calibrated, (z, y) in zip(report.ranges.layers, report.layers, seen, strict=True):
        assert (layer.name, layer.domain) == (calibrated.name, calibrated.domain)
        assert layer.inputs == (z.min().item(), z.max().item())
        assert layer.outputs == (y.min().item(), y.max().item())
        assert layer.outside == ((z < layer.domain[0]) | (z > layer.domain[1])).sum().item()
        assert (layer.outside > 0) == given
        assert layer.elements == z.numel()
    data = "held-out" if given else "calibration"
    assert f"ranges of the converted network on the {data} data:" in str(report)


def test_a_channel_without_a_finite_variance_is_converted():
    """Its scale is 0."""
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Tanh()).double()
    net[1].running_var[0] = math.inf
    _, report = convert(net, torch.randn(50, 3, dtype=torch.float64), degree=3)
    assert report.output_error <= report.output_bound < 0.5


@pytest.mark.parametrize("outside", ["extrapolate", "linear"])
def test_convert_names_max_pooling_where_a_polynomial_is_wanted(outside):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Softmax(1))
    _, report = convert(net, torch.randn(8, 1, 8, 8), degree=2, outside=outside)
    sentence = "not polynomial: 2: a maximum; put nn.AvgPool2d in its place, and train again"
    assert (sentence in str(report)) == (outside == "extrapolate")
    assert str(report).count("Softmax") == 1  # which is among those not converted
    assert report.ranges.not_polynomial[0][0] == "2"


def test_the_tables_fit_a_terminal():
    net = mlp(nn.Tanh)
    converted, report = convert(net, inputs(), degree=5, held_out=1e9 * inputs(), outside="extrapolate")
    printed = f"{report}\n{export.check(converted, 1e9 * inputs())}"
    assert max(map(len, printed.splitlines())) <= 80


def test_quantiles():
    """Of one million inputs, some far out: the domain is where numpy says that the share lies."""
    x = torch.randn(4000, 1)
    x[:3] = torch.tensor([[1e3], [-1e4], [1e5]])
    net = nn.Sequential(nn.Identity(), nn.Tanh())
    for quantile, margin in ((0.99, 0.0), (0.9, 0.25), (1.0, 0.0)):
        _, report = convert(net, x.split(1000), degree=3, quantile=quantile, margin=margin)
        q = torch.tensor([0.5 - quantile / 2, 0.5 + quantile / 2], dtype=torch.float64)
        lo, hi = torch.quantile(x.double(), q).tolist()
        wider = margin * (hi - lo)
        assert report.layers[0].domain == pytest.approx((lo - wider, hi + wider))
    assert report.layers[0].domain == (-1e4, 1e5)


def test_quantiles_are_those_of_all_features():
    """Of more inputs than are looked at, a third of the features having a spread of its own."""
    x = torch.randn(900, 300)
    x[:, 1::3] *= 20
    _, report = convert(nn.Sequential(nn.Identity(), nn.Tanh()), x, degree=3, quantile=0.9)
    expected = np.quantile(x.numpy(), [0.05, 0.95])
    assert report.layers[0].domain == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: export.check(nn.Linear(1, 1), torch.ones(1, 1)), ValueError, "no SLAF ran when the model did"),
        (lambda: export.check(SLAF, torch.ones(1, 1)), TypeError, "model is a type; it must be"),
        (lambda: export.check(SLAF(1), 3), TypeError, "data is a int; it must be inputs"),
        (lambda: export.check(SLAF(1), torch.tensor([math.nan])), ValueError, "a data batch of shape .* holds nan"),
        (lambda: export.check(SLAF(1, 3), torch.ones(1, 2)), ValueError, "the model fails on a data batch"),
        (lambda: convert(mlp(nn.Tanh), inputs(), degree=2, held_out=[]), ValueError, "held_out holds no inputs"),
        (
            lambda: convert(mlp(nn.Tanh), inputs(), degree=2, quantile=0),
            ValueError,
            "quantile is 0; it must be a number",
        ),
        (lambda: convert(mlp(nn.Tanh), inputs(), degree=2, quantile=1.5), ValueError, "quantile is 1.5; it must be"),
    ],
)
def test_wrong_arguments(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
