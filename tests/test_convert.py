"""Conversion: its error bound, its report, its targets, and the errors for invalid arguments."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import Calls, Own, QuickGELUActivation, inputs, mlp
from torch import nn
from torch.nn import functional as F

import slaf_ext
from slaf_ext import SLAF, convert


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
    # The first layer attains its bound, up to rounding, where the largest fitting error lies at an end of the range.
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


def test_targets_by_name_and_by_type():
    model, x = mlp(nn.Tanh), inputs()
    converted, report = convert(model, x, degree=3, targets=["3"])
    assert [type(m) for m in converted] == [nn.Linear, nn.Tanh, nn.Linear, SLAF, nn.Linear]
    assert report.output_error <= report.output_bound
    converted, report = convert(model, x, degree=3, targets=[nn.Tanh])
    assert len(report.layers) == 2
    with pytest.raises(ValueError, match="target 'tanh' is not in the model; its activations are 1, 3"):
        convert(model, x, degree=3, targets=["tanh"])


class Square(nn.Module):
    def forward(self, x):
        return x * x


def test_a_single_target_and_targets_that_are_not_elementwise():
    model, x = mlp(nn.Tanh), inputs()
    assert [layer.name for layer in convert(model, x, degree=3, targets="1")[1].layers] == ["1"]
    assert len(convert(model, x, degree=3, targets=nn.Tanh)[1].layers) == 2
    model = nn.Sequential(nn.Linear(3, 3), nn.Softmax(-1), Square()).double()
    for target in ("0", nn.Softmax):
        with pytest.raises(ValueError, match="does not work element by element"):
            convert(model, x, degree=3, targets=[target])
    assert convert(model, x, degree=2, targets=[Square])[1].output_error < 1e-12


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


@pytest.mark.parametrize(
    ("outside", "sentence"),
    [
        ("linear", "outside='linear': outside its domain a layer is linear, not polynomial"),
        ("clamp", "outside='clamp': outside its domain a layer is constant, not polynomial"),
        (
            "extrapolate",
            "outside='extrapolate': a polynomial everywhere, which grows outside its domain",
        ),
    ],
)
def test_the_report_says_what_happens_outside_the_range(outside, sentence):
    converted, report = convert(mlp(nn.Tanh), inputs(), degree=5, outside=outside)
    assert report.outside == outside == converted[1].outside
    assert sentence in str(report).splitlines()


def test_the_default_says_that_it_is_no_polynomial_outside():
    assert "linear, not polynomial" in str(convert(mlp(nn.Tanh), inputs(), degree=5)[1])


def test_slafs_that_are_there_already_do_not_stop_the_trace():
    model = nn.Sequential(nn.Linear(3, 3), SLAF(2), nn.Linear(3, 3), nn.Tanh()).double()
    converted, report = convert(model, inputs(), degree=5)
    assert isinstance(converted[3], SLAF)
    assert report.not_converted == []


def test_a_generator_serves_as_calibration():
    x = inputs()
    _, report = convert(mlp(nn.Tanh), (part for part in x.split(100)), degree=3)
    assert report.output_error == pytest.approx(convert(mlp(nn.Tanh), x, degree=3)[1].output_error)


def test_a_model_that_is_an_activation():
    converted, report = convert(nn.Tanh(), inputs(), degree=9)
    assert sum(isinstance(m, SLAF) for m in converted.modules()) == 1
    assert report.layers[0].error <= report.layers[0].bound


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (mlp(nn.Tanh), [], "no inputs"),
        (mlp(nn.Tanh), None, "calibration is a NoneType; it must be inputs like those that the model will see"),
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
        (nn.ReLU, inputs(), "model is a type; it must be a torch.nn.Module"),
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


def test_a_default_device_does_not_matter():
    """The default device is meta, which computes nothing, so that a tensor made there by mistake raises an error."""
    net = nn.Sequential(nn.Linear(2, 4), nn.GELU(), nn.Linear(4, 1), QuickGELUActivation())
    x = torch.randn(64, 2)
    with torch.device("meta"):
        converted, report = convert(net, x, degree=5)
    assert [layer.name for layer in report.layers] == ["1", "3"]
    assert (converted(x) - net(x)).abs().max() < 0.1


def test_convert_is_a_function_and_a_package_that_holds_the_reports():
    from slaf_ext.convert import ConversionReport, LayerReport

    _, report = slaf_ext.convert(mlp(nn.Tanh), inputs(), degree=3)
    assert isinstance(report, ConversionReport)
    assert isinstance(report.layers[0], LayerReport)
    assert pickle.loads(pickle.dumps(report)) == report
