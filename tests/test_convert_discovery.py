"""Which modules the conversion recognises as activations: those that are elementwise and nonlinear on trial inputs."""

import math
import warnings

import pytest
import torch
from small_networks import Calls, GELUActivation, Own, QuickGELUActivation, inputs
from torch import nn
from torch.nn import functional as F

from slaf_ext import SLAF, convert


def test_activations_that_are_not_known_are_listed():
    def forward(self, x):
        h = F.hardshrink(self.fc(x)) + self.fc(x).clamp(min=0)
        return torch.maximum(h, self.fc(x)).softmax(-1)

    model = nn.Sequential(Calls(forward), nn.GLU(-1), nn.Softmax(-1)).double()
    model[0].fc = nn.Linear(3, 4).double()
    _, report = convert(model, inputs(), degree=3)
    assert report.layers == []
    assert [what for what, _ in report.not_converted] == [
        *("hardshrink", "clamp", "maximum", "softmax", "1", "2", "0.act")
    ]
    assert "1: GLU is not a known elementwise function" in str(report)


class NewGELUActivation(nn.Module):
    def forward(self, input):
        return 0.5 * input * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (input + 0.044715 * torch.pow(input, 3.0))))


class ClippedGELUActivation(nn.Module):
    """Contains another activation, and must be replaced as a whole."""

    def __init__(self):
        super().__init__()
        self.inner = GELUActivation()

    def forward(self, x):
        return torch.clip(self.inner(x), -1, 1)


class HardSwish(nn.Module):
    """Contains an activation of torch's own, and must be replaced as a whole."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x):
        return x * self.relu(x + 3) / 6


class LaplaceActivation(nn.Module):
    def forward(self, input, mu=0.707107, sigma=0.282095):
        return 0.5 * (1.0 + torch.erf((input - mu).div(sigma * math.sqrt(2.0))))


class Block(nn.Module):
    """A block with one activation, which torch.fx can trace or not."""

    def __init__(self, act, traceable):
        super().__init__()
        self.dense, self.act, self.out = nn.Linear(3, 8), act, nn.Linear(8, 3)
        self.traceable = traceable

    def forward(self, x):
        if not self.traceable and x.sum() > 1e9:
            return x
        return self.out(self.act(self.dense(x)))


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize(
    "act",
    [
        *(GELUActivation, NewGELUActivation, QuickGELUActivation, ClippedGELUActivation, HardSwish),
        *(LaplaceActivation, nn.Threshold),
    ],
)
def test_activations_of_any_class_are_known_by_what_they_do(act, traceable):
    torch.manual_seed(0)
    model = nn.Sequential(Block(act() if act is not nn.Threshold else act(0, 0), traceable)).double()
    x = inputs()
    converted, report = convert(model, x, degree=14)
    (layer,) = report.layers  # replaced as a whole, not its members or calls
    assert (layer.name, layer.activation) == ("0.act", act.__name__)
    assert isinstance(converted[0].act, SLAF)
    assert report.not_converted == []
    h = model[0].dense(x)
    assert layer.domain == pytest.approx((h.min().item(), h.max().item()))
    assert report.output_error == pytest.approx((converted(x) - model(x)).abs().max().item(), abs=1e-9)
    assert layer.error <= layer.fit_error + 1e-9 < 0.1
    assert not traceable or report.output_error <= report.output_bound * (1 + 1e-9)


def test_a_module_of_the_users_may_be_named_as_a_target_where_fx_traces():
    model = nn.Sequential(Block(QuickGELUActivation(), True), Block(HardSwish(), True)).double()
    _, report = convert(model, inputs(), degree=3, targets=[QuickGELUActivation])
    assert [layer.name for layer in report.layers] == ["0.act"]
    _, report = convert(model, inputs(), degree=3, targets="1.act.relu")
    assert [layer.name for layer in report.layers] == ["1.act.relu"]
    _, report = convert(model, inputs(), degree=3, targets=[nn.ReLU6, HardSwish])
    assert [layer.name for layer in report.layers] == ["1.act"]
    assert report.not_converted == []


def test_a_model_that_is_an_activation_of_the_users():
    converted, report = convert(NewGELUActivation(), inputs(), degree=9)
    assert isinstance(converted[0], SLAF)
    assert report.layers[0].error <= report.layers[0].bound


def test_the_members_of_a_sequential_are_converted_each():
    converted, report = convert(nn.Sequential(nn.Sequential(nn.Tanh(), QuickGELUActivation())), inputs(), degree=9)
    assert [layer.name for layer in report.layers] == ["0.0", "0.1"]
    assert [type(m) for m in converted[0]] == [SLAF, SLAF]


def counted(self, x):
    self.calls += 1
    return torch.tanh(x) * self.calls


NOT_ELEMENTWISE = [
    Own(lambda self, x: torch.tanh(x + x.mean())),
    Own(lambda self, x: torch.tanh(x) * (1 + x.shape[0] % 2)),
    Own(lambda self, x: torch.tanh(x.flip(-1))),
    Own(lambda self, x: torch.tanh(x).cumsum(-1)),
    Own(lambda self, x: x / x.norm()),
    Own(lambda self, x: torch.softmax(x, -1)),
    Own(lambda self, x: x.flatten(1).tanh() if x.dim() > 2 else x),
    Own(lambda self, x: F.max_pool1d(x, 3, 1, 1)),
    Own(lambda self, x: F.glu(x.repeat_interleave(2, -1))),
    Own(lambda self, x: torch.tanh(x) + torch.rand(())),
    Own(lambda self, x: torch.tanh(x) if x.sum() < 1e6 else torch.relu(x)),
    Own(lambda self, x: torch.tanh(x) * self.table, table=torch.arange(1.0, 4.0)),
    Own(lambda self, x: torch.tanh(self.fc(x)), fc=nn.Linear(1, 1)),
    Own(lambda self, x: x > 0),
    Own(lambda self, x: None),
    Own(lambda self, x: (torch.tanh(x), x)),
    Own(counted, calls=0),
]
LEFT_ALONE = [
    Own(lambda self, x: 2 * x + 1),
    Own(lambda self, x: torch.zeros_like(x)),
    Own(lambda self, x: F.dropout(x, training=self.training)),
    *(nn.Identity(), nn.Dropout(), nn.Dropout1d(), nn.Flatten(), nn.ModuleList([nn.Dropout()])),
    *(nn.LayerNorm(3, elementwise_affine=False), nn.BatchNorm1d(3, affine=False), nn.InstanceNorm1d(3)),
    *(nn.MaxPool1d(3, 1, 1), nn.AdaptiveAvgPool1d(3), nn.LPPool1d(2, 1), nn.ReflectionPad1d(1), nn.MSELoss()),
    *(nn.LocalResponseNorm(1), nn.Unflatten(0, (1, -1)), nn.Sequential()),
]


@pytest.mark.parametrize("module", NOT_ELEMENTWISE)
def test_what_is_not_elementwise_is_not_taken_for_an_activation(module):
    model = Own(lambda self, x: self.act(x) if x.sum() < 1e9 else self.other(x), act=nn.Tanh(), other=module)
    with pytest.raises(ValueError, match="does not work element by element"):
        convert(model, inputs(), degree=3, targets="other")
    _, report = convert(model, inputs(), degree=3)
    assert [layer.name for layer in report.layers] == ["act"]
    assert report.not_converted == []


@pytest.mark.parametrize("module", LEFT_ALONE, ids=lambda m: type(m).__name__)
def test_what_is_no_activation_is_left_alone(module):
    model = Own(lambda self, x: self.act(x), act=nn.Tanh(), other=module)
    _, report = convert(model, inputs(), degree=3)
    assert [layer.name for layer in report.layers] == ["act"]
    assert report.not_converted == []


def test_what_has_parameters_is_converted_only_if_it_is_asked_for():
    model = Own(lambda self, x: self.swish(x) if x.sum() < 1e9 else x)
    model.swish = Own(lambda self, x: x * torch.sigmoid(self.beta * x), beta=nn.Parameter(torch.tensor(1.5)))
    _, report = convert(model.double(), inputs(), degree=9)
    assert [what for what, _ in report.not_converted] == ["swish: sigmoid"]
    _, report = convert(model, inputs(), degree=9, targets="swish")
    assert report.layers[0].error < 0.1
    assert report.parameters_added == 9
    assert report.not_converted == []


def test_what_jumps_is_left_unless_it_is_asked_for():
    model = nn.Sequential(nn.Linear(3, 3), Own(lambda self, x: x.sign()), nn.Linear(3, 3), nn.Hardshrink()).double()
    converted, report = convert(model, inputs(), degree=5)
    assert report.layers == []
    assert [what for what, _ in report.not_converted] == ["1", "3"]
    assert "it jumps" in str(report)
    assert isinstance(converted[3], nn.Hardshrink)
    _, report = convert(model, inputs(), degree=5, targets=["1", "3"])
    assert [layer.bound for layer in report.layers] == [None, None]
    assert report.layers[0].fit_error > 0.9


@pytest.mark.parametrize("end", [1.0, 3.0, 40.0, 1e5])
def test_what_is_smooth_is_not_said_to_jump(end):
    x = torch.linspace(-end, end, 101, dtype=torch.float64)
    model = nn.Sequential(Own(lambda self, x: F.softplus(x)), Own(lambda self, x: 1e-3 * torch.tanh(50 * x) + x))
    _, report = convert(model, x, degree=3)
    assert [layer.name for layer in report.layers] == ["0", "1"]
    assert report.layers[0].lipschitz == pytest.approx(math.exp(end) / (1 + math.exp(end)) if end < 9 else 1, rel=1e-3)


def test_what_cannot_be_fitted_is_named_unless_it_is_asked_for():
    model = nn.Sequential(nn.Linear(3, 3), Own(lambda self, x: 1 / x), nn.Tanh()).double()
    _, report = convert(model, inputs(), degree=5)
    assert [layer.name for layer in report.layers] == ["2"]
    assert [what for what, _ in report.not_converted] == ["1"]
    with pytest.raises(ValueError, match="is not finite"):
        convert(model, inputs(), degree=5, targets=["1"])


def test_a_part_of_an_activation_that_is_used_by_itself_is_named():
    hardswish = HardSwish()
    model = nn.Sequential(nn.Linear(3, 3), hardswish, nn.Linear(3, 3), hardswish.relu, hardswish).double()
    converted, report = convert(model, inputs(), degree=9)
    assert [layer.name for layer in report.layers] == ["1"]
    assert [type(m) for m in converted] == [nn.Linear, SLAF, nn.Linear, nn.ReLU6, SLAF]
    assert report.not_converted == [("3", "it is a part of 1 as well; use one for each")]


def test_a_module_can_be_named_by_any_of_its_names():
    act = nn.Tanh()
    converted, _ = convert(nn.Sequential(act, nn.Linear(3, 3), act).double(), inputs(), degree=9, targets=["2"])
    assert [type(m) for m in converted] == [SLAF, nn.Linear, SLAF]


def test_trials_are_quiet():
    model = Own(lambda self, x: self.act(x), act=nn.Tanh(), other=nn.Softmax())  # warns that it has no dim
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        convert(model, inputs(), degree=3)
    assert said == []
