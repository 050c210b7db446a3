"""The short examples run, and compute what they say."""

import pytest
import torch

from examples import pinn


def test_the_derivatives_of_the_network_are_autograds():
    layers, x = pinn.network().double(), torch.linspace(-1, 1, 9, dtype=torch.float64).unsqueeze(1)
    for mine, true in zip(pinn.jet(layers, x), pinn.jet_by_autograd(layers, x), strict=True):
        torch.testing.assert_close(mine, true)
    losses = [pinn.loss(layers, x, jet) for jet in (pinn.jet, pinn.jet_by_autograd)]
    for mine, true in zip(*(torch.autograd.grad(loss, layers.parameters()) for loss in losses), strict=True):
        torch.testing.assert_close(mine, true)


@pytest.mark.parametrize("example", [pinn])
def test_it_runs(example, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [example.__name__, "--quick"])
    example.main()
    assert "largest error of u after 200 steps" in capsys.readouterr().out
