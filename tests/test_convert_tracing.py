"""Conversion of activations that a model's code calls as functions: what torch.fx can trace, and what it cannot."""

import copy

import pytest
import torch
from small_networks import Calls, GELUActivation, Own, QuickGELUActivation, inputs
from torch import nn
from torch.nn import functional as F

from slaf_ext import SLAF, convert, training


class Convolutional(nn.Module):
    """Layers with a known norm, functional activations and a residual connection, which the bound must pass through."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(4 * 3 * 3, 5)
        self.drop = nn.Dropout()

    def forward(self, x):
        h = self.relu(self.norm(self.conv1(x)))
        h = h + F.gelu(self.conv2(h), approximate="tanh")
        h = torch.flatten(self.pool(h), 1)
        return self.drop(self.fc(h)).tanh()


def test_functional_calls_by_fx_and_bounds_through_convolutions():
    torch.manual_seed(0)
    model = Convolutional().double()
    x = inputs(1, (32, 2, 6, 6))
    model(x)
    model.eval()
    converted, report = convert(model, [(part, None) for part in x.split(10)], degree=9)
    assert [layer.activation for layer in report.layers] == ["ReLU", "GELU", "Tanh"]
    assert report.not_converted == []
    assert report.output_error == pytest.approx((converted(x) - model(x)).abs().max().item())
    assert 0 < report.output_error <= report.output_bound < 10
    assert report.parameters_added == 30
    assert sum(isinstance(m, SLAF) for m in converted.modules()) == 3
    assert "gelu" in {name for name, _ in converted.named_modules()}


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.Tanh()

    def forward(self, x):
        return self.act(x) if x.sum() > 1e9 else torch.relu(self.act(x))


def test_what_torch_fx_cannot_trace_is_said():
    model = Branching()
    x = inputs(0, (8, 3), torch.float32)
    converted, report = convert(model, x, degree=7)
    assert isinstance(converted, Branching)
    assert isinstance(converted.act, SLAF)
    assert report.output_bound is None
    ((what, why),) = report.not_converted
    assert what == "relu"
    assert "torch.fx cannot trace (symbolically traced variables" in why
    assert "call an nn.ReLU there instead" in why
    assert "unknown" in str(report)


def in_place_calls(self, x):
    h = self.fc(x)
    F.relu_(h)
    return torch.sigmoid_(self.fc(h)).tanh_()


def in_place_function_with_an_alias(self, x):
    h = self.fc(x)
    return F.elu(h, inplace=True) + h  # h already holds the result of elu


def in_place_module_with_an_alias(self, x):
    h = self.fc(x)
    return self.act(h) + h


def input_changed(self, x):
    return self.fc(F.relu(x, inplace=True))


@pytest.mark.parametrize(
    ("forward", "count"),
    [
        (in_place_calls, 3),
        (in_place_function_with_an_alias, 1),
        (in_place_module_with_an_alias, 1),
        (input_changed, 1),
        (lambda self, x: torch.special.expit(F.softshrink(self.fc(x))), 2),
    ],
)
def test_what_works_in_place_is_converted_and_the_report_is_about_the_model_itself(forward, count):
    torch.manual_seed(0)
    model, x = Calls(forward).double(), inputs()
    before = x.clone()
    converted, report = convert(model, x, degree=9)
    assert torch.equal(x, before)
    assert len(report.layers) == count
    with torch.no_grad():
        assert report.output_error == pytest.approx((model(x.clone()) - converted(x.clone())).abs().max().item())
    assert report.output_error <= report.output_bound * (1 + 1e-9) < 1


def test_activations_of_the_users_that_work_in_place():
    def same(self, x):
        h = self.fc(x)
        return self.act(h) + h

    swish = Own(lambda self, x: x.mul_(torch.sigmoid(x)))
    model = Own(same, act=swish, fc=nn.Linear(3, 3)).double()
    converted, report = convert(model, inputs(), degree=9)
    assert [layer.name for layer in report.layers] == ["act"]
    assert report.output_error == pytest.approx((converted(inputs()) - model(inputs())).abs().max().item())
    assert report.output_error <= report.output_bound < 0.1
    # This module overwrites its input with neither the input nor the result, so its calls are converted instead.
    model.act = Own(lambda self, x: F.relu(x, inplace=True) ** 2)
    _, report = convert(model, inputs(), degree=9)
    assert [layer.name for layer in report.layers] == ["relu"]
    assert report.output_error < 0.5


class Attention(nn.Module):
    """Functional activations, one of them called twice, beside modules whose own calls must not be reported."""

    def __init__(self):
        super().__init__()
        self.q, self.norm, self.act = nn.Linear(6, 6), nn.BatchNorm1d(4), GELUActivation()

    def forward(self, x):
        q = self.q(self.norm(x))
        if q.sum() > 1e9:
            return x
        h = (q @ q.transpose(-1, -2)).softmax(-1) @ x
        return self.act(F.gelu(h) + F.gelu(q)) + torch.relu(h).tanh()


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Attention(), Attention()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        positions = torch.arange(x.shape[1]).clamp(max=2)
        return torch.sigmoid(x[:, positions])


def test_calls_that_torch_fx_cannot_see_are_named_with_the_module_that_makes_them():
    torch.manual_seed(0)
    model, x = Encoder().double(), inputs(0, (16, 4, 6))
    converted, report = convert(model, x, degree=7)
    assert [layer.name for layer in report.layers] == ["layers.0.act", "layers.1.act"]
    calls = [f"layers.{i}: {what}" for i in (0, 1) for what in ("softmax", "gelu", "relu", "tanh")]
    assert [what for what, _ in report.not_converted] == [*calls, "sigmoid"]
    assert "call an nn.GELU there instead" in dict(report.not_converted)["layers.1: gelu"]
    assert report.output_error == pytest.approx((converted(x) - model.eval()(x)).abs().max().item())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in converted.modules())


def test_calls_of_what_computes_weights_are_not_named():
    model = nn.Sequential(Branching(), nn.Linear(3, 3), SLAF(3))
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    training.gate(model)
    _, report = convert(model, inputs(dtype=torch.float32), degree=3)
    assert [layer.name for layer in report.layers] == ["0.act"]
    assert [what for what, _ in report.not_converted] == ["0: relu"]


@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
@pytest.mark.parametrize("activation", ["gelu", "relu", nn.GELU(), QuickGELUActivation(), lambda x: x.tanh()])
def test_the_activations_of_transformer_layers_are_converted(kind, activation):
    torch.manual_seed(0)
    layer = kind(8, 2, 16, activation=activation, batch_first=True)
    memory = [] if kind is nn.TransformerEncoderLayer else [torch.randn(1, 5, 8).expand(4, -1, -1)]
    model = Own(lambda self, x: self.layer(x, *memory), layer=layer).double().eval()
    memory = [m.double() for m in memory]
    x = inputs(0, (4, 6, 8))
    converted, report = convert(model, x, degree=6)
    assert [layer.name for layer in report.layers] == ["layer.activation"]
    assert isinstance(converted.layer.activation, SLAF)
    with torch.no_grad():
        y = converted(x)
        assert report.output_error == pytest.approx((y - model(x)).abs().max().item())
        assert report.output_error > 1e-9
        converted.layer.activation.coeffs.mul_(2)
        assert not torch.allclose(converted(x), y)  # torch's fast path does not bypass it
        assert torch.equal(copy.deepcopy(converted)(x), converted(x))
    attention = ["self_attn"] if kind is nn.TransformerEncoderLayer else ["self_attn", "multihead_attn"]
    assert [what for what, _ in report.not_converted] == [f"layer.{name}" for name in attention]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # used by the original encoder
def test_an_encoder_with_a_padding_mask_is_converted():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
    padding = torch.arange(6).expand(4, 6) > 3
    model = Own(
        lambda self, x: self.encoder(x, src_key_padding_mask=padding)[:, :4], encoder=nn.TransformerEncoder(layer, 2)
    )
    x = inputs(0, (4, 6, 8), torch.float32)
    converted, report = convert(model, x, degree=6)
    assert len(report.layers) == 2
    with torch.no_grad():
        assert report.output_error == pytest.approx((converted(x) - model.eval()(x)).abs().max().item())
    assert 1e-4 < report.output_error < 0.1


def test_calls_within_a_layer_of_torch_are_named_where_fx_traces_the_model():
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=lambda x: x.softmax(-1), batch_first=True)
    _, report = convert(nn.Sequential(layer), inputs(0, (4, 6, 8), torch.float32), degree=3)
    assert [what for what, _ in report.not_converted] == ["0.self_attn", "0.activation: softmax"]


def test_recurrent_and_scripted_modules_are_named():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.cell = nn.LSTM(3, 4), nn.GRUCell(4, 2)
            self.scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
            self.act = torch.jit.script(nn.Tanh())

        def forward(self, x):
            return self.act(self.scripted(self.cell(self.lstm(x)[0])))

    x = inputs(0, (4, 3), torch.float32)
    _, report = convert(Last(), x, degree=3)
    assert [what for what, _ in report.not_converted] == ["lstm", "cell", "scripted", "act"]
    _, report = convert(Last(), x, degree=3, targets="act")
    assert [what for what, _ in report.not_converted] == ["act"]


class Scaled(nn.Module):
    def forward(self, x, scale=1.0):
        return scale * x.tanh()


def test_an_activation_that_is_given_more_than_its_input_is_not_replaced_as_a_whole():
    def forward(self, x):
        return self.by(self.two(x, 2.0), scale=3.0) + self.one(x)

    parts = {"two": Scaled(), "by": Scaled(), "one": Scaled()}
    _, report = convert(Own(forward, **parts), inputs(), degree=3)
    assert [layer.name for layer in report.layers] == ["tanh", "tanh_1", "one"]
    _, report = convert(Own(lambda self, x: forward(self, x) if x.sum() < 1e9 else x, **parts), inputs(), degree=3)
    assert [layer.name for layer in report.layers] == ["one"]
    assert [what for what, _ in report.not_converted] == ["two", "by"]


def test_arguments_that_are_left_out_keep_their_defaults():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x, mask=None, scale=2.0):
            h = F.gelu(self.fc(x)) * scale
            return h if mask is None else h * mask

    class Negated(Masked):
        def forward(self, x, negative=False):
            return -super().forward(x) if negative else super().forward(x)

    for kind in (Masked, Negated):
        model, x = kind().double(), inputs()
        converted, report = convert(model, x, degree=5)
        assert [layer.activation for layer in report.layers] == ["GELU"]
        assert report.output_error == pytest.approx((converted(x) - model(x)).abs().max().item())
