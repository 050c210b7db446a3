"""What the pictures show, read back from the axes."""

import builtins

import matplotlib as mpl
import matplotlib.pyplot
import numpy as np
import pytest
import torch
from torch import nn

import slaf_ext
from slaf_ext import SLAF


@pytest.fixture(autouse=True)
def headless():
    mpl.use("agg")
    yield
    mpl.pyplot.close("all")


def test_curves_are_the_functions():
    f = SLAF(3, 2, domain=(-2, 2), init=torch.randn(2, 4), outside="clamp")
    ax = f.plot()
    assert len(ax.lines) == 2 + 2  # two groups, two ends of the domain
    for group, line in enumerate(ax.lines[:2]):
        x, y = line.get_data()
        inside = np.abs(x) <= 2
        np.testing.assert_allclose(y[inside], f.to_numpy(group)(x[inside]), atol=1e-5)
        assert y[0] == pytest.approx(f.to_numpy(group)(-2.0), abs=1e-5)


def test_histogram_and_choice_of_groups():
    f = SLAF(2, 100, normalize=True)
    f(torch.randn(50, 100))
    ax = f.plot(inputs=torch.cat([torch.linspace(-5, 3, 1000), torch.tensor([torch.inf])]), max_groups=7)
    assert [line.get_label() for line in ax.lines[:7]] == [f"group {g}" for g in (0, 16, 33, 49, 66, 82, 99)]
    assert ax.lines[0].get_xdata()[[0, -1]].tolist() == [-5, 3]
    (back,) = [other for other in ax.figure.axes if other.patches]
    assert sum(bar.get_height() for bar in back.patches) == 1000
    assert f.training


def test_a_curve_spans_the_inputs_of_its_own_group():
    # Each is tame where its own inputs are, and 10⁴ where the other's are.
    f = SLAF(4, 2, basis="monomial", init=torch.tensor([[0.0, 1, 0, 0, 0], [0.0, 0, 0, 0, 1]]), dtype=torch.float64)
    inputs = torch.stack([torch.linspace(-10, 10, 101), torch.linspace(-1, 1, 101)], 1)
    ax = f.plot(inputs=inputs)
    assert [line.get_xdata()[[0, -1]].tolist() for line in ax.lines[:2]] == [[-10, 10], [-1, 1]]
    assert ax.get_ylim()[1] < 15


@pytest.mark.parametrize("inputs", [torch.full((3,), torch.nan), torch.zeros(0), torch.full((3,), 2.0)])
def test_inputs_that_make_no_histogram(inputs):
    assert len(SLAF(2, domain=(-2, 2)).plot(inputs=inputs).lines) >= 1


def steady(groups):
    """Rows of f(x) = x on (-1, 1), in Chebyshev's T."""
    return torch.tensor([0.0, 1, 0, 0, 0, 0]).repeat(groups, 1)


@pytest.mark.parametrize("inputs", [None, "seen"])
@pytest.mark.parametrize("groups", [2, 3, 16, 64])
def test_a_group_that_soars_does_not_flatten_the_rest(groups, inputs):
    rows = steady(groups)
    rows[0, 5] = 1000
    ax = SLAF(5, groups, domain=None, init=rows).plot(inputs=inputs and torch.rand(500, groups) * 2 - 1)
    bottom, top = ax.get_ylim()
    assert bottom <= -0.95
    assert top >= 0.95
    assert top - bottom < 8


@pytest.mark.parametrize("inputs", [None, torch.cat([torch.linspace(-1, 1, 999), torch.tensor([1.3])])])
def test_one_steep_tangent_does_not_flatten_the_curve(inputs):
    # The tangent at 1 has a slope of about 25 · 1, and rises by 5 where the curve itself is within ±1.2.
    rows = torch.tensor([0.0, 0.2, 0, 0, 0, 1])
    ax = SLAF(5, domain=None, outside="linear", init=rows).plot(inputs=inputs)
    assert max(line.get_ydata().max() for line in ax.lines[:1]) > 5
    assert ax.get_ylim()[1] < 4


def test_rare_inputs_far_away_do_not_narrow_the_rest():
    ax = SLAF(1).plot(inputs=torch.cat([torch.linspace(-1, 1, 999), torch.tensor([1e6])]))
    assert ax.get_xlim()[1] < 4
    assert ax.lines[0].get_xdata()[-1] < 4
    assert sum(bar.get_height() > 0 for ax in ax.figure.axes for bar in ax.patches) > 20


def test_curves_that_differ_are_shown_whole():
    ax = SLAF(0, 3, init=torch.tensor([[0.0], [1.0], [1.5]])).plot()
    assert ax.get_ylim()[0] < 0
    assert ax.get_ylim()[1] > 1.5
    ax = SLAF(1, 4, basis="monomial", init=torch.tensor([[0.0, 1], [0, -1], [1, 0.5], [0, 1.5]])).plot()
    assert ax.get_ylim()[0] <= min(line.get_ydata().min() for line in ax.lines[:4])
    assert ax.get_ylim()[1] >= max(line.get_ydata().max() for line in ax.lines[:4])


def test_values_that_are_not_finite_do_no_harm():
    rows = steady(3)
    rows[1, 2] = torch.nan
    assert SLAF(5, 3, init=rows).plot().get_ylim()[1] < 4
    SLAF(5, init=torch.full((6,), torch.nan)).plot()


@pytest.mark.parametrize(
    ("groups", "most", "legend", "title", "bar"),
    [
        (1, 16, [], "", ""),
        (3, 16, ["group 0", "group 1", "group 2"], "", ""),
        (64, 2, ["group 0", "group 63"], "2 of 64 groups", ""),
        (64, 1, ["group 0"], "1 of 64 groups", ""),
        (16, 16, [], "", "group"),
        (64, np.int64(16), [], "", "16 of 64 groups"),
    ],
)
def test_a_key_tells_the_groups_apart(groups, most, legend, title, bar):
    ax = SLAF(2, groups).plot(max_groups=most)
    shown = ax.get_legend()
    assert ([text.get_text() for text in shown.get_texts()] if shown else []) == legend
    assert (shown.get_title().get_text() if shown else "") == title
    assert [other.get_ylabel() for other in ax.figure.axes if other is not ax] == ([bar] if bar else [])
    colors = {mpl.colors.to_hex(line.get_color()) for line in ax.lines[: min(groups, most)]}
    assert len(colors) == min(groups, most)


def test_the_histogram_lies_behind_the_curves_where_there_is_a_colour_bar():
    figure = mpl.pyplot.figure()
    ax = SLAF(2, 64).plot(figure.add_subplot(), inputs=torch.randn(100, 64))
    figure.canvas.draw()
    (back,) = [other for other in figure.axes if other.patches]
    assert back.get_position().bounds == pytest.approx(ax.get_position().bounds)
    assert ax.get_zorder() > back.get_zorder()


@pytest.mark.parametrize("value", [0, -1, 2.5, "a", None, True])
def test_bad_numbers_are_named(value):
    with pytest.raises(ValueError, match=f"max_groups is {value!r}; it must be an integer from 1 up"):
        SLAF(2).plot(max_groups=value)
    with pytest.raises(ValueError, match=f"columns is {value!r}; it must be an integer from 1 up"):
        slaf_ext.overview(SLAF(2), torch.zeros(1), columns=value)
    assert not mpl.pyplot.get_fignums()


@pytest.mark.parametrize(("inputs", "kind"), [([1.0], "list"), (torch.zeros(2, dtype=torch.cfloat), "torch.complex64")])
def test_bad_inputs_are_named(inputs, kind):
    with pytest.raises(TypeError, match=f"inputs is of type {kind}; it must be a tensor of real numbers"):
        SLAF(2).plot(inputs=inputs)


def test_overview_has_a_picture_for_each_activation():
    model = nn.Sequential(nn.Linear(3, 4), SLAF(3, 4, normalize=True), nn.Linear(4, 4), SLAF(2), nn.Dropout())
    model[4].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    figure = slaf_ext.overview(model, torch.randn(64, 3))
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["1: degree 3, 4 groups", "3: degree 2, 1 group"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (model.training, model[4].training) == (True, False)
    assert not model[1]._forward_pre_hooks
    with pytest.raises(ValueError, match="nothing to plot"):
        slaf_ext.overview(nn.Linear(3, 3), torch.randn(2, 3))


def test_without_matplotlib_there_is_a_sentence(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        SLAF(2).plot()
    with pytest.raises(ImportError, match="pip install matplotlib"):
        slaf_ext.overview(SLAF(2), torch.zeros(1))
