"""What the pictures show, read back from the axes."""

import builtins

import matplotlib as mpl
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
    from matplotlib import pyplot

    pyplot.close("all")


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
    (back,) = [other for other in ax.figure.axes if other is not ax]
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
    with pytest.raises(ValueError, match="nothing to draw"):
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
