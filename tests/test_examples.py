"""The short examples run, and compute what they say."""

import numpy as np
import pytest
import torch

from examples import characters, conversion, custom_basis, digits, encrypted, kan, pinn
from slaf_ext import basis_values, export
from slaf_ext.bases import Basis


def size(model):
    return sum(p.numel() for p in model.parameters())


def test_the_derivatives_of_the_network_are_autograds():
    layers, x = pinn.network().double(), torch.linspace(-1, 1, 9, dtype=torch.float64).unsqueeze(1)
    for mine, true in zip(pinn.jet(layers, x), pinn.jet_by_autograd(layers, x), strict=True):
        torch.testing.assert_close(mine, true)
    losses = [pinn.loss(layers, x, jet) for jet in (pinn.jet, pinn.jet_by_autograd)]
    for mine, true in zip(*(torch.autograd.grad(loss, layers.parameters()) for loss in losses), strict=True):
        torch.testing.assert_close(mine, true)
    assert not x.requires_grad  # or the steps timed afterwards would have its gradient as well


@pytest.mark.parametrize("inputs", [1, 4, 100])
def test_the_rivals_of_kans_are_as_large(inputs):
    rival = size(kan.mlp(inputs, 3, size(kan.kan(inputs, 3))))
    assert 0.85 < rival / size(kan.kan(inputs, 3)) < 1.15


def test_the_rivals_on_digits_differ_in_their_activations_alone():
    coefficients = 6 * (16 + 32 + 64)
    assert {kind: size(digits.network(kind)) for kind in digits.KINDS} == {
        "SLAF": size(digits.network("ReLU")) + coefficients,
        "ReLU": size(digits.network("GELU")),
        "GELU": size(digits.network("ReLU")),
    }
    made = {kind: digits.optimizer(kind, digits.network(kind), 3e-3, 2, 5) for kind in digits.KINDS}
    for _ in range(10):
        assert len({group["lr"] for adam, _ in made.values() for group in adam.param_groups}) == 1
        assert [adam.param_groups[0]["weight_decay"] for adam, _ in made.values()] == [digits.RECIPE.weight_decay] * 3
        for adam, schedule in made.values():
            adam.step()
            schedule.step()


def test_the_ways_to_a_polynomial_network():
    """Each starts from the same ReLU network, and is a polynomial."""
    found, data = encrypted.ways(seed=0, epochs=1)
    assert list(found) == ["ReLU", "converted", "progressive", "in range", "herpn", "encrypted"]
    for name, model in found.items():
        assert not model.training
        if name != "ReLU":
            report = export.check(model, data[2][0])
            assert report.not_polynomial == []
            assert len(report.layers) == 3
    kept = [state[:4] for state in ([*m.state_dict().values()] for m in (found["ReLU"], found["converted"]))]
    assert all(torch.equal(one, other) for one, other in zip(*kept, strict=True))


def test_an_answer_that_is_not_finite_is_wrong():
    class Answers(torch.nn.Module):
        def forward(self, x):
            return x

    given = torch.tensor([[1.0, 0.0], [torch.inf, 0.0], [torch.nan, 0.0], [0.0, 1.0]])
    assert conversion.error(Answers(), (given, torch.tensor([0, 0, 0, 0]))) == pytest.approx(75)


def test_the_measured_basis_is_that_of_gram_and_schmidt():
    x = np.random.default_rng(0).gamma(2.0, size=2000)
    own = Basis("own", custom_basis.stieltjes(x, 6))
    phi = basis_values(torch.from_numpy(x), 6, own).numpy()
    np.testing.assert_allclose(phi.T @ phi / len(x), np.eye(7), atol=1e-12)
    q, r = np.linalg.qr(np.polynomial.polynomial.polyvander(x, 6))
    np.testing.assert_allclose(phi, q * np.sign(np.diag(r)) * np.sqrt(len(x)), atol=1e-8)


def test_gradient_descent_ends_at_the_least_squares_fit():
    x = torch.randn(500, dtype=torch.float64)
    own = Basis("own", custom_basis.stieltjes(x.numpy(), custom_basis.DEGREE))
    left = custom_basis.descend(x, own, (-1, 1), 5)
    assert left[0] == 1
    assert len(left) == 2
    assert abs(left[1]) < 1e-10  # one step, as the normal equations are the identity on the sample itself


def test_the_language_models_are_as_large():
    sizes = [size(characters.Model(kind, 100)) for kind in characters.KINDS]
    assert max(sizes) / min(sizes) < 1.01


@pytest.mark.parametrize("kind", characters.KINDS)
def test_the_language_model_sees_no_later_character(kind):
    model = characters.Model(kind, 10)
    x = torch.randint(10, (2, 20))
    later = x.clone()
    later[:, 12:] = (x[:, 12:] + 1) % 10
    before, after = model(x), model(later)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert (before[:, 12:] - after[:, 12:]).abs().amax(-1).min() > 1e-3
    earlier = x.clone()
    earlier[:, 0] = (x[:, 0] + 1) % 10
    assert (model(earlier) - before)[:, -1].abs().max() > 1e-4


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (pinn, "largest error of u after 200 steps"),
        (kan, "digits, % wrong"),
        (digits, "rates chosen"),
        (conversion, "outside='extrapolate'"),
        (custom_basis, "measured"),
        (characters, "SwiGLU"),
        (encrypted, "the last one, folded:"),
    ],
)
def test_it_runs(example, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [example.__name__, "--quick", "--plot", "drawn.png"])
    example.main()
    printed = capsys.readouterr().out
    assert said in printed
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert [path.name for path in tmp_path.iterdir()] == ["drawn.png"]
