"""The short examples run, and compute what they say."""

import pytest
import torch

from examples import kan, pinn


def test_the_derivatives_of_the_network_are_autograds():
    layers, x = pinn.network().double(), torch.linspace(-1, 1, 9, dtype=torch.float64).unsqueeze(1)
    for mine, true in zip(pinn.jet(layers, x), pinn.jet_by_autograd(layers, x), strict=True):
        torch.testing.assert_close(mine, true)
    losses = [pinn.loss(layers, x, jet) for jet in (pinn.jet, pinn.jet_by_autograd)]
    for mine, true in zip(*(torch.autograd.grad(loss, layers.parameters()) for loss in losses), strict=True):
        torch.testing.assert_close(mine, true)


@pytest.mark.parametrize("inputs", [1, 4, 100])
def test_the_rivals_of_kans_are_as_large(inputs):
    size = sum(p.numel() for p in kan.kan(inputs, 3).parameters())
    rival = sum(p.numel() for p in kan.mlp(inputs, 3, size).parameters())
    assert 0.85 < rival / size < 1.15


@pytest.mark.parametrize(
    ("example", "options", "said"),
    [(pinn, [], "largest error of u after 200 steps"), (kan, ["--plot", "kan.png"], "digits, % wrong")],
)
def test_it_runs(example, options, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [example.__name__, "--quick", *options])
    example.main()
    printed = capsys.readouterr().out
    assert said in printed
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert len(list(tmp_path.iterdir())) == len(options) // 2
