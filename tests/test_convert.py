"""Conversion: the theorem, the report, and what is left alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from slaf_ext import SLAF, convert


def mlp(activation, seed=0, widths=(3, 16, 16, 2), dtype=torch.float64):
    torch.manual_seed(seed)
    layers = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1], dtype=dtype), activation()]
    return nn.Sequential(*layers[:-1])


def inputs(seed=0, shape=(512, 3), dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("activation", "last"), [(nn.Tanh, 1e-3), (nn.ReLU, 0.1)])
def test_the_error_falls_with_the_degree_and_stays_below_the_bound(activation, last):
    model, x = mlp(activation), inputs()
    errors, bounds = [], []
    for degree in (2, 4, 8, 16):
        converted, report = convert(model, x, degree=degree)
        with torch.no_grad():
            measured = (converted(x) - model(x)).abs().max().item()
        assert measured == pytest.approx(report.output_error)
        assert measured <= report.output_bound
        for layer in report.layers:
            assert layer.error <= layer.bound * (1 + 1e-9)
        errors.append(measured)
        bounds.append(report.output_bound)
    assert errors == sorted(errors, reverse=True)
    assert bounds == sorted(bounds, reverse=True)
    assert errors[-1] < last


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    activation=st.sampled_from([nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.ELU, nn.Hardswish]),
    degree=st.integers(1, 9),
    margin=st.sampled_from([0.0, 0.1]),
    method=st.sampled_from(["minimax", "lstsq", "interpolate"]),
)
def test_the_bound_holds_at_random(seed, activation, degree, margin, method):
    model = mlp(activation, seed)
    _, report = convert(model, inputs(seed), degree=degree, margin=margin, method=method)
    # Where the worst of the fit lies at an end of the range the first layer attains its bound, but for rounding.
    assert report.output_error <= report.output_bound * (1 + 1e-9)
    assert all(layer.error <= layer.bound * (1 + 1e-9) for layer in report.layers)


def test_the_bound_is_the_recursion_done_by_hand():
    model, x = mlp(nn.Sigmoid), inputs()
    _, report = convert(model, x, degree=3)
    error = 0.0
    for linear, layer in zip((model[0], model[2]), report.layers, strict=True):
        norm = torch.linalg.matrix_norm(linear.weight, torch.inf).item()
        assert layer.lipschitz == pytest.approx(0.25, rel=1e-3)  # the slope of sigmoid at 0
        error = layer.lipschitz * norm * error + layer.fit_error
        assert layer.bound == pytest.approx(error)
    assert report.output_bound == pytest.approx(error * torch.linalg.matrix_norm(model[4].weight, torch.inf).item())


def test_the_original_is_untouched():
    model, x = mlp(nn.Tanh).train(), inputs()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    types = [type(m) for m in model]
    converted, _ = convert(model, x, degree=5)
    assert model.training
    assert [type(m) for m in model] == types
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in (*model.modules(), *converted.modules()))
    assert [type(m) for m in converted] == [nn.Linear, SLAF, nn.Linear, SLAF, nn.Linear]
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in converted.parameters()}


class Convolutional(nn.Module):
    """Everything whose norm is known, functional calls, a residual and a module used under two names."""

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


def test_targets_by_name_and_by_type():
    model, x = mlp(nn.Tanh), inputs()
    converted, report = convert(model, x, degree=3, targets=["3"])
    assert [type(m) for m in converted] == [nn.Linear, nn.Tanh, nn.Linear, SLAF, nn.Linear]
    assert report.output_error <= report.output_bound
    converted, report = convert(model, x, degree=3, targets=[nn.Tanh])
    assert len(report.layers) == 2
    with pytest.raises(ValueError, match="target 'tanh' is not in the model; its activations are 1, 3"):
        convert(model, x, degree=3, targets=["tanh"])


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
    assert "functional calls" in what
    assert "torch.fx cannot trace" in why
    assert "unknown" in str(report)


def test_a_shared_module_is_replaced_under_all_its_names():
    shared = nn.Tanh()
    model = nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 3), shared).double()
    converted, report = convert(model, inputs(), degree=5)
    assert converted[1] is converted[3]
    assert isinstance(converted[1], SLAF)
    assert len(report.layers) == 1
    assert report.output_bound is None or report.output_error <= report.output_bound


def test_layers_left_alone_and_why():
    model = nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 2)).double()
    converted, report = convert(model, inputs(), degree=6)
    assert isinstance(converted[1], nn.PReLU)
    assert isinstance(converted[3], SLAF)
    assert report.not_converted == [("1", "PReLU with 4 slopes is not one function")]
    assert report.output_error <= report.output_bound
    assert "not converted: 1: PReLU" in str(report)

    model = mlp(nn.Tanh)
    model.unused = nn.ReLU()
    model.forward = lambda x: nn.Sequential(*list(model)[:5])(x)
    assert ("unused", "calibration never reached it") in convert(model, inputs(), degree=3)[1].not_converted


def test_the_report_is_a_table_of_80_columns():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("a_block_with_a_rather_long_name", mlp(nn.Hardswish))
    text = str(convert(model, inputs(), degree=4)[1])
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split() == ["layer", "was", "domain", "fit", "error", "bound", "measured"]
    assert "Hardswish" in text
    assert "10 parameters added" in text


def test_outside_the_range_the_converted_network_stays_lipschitz():
    model, x = mlp(nn.Tanh), inputs()
    converted, _ = convert(model, x, degree=12)
    far = converted(100 * x)
    assert far.abs().max() < 1e4
    assert convert(model, x, degree=12, outside="extrapolate")[0](100 * x).abs().max() > 1e10


def test_slafs_that_are_there_already_do_not_stop_the_trace():
    model = nn.Sequential(nn.Linear(3, 3), SLAF(2), nn.Linear(3, 3), nn.Tanh()).double()
    converted, report = convert(model, inputs(), degree=5)
    assert isinstance(converted[3], SLAF)
    assert report.not_converted == []


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (mlp(nn.Tanh), [], "no inputs"),
        (mlp(nn.Tanh), torch.full((2, 3), torch.nan, dtype=torch.float64), "must be finite"),
        (mlp(nn.Tanh), [{"x": inputs()}], "a calibration batch is a dict"),
        (nn.LSTM(3, 2, dtype=torch.float64), inputs(), "returns a tuple"),
    ],
)
def test_wrong_arguments_get_a_sentence(model, data, message):
    with pytest.raises(ValueError, match=message):
        convert(model, data, degree=3)


class Calls(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.act = nn.ReLU(inplace=True)
        self.own_forward = forward

    def forward(self, x):
        return self.own_forward(self, x)


def in_place_calls(self, x):
    h = self.fc(x)
    F.relu_(h)
    return torch.sigmoid_(self.fc(h)).tanh_()


def in_place_function_with_an_alias(self, x):
    h = self.fc(x)
    return F.elu(h, inplace=True) + h  # h is elu's result by then


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


def test_activations_that_are_not_known_are_listed():
    def forward(self, x):
        h = F.hardshrink(self.fc(x)) + self.fc(x).clamp(min=0)
        return torch.maximum(h, self.fc(x)).softmax(-1)

    model = nn.Sequential(Calls(forward), nn.Threshold(0, 0), nn.Softmax(-1)).double()
    _, report = convert(model, inputs(), degree=3)
    assert report.layers == []
    assert [what for what, _ in report.not_converted] == [
        *("hardshrink", "clamp", "maximum", "softmax", "1", "2", "0.act")
    ]
    assert "1: Threshold is not known as a function of one number" in str(report)


@pytest.mark.parametrize(
    ("forward", "known"),
    [
        (lambda self, x: torch.add(self.act(self.fc(x)), x, alpha=2), True),
        (lambda self, x: torch.add(x, torch.tanh(self.fc(x)), alpha=10), False),
        (lambda self, x: F.dropout(torch.tanh(self.fc(x)), 0.5, self.training), True),
        (lambda self, x: F.avg_pool2d(torch.tanh(self.fc(x))[None, None], 3), True),
        (lambda self, x: F.avg_pool2d(torch.tanh(self.fc(x))[None, None], 3, divisor_override=1), False),
        (lambda self, x: nn.AvgPool2d(3, divisor_override=1)(torch.tanh(self.fc(x))[None, None]), False),
    ],
)
def test_a_bound_is_given_only_where_it_holds(forward, known):
    torch.manual_seed(0)
    _, report = convert(Calls(forward).double(), inputs(), degree=4)
    assert report.output_bound is None or report.output_error <= report.output_bound * (1 + 1e-9)
    assert known or report.output_bound is None


def test_slopes_far_out_and_on_a_wide_range_count():
    for activation in (nn.Softplus(beta=0.02), nn.Hardtanh(60.0, 70.0)):
        model = nn.Sequential(nn.Tanh(), nn.Linear(1, 1, bias=False), activation).double()
        nn.init.constant_(model[1].weight, 100.0)
        x = torch.linspace(-3, 3, 999, dtype=torch.float64)[:, None]
        _, report = convert(model, x, degree=4, targets=["0"])
        assert report.output_error <= report.output_bound * (1 + 1e-9)
    _, report = convert(nn.Sequential(nn.Tanh()), torch.linspace(-1e5, 1e5, 4, dtype=torch.float64), degree=1)
    assert report.layers[0].lipschitz == pytest.approx(1, rel=1e-4)


def test_a_single_target_and_targets_that_are_no_functions_of_one_number():
    model, x = mlp(nn.Tanh), inputs()
    assert [layer.name for layer in convert(model, x, degree=3, targets="1")[1].layers] == ["1"]
    assert len(convert(model, x, degree=3, targets=nn.Tanh)[1].layers) == 2
    model = nn.Sequential(nn.Linear(3, 3), nn.Softmax(-1), Square()).double()
    for target in ("0", nn.Softmax):
        with pytest.raises(ValueError, match="does not work element by element"):
            convert(model, x, degree=3, targets=[target])
    assert convert(model, x, degree=2, targets=[Square])[1].output_error < 1e-12


class Square(nn.Module):
    def forward(self, x):
        return x * x


def test_a_generator_serves_as_calibration():
    x = inputs()
    _, report = convert(mlp(nn.Tanh), (part for part in x.split(100)), degree=3)
    assert report.output_error == pytest.approx(convert(mlp(nn.Tanh), x, degree=3)[1].output_error)


def test_a_margin_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"margin is -0.5"):
        convert(mlp(nn.Tanh), inputs(), degree=3, margin=-0.5)


def test_a_model_that_is_an_activation():
    converted, report = convert(nn.Tanh(), inputs(), degree=9)
    assert sum(isinstance(m, SLAF) for m in converted.modules()) == 1
    assert report.layers[0].error <= report.layers[0].bound
