"""Conversion: the theorem, the report, and what is left alone."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import slaf_ext
from slaf_ext import SLAF, convert, training


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


class Own(nn.Module):
    """A module of the user's own class around a function."""

    def __init__(self, function, **state):
        super().__init__()
        self.function = function
        for name, value in state.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.function(self, x)


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
    assert what == "relu"
    assert "torch.fx cannot trace (symbolically traced variables" in why
    assert "call an nn.ReLU there instead" in why
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
        (mlp(nn.Tanh), (), "no inputs"),
        (mlp(nn.Tanh), None, "calibration is a NoneType; it must be inputs like those that the model will see"),
        (mlp(nn.Tanh), 5, "calibration is a int"),
        (mlp(nn.Tanh), "data", "calibration is a str"),
        (mlp(nn.Tanh), {"x": inputs()}, "calibration is a dict"),
        (mlp(nn.Tanh), np.ones((4, 3)), "a calibration batch is a ndarray; give tensors"),
        (mlp(nn.Tanh), [()], "a calibration batch is a tuple; give tensors"),
        (mlp(nn.Tanh), [{"x": inputs()}], "a calibration batch is a dict; .* convert a module around it"),
        (mlp(nn.Tanh), torch.full((2, 3), torch.nan, dtype=torch.float64), "batch .* holds nan or inf"),
        (mlp(nn.Tanh), [inputs(), torch.full((2, 3), torch.inf, dtype=torch.float64)], "holds nan or inf"),
        (
            nn.Sequential(Own(lambda self, x: x / 0), nn.Tanh()),
            inputs(),
            "the input of 1 ranges over .* must be finite",
        ),
        (mlp(nn.Tanh), inputs().long(), r"fails on a calibration batch of shape \(512, 3\) and torch.int64: "),
        (mlp(nn.Tanh), inputs(shape=(5, 4)), r"fails on a calibration batch of shape \(5, 4\)"),
        (nn.Sequential(nn.Tanh()), torch.arange(5), "the input of 0 is torch.int64 .* must be floating-point"),
        (nn.LSTM(3, 2, dtype=torch.float64), inputs(), "returns a tuple"),
        (F.relu, inputs(), "model is a builtin_function_or_method|model is a function"),
        (nn.ReLU, inputs(), "model is a type; it must be an nn.Module"),
        (torch.jit.script(nn.Tanh()), inputs(), "convert the model before scripting it"),
    ],
)
def test_wrong_models_and_calibration_get_a_sentence(model, data, message):
    with pytest.raises((ValueError, TypeError), match=message):
        convert(model, data, degree=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[({"degree": value}, f"degree is {value!r}; it must be an integer") for value in (None, -1, 2.5, "3", True)],
        *[({"margin": value}, f"margin is {value!r}; it must") for value in (math.nan, math.inf, -0.5, "0.1", None)],
        ({"basis": "fourier"}, "unknown basis 'fourier'"),
        ({"method": "best"}, "method is 'best'; it must be one of 'lstsq'"),
        ({"method": ["minimax"]}, "method is"),
        ({"outside": "wrap"}, "outside is 'wrap'; it must be one of"),
        ({"outside": None}, "outside is None"),
        ({"targets": 5}, "target 5 is neither a module's name nor a type of modules"),
        ({"targets": int}, "target <class 'int'> is neither"),
        ({"targets": [nn.Tanh, 5]}, "target 5 is neither"),
        ({"targets": nn.Tanh()}, r"target Tanh\(\) is neither"),
        ({"targets": []}, "targets is empty"),
    ],
)
def test_wrong_arguments_get_a_sentence_before_anything_is_computed(options, message):
    def data():
        pytest.fail("the calibration data was looked at")
        yield

    class Loader:
        __iter__ = staticmethod(data)

    with pytest.raises((ValueError, TypeError), match=message):
        convert(mlp(nn.Tanh), Loader(), **{"degree": 3, **options})


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("tanh", "target 'tanh' is not in the model; its activations are 1, 3"),
        (nn.GELU, "is not in the model; its activations are 1, 3"),
        ("0", "target '0' does not work element by element"),
    ],
)
def test_targets_that_do_not_fit_the_model_get_a_sentence(targets, message):
    with pytest.raises(ValueError, match=message):
        convert(mlp(nn.Tanh), inputs(), degree=3, targets=targets)


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

    model = nn.Sequential(Calls(forward), nn.GLU(-1), nn.Softmax(-1)).double()
    model[0].fc = nn.Linear(3, 4).double()
    _, report = convert(model, inputs(), degree=3)
    assert report.layers == []
    assert [what for what, _ in report.not_converted] == [
        *("hardshrink", "clamp", "maximum", "softmax", "1", "2", "0.act")
    ]
    assert "1: GLU is not a known elementwise function" in str(report)


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


def test_a_model_that_is_an_activation():
    converted, report = convert(nn.Tanh(), inputs(), degree=9)
    assert sum(isinstance(m, SLAF) for m in converted.modules()) == 1
    assert report.layers[0].error <= report.layers[0].bound


class GELUActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = F.gelu

    def forward(self, input):
        return self.act(input)


class NewGELUActivation(nn.Module):
    def forward(self, input):
        return 0.5 * input * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (input + 0.044715 * torch.pow(input, 3.0))))


class QuickGELUActivation(nn.Module):
    def forward(self, input):
        return input * torch.sigmoid(1.702 * input)


class ClippedGELUActivation(nn.Module):
    """Holds another activation, and does more."""

    def __init__(self):
        super().__init__()
        self.inner = GELUActivation()

    def forward(self, x):
        return torch.clip(self.inner(x), -1, 1)


class HardSwish(nn.Module):
    """Holds one of torch's."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x):
        return x * self.relu(x + 3) / 6


class LaplaceActivation(nn.Module):
    def forward(self, input, mu=0.707107, sigma=0.282095):
        return 0.5 * (1.0 + torch.erf((input - mu).div(sigma * math.sqrt(2.0))))


class ReLUSquared(nn.Module):
    def forward(self, x):
        return F.relu(x) ** 2


class Block(nn.Module):
    """`traceable` or not, one activation module."""

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
        *(LaplaceActivation, ReLUSquared, nn.Threshold),
    ],
)
def test_activations_of_any_class_are_known_by_what_they_do(act, traceable):
    torch.manual_seed(0)
    model = nn.Sequential(Block(act() if act is not nn.Threshold else act(0, 0), traceable)).double()
    x = inputs()
    converted, report = convert(model, x, degree=14)
    (layer,) = report.layers  # as a whole: neither what it holds nor what it calls
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
    Own(lambda self, x: F.layer_norm(x, x.shape[-1:])),
    Own(lambda self, x: torch.softmax(x, -1)),
    Own(lambda self, x: x.flatten(1).tanh() if x.dim() > 2 else x),
    Own(lambda self, x: F.max_pool1d(x, 3, 1, 1)),
    Own(lambda self, x: F.glu(x.repeat_interleave(2, -1))),
    Own(lambda self, x: torch.tanh(x) + torch.rand(())),
    Own(lambda self, x: torch.tanh(x) if x.sum() < 1e6 else torch.relu(x)),
    Own(lambda self, x: torch.tanh(x) if x.abs().max() < 1e6 else x),
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
    *(nn.Identity(), nn.Dropout(), nn.Dropout1d(), nn.AlphaDropout(), nn.Flatten(), nn.ModuleList([nn.Dropout()])),
    *(nn.LayerNorm(3, elementwise_affine=False), nn.BatchNorm1d(3, affine=False), nn.InstanceNorm1d(3)),
    *(nn.MaxPool1d(3, 1, 1), nn.AvgPool1d(1), nn.AdaptiveAvgPool1d(3), nn.Upsample(scale_factor=1), nn.LPPool1d(2, 1)),
    *(nn.ReflectionPad1d(1), nn.ChannelShuffle(1), nn.PixelShuffle(1), nn.CosineSimilarity(), nn.MSELoss()),
    *(nn.LocalResponseNorm(1), nn.Unflatten(0, (1, -1)), nn.Sequential()),
]


@pytest.mark.parametrize("module", NOT_ELEMENTWISE)
def test_what_is_no_function_of_one_number_is_not_taken_for_one(module):
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


class Attention(nn.Module):
    """Functional calls, some twice, and a norm of torch's own."""

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
@pytest.mark.parametrize("activation", ["gelu", "relu", F.gelu, nn.GELU(), QuickGELUActivation(), lambda x: x.tanh()])
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
        assert not torch.allclose(converted(x), y)  # no fast path around it
        assert torch.equal(copy.deepcopy(converted)(x), converted(x))
    attention = ["self_attn"] if kind is nn.TransformerEncoderLayer else ["self_attn", "multihead_attn"]
    assert [what for what, _ in report.not_converted] == [f"layer.{name}" for name in attention]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # which the original uses
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
    # What is left in the input here is neither the input nor the result, so the calls are converted instead.
    model.act = Own(lambda self, x: F.relu(x, inplace=True) ** 2)
    _, report = convert(model, inputs(), degree=9)
    assert [layer.name for layer in report.layers] == ["relu"]
    assert report.output_error < 0.5


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


def test_trials_are_quiet():
    model = Own(lambda self, x: self.act(x), act=nn.Tanh(), other=nn.Softmax())  # of which dim?
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        convert(model, inputs(), degree=3)
    assert said == []


@pytest.mark.parametrize(
    ("outside", "sentence"),
    [
        ("linear", "outside='linear': outside its domain a layer is linear, not polynomial"),
        ("clamp", "outside='clamp': outside its domain a layer is constant, not polynomial"),
        (
            "extrapolate",
            "outside='extrapolate': polynomial everywhere; values can grow without limit outside the domains",
        ),
    ],
)
def test_the_report_says_what_happens_outside_the_range(outside, sentence):
    converted, report = convert(mlp(nn.Tanh), inputs(), degree=5, outside=outside)
    assert report.outside == outside == converted[1].outside
    assert sentence in str(report).splitlines()


def test_the_default_says_that_it_is_no_polynomial_outside():
    assert "linear, not polynomial" in str(convert(mlp(nn.Tanh), inputs(), degree=5)[1])


def test_a_default_device_does_not_matter():
    """With meta, on which nothing can be computed, so that whatever is made on the default device shows."""
    net = nn.Sequential(nn.Linear(2, 4), nn.GELU(), nn.Linear(4, 1), QuickGELUActivation())
    x = torch.randn(64, 2)
    with torch.device("meta"):
        converted, report = convert(net, x, degree=5)
    assert [layer.name for layer in report.layers] == ["1", "3"]
    assert (converted(x) - net(x)).abs().max() < 0.1


def test_it_is_a_function_beside_a_package_with_its_reports():
    from slaf_ext.convert import ConversionReport, LayerReport

    _, report = slaf_ext.convert(mlp(nn.Tanh), inputs(), degree=3)
    assert isinstance(report, ConversionReport)
    assert isinstance(report.layers[0], LayerReport)
    assert pickle.loads(pickle.dumps(report)) == report
