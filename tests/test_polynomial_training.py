"""Masks that keep a parity, conversion step by step, contraction of ranges, and the recipes for it, on digits."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from slaf_ext import SLAF, bases, convert, export, training

ONE_THREAD = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    tensors = torch.tensor(images[order] / 8 - 1, dtype=torch.float32), torch.tensor(labels[order])
    return list(zip(*(t.split([1200, 597]) for t in tensors), strict=True))


def training_on(data, epochs, rate=1e-3):
    def train(model, penalty):
        optimizer = torch.optim.Adam(model.parameters(), rate)
        for _ in range(epochs):
            for x, y in zip(*(t.split(100) for t in data), strict=True):
                optimizer.zero_grad()
                (nn.functional.cross_entropy(model(x), y) + penalty()).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()

    return train


def nothing():
    return torch.zeros(())


def error(model, data):
    x, y = data
    return (model.eval()(x).argmax(1) != y).double().mean().item()


@pytest.fixture(scope="module")
def relu(digits):
    torch.manual_seed(0)
    layers = [
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    ]
    model = nn.Sequential(*layers)
    training_on(digits[0], 25)(model, nothing)
    return model.eval()


@ONE_THREAD
def test_progressive_conversion_beats_conversion_at_once(digits, relu):
    (x, _), test = digits
    state = copy.deepcopy(relu.state_dict())
    at_once, _ = convert(relu, x, degree=2, outside="extrapolate")
    model, report = training.convert_progressively(relu, x, training_on(digits[0], 3), degree=2)
    assert error(model, test) < min(0.08, 0.7 * error(at_once, test))
    assert [type(m) for m in model[1::2]] == [SLAF] * 3
    assert all(m.degree == 2 and m.outside == "extrapolate" for m in model[1::2])
    assert not model.training
    assert [layer.name for layer in report.layers] == ["1", "3", "5"]
    assert report.not_polynomial == []
    assert all(torch.equal(a, b) for a, b in zip(state.values(), relu.state_dict().values(), strict=True))


def test_progressive_conversion_step_by_step(relu, digits):
    """Each step sees the network with one more SLAF, in training mode, with a penalty on all of them."""
    (x, _), _ = digits
    seen = []

    def fine_tune(model, penalty):
        slafs = [i for i in (1, 3, 5) if isinstance(model[i], SLAF)]
        assert penalty() == 0
        model(10 * x[:4])
        seen.append((slafs, model.training, penalty().item()))
        with torch.no_grad():
            model[0].weight.mul_(0.5)  # so that the next activation is fitted on what the network is now

    how = {"basis": "legendre", "quantile": 0.9, "margin": 0.1, "method": "lstsq", "degree": 3}
    model, _ = training.convert_progressively(relu, x, fine_tune, strength=2.0, **how)
    assert [slafs for slafs, _, _ in seen] == [[1], [1, 3], [1, 3, 5]]
    assert all(mode and value > 0 for _, mode, value in seen)
    first, _ = convert(relu, x, outside="extrapolate", targets="1", **how)
    assert model[1].domain == first[1].domain
    with torch.no_grad():
        first[0].weight.mul_(0.5)
    second, _ = convert(first, x, outside="extrapolate", targets="3", **how)
    assert model[3].domain == second[3].domain
    assert model[3].basis.name == "legendre"


def test_progressive_conversion_of_functional_calls():
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            return torch.tanh(self.last(torch.relu(self.first(x))))

    calls = []
    _, report = training.convert_progressively(Calls(), torch.randn(64, 3), lambda *args: calls.append(args), degree=3)
    assert len(calls) == len(report.layers) == 2
    assert report.not_polynomial == []


@ONE_THREAD
def test_contraction_ends_when_all_inputs_are_inside(digits, relu):
    (x, _), (held_out, _) = digits
    converted, _ = convert(relu, x, degree=4, quantile=0.98, outside="extrapolate")
    before = export.check(converted, held_out)
    assert before.outside > 0.01
    rounds = []

    def fine_tune(model, penalty):
        rounds.append(1)
        assert model.training
        training_on(digits[0], 1)(model, penalty)

    report = training.contract_ranges(converted, held_out, fine_tune, share=0.002, rounds=25)
    assert report.outside <= 0.002
    assert export.check(converted, held_out).layers == report.layers
    assert 1 <= len(rounds) < 25
    assert error(converted, digits[1]) < 0.08
    assert not any(m._forward_pre_hooks for m in converted.modules())  # nobody watches any more
    training.contract_ranges(converted, held_out, fine_tune, share=0.002)
    assert len(rounds) < 25


def test_nothing_watches_after_a_failure():
    def fine_tune(model, penalty):
        raise KeyboardInterrupt

    model, x = nn.Sequential(nn.Linear(1, 1), SLAF(1, domain=(-1, 1))), torch.tensor([[1e3]])
    with pytest.raises(KeyboardInterrupt):
        training.contract_ranges(model, x, fine_tune)
    with pytest.raises(ValueError, match="holds nan"):
        training.contract_ranges(model, x * math.nan, fine_tune)
    assert not model[1]._forward_pre_hooks


def test_iterators_serve_every_step():
    calls = []
    x = torch.randn(32, 3)
    how = {"fine_tune": lambda *args: calls.append(args), "degree": 2}
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU())
    model, _ = training.convert_progressively(model, iter(x.split(8)), **how)
    assert len(calls) == 2
    training.contract_ranges(model, (10 * part for part in x.split(8)), lambda *args: calls.append(args), rounds=2)
    assert len(calls) == 4


def test_contraction_doubles_the_strength_and_stops():
    model, strengths = SLAF(1, domain=(-1, 1)), []

    def fine_tune(model, penalty):
        model(torch.tensor([3.0]))
        strengths.append(penalty().item())

    report = training.contract_ranges(model, torch.tensor([0.0, 3.0]), fine_tune, strength=0.25, rounds=3)
    assert strengths == [1.0, 2.0, 4.0]  # (3 − 1)² times the strength
    assert report.outside == 0.5
    assert training.contract_ranges(model, torch.tensor([0.0, 1.0]), fine_tune).outside == 0
    assert len(strengths) == 3  # nothing was outside, so nothing was trained


@ONE_THREAD
@pytest.mark.parametrize("name", ["herpn", "encrypted"])
def test_recipes_train_polynomial_networks(digits, name):
    torch.manual_seed(0)
    r = training.recipe(name)
    model = nn.Sequential(nn.Linear(64, 64), r.activation(64), nn.Linear(64, 64), r.activation(64), nn.Linear(64, 10))
    x, y = digits[0]
    optimizer, schedule = r.optimizer(model, 12, 12)
    for _ in range(12):
        for index in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), r.clip)
            optimizer.step()
            schedule.step()
    assert error(model, digits[1]) < 0.06
    assert all(p.outside == "extrapolate" and p.degree == 2 for p in export.polynomials(model))


def test_herpn_starts_at_relus_hermite_expansion():
    """By quadrature on each half of the line, where ReLU is smooth."""
    x, w = np.polynomial.legendre.leggauss(200)
    x, w = 6 * (x + 1), 6 * w  # (0, 12)
    w = w * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    he = np.polynomial.hermite_e.hermevander(x, 2) / np.sqrt([1, 1, 2])
    f = training.recipe("herpn").activation(3)
    np.testing.assert_allclose(f.coeffs.detach().double(), np.tile((w * x) @ he, (3, 1)), rtol=1e-6)
    assert f.normalize


@pytest.mark.parametrize("kind", ["odd", "even"])
@pytest.mark.parametrize("basis", ["chebyshev", "hermite_e", "legendre", bases.gegenbauer(0.5)], ids=str)
def test_parity_survives_training(kind, basis):
    model = nn.Sequential(
        nn.Linear(3, 4), SLAF(5, 4, basis=basis, init="noisy_identity"), SLAF(4, basis=basis, init="gelu")
    )
    before = [f.coeffs.detach().clone() for f in model[1:]]
    training.parity(model, kind)
    first = 1 if kind == "odd" else 0
    for f, coeffs in zip(model[1:], before, strict=True):
        assert torch.equal(f.coeffs[..., first::2], coeffs[..., first::2])
        assert f.coeffs[..., 1 - first :: 2].abs().max() == 0
    optimizer = torch.optim.AdamW(training.param_groups(model, 0.1), weight_decay=0.1)
    moved = [f.coeffs.detach().clone() for f in model[1:]]
    for _ in range(5):
        optimizer.zero_grad()
        (model(torch.randn(20, 3)) - 1).square().mean().backward()
        optimizer.step()
        training.coefficient_penalty(model, 1e-3)
    x = torch.linspace(-6, 6, 25).unsqueeze(1).expand(-1, 4)
    sign = -1 if kind == "odd" else 1
    for f, coeffs in zip(model[1:], moved, strict=True):
        assert not torch.equal(f.coeffs, coeffs)
        torch.testing.assert_close(f(-x), sign * f(x))
        assert f(x).abs().max() > 0.1
    loaded = nn.Sequential(nn.Linear(3, 4), SLAF(5, 4, basis=basis), SLAF(4, basis=basis))
    training.parity(loaded, kind)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded(x[:, :3]), model(x[:, :3]))
    y = model(x[:, :3])
    training.ungate(model)
    assert torch.equal(model(x[:, :3]), y)
    assert {name for name, _ in model.named_parameters()} == {"0.weight", "0.bias", "1.coeffs", "2.coeffs"}
    assert model[1].coeffs.detach()[:, 1 - first :: 2].abs().max() == 0


def test_a_mask_survives_the_meta_device():
    model = nn.Sequential(SLAF(3, 2, init="noisy_identity"))
    training.parity(model, "odd")
    other = nn.Sequential(SLAF(3, 2, device="meta"))
    training.parity(other, "odd")
    other.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(other[0].coeffs, model[0].coeffs)


def test_coefficients_with_a_mask_are_not_reset():
    model = nn.Sequential(SLAF(3))
    training.parity(model, "odd")
    with pytest.raises(ValueError, match=r"have gates or a mask; slaf_ext.training.ungate\(model\) removes them"):
        model[0].reset_parameters()
    training.ungate(model)
    model[0].reset_parameters()


def test_an_even_normalised_module():
    f = SLAF(4, 3, normalize=True, domain=(-2, 2), init="noisy_identity", momentum=None)
    training.parity(f, "even")
    x = torch.randn(50, 3)
    torch.testing.assert_close(f(x), f(-x))
    torch.testing.assert_close(f.eval()(x), f(-x))


@pytest.mark.parametrize(
    ("module", "kind", "sentence"),
    [
        (SLAF(3), "both", "kind is 'both'; it must be 'odd' or 'even'"),
        (SLAF(3, basis="laguerre", domain=None), "odd", r"SLAF\(3, basis='laguerre'.* has no parity"),
        (SLAF(3, basis="chebyshev_v"), "even", "has no parity"),
        (SLAF(3, domain=(-1, 2)), "odd", "has no parity: .* a domain centred at 0"),
        (
            SLAF(3, basis=bases.Basis("b", [(1, 0, 0)] * 3, (0, 1)), domain=None, outside="clamp"),
            "odd",
            "no parity",
        ),
        (SLAF(3, normalize=True), "odd", "is normalised, and its means add a constant; use 'even', or fold it"),
    ],
)
def test_no_parity(module, kind, sentence):
    model = nn.Sequential(SLAF(2), module)
    with pytest.raises(ValueError, match=sentence):
        training.parity(model, kind)
    assert type(model[0]) is SLAF  # nothing was changed


def test_gates_and_parity_exclude_each_other():
    model = nn.Sequential(SLAF(2))
    training.parity(model, "odd")
    for change in (training.gate, lambda m: training.parity(m, "odd")):
        with pytest.raises(ValueError, match="a SLAF of degree 2 has gates already, or a mask; ungate the model first"):
            change(model)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda f: training.convert_progressively(nn.Linear(1, 1), f, print, degree=2), ValueError, "no activation of"),
        (lambda f: training.convert_progressively(f, f, print, degree=2), TypeError, "model is a Tensor"),
        (lambda f: training.contract_ranges(f, f, print), TypeError, "model is a Tensor"),
        (lambda f: training.contract_ranges(nn.Linear(1, 1), f, print), ValueError, "no SLAF ran when the model did"),
        (lambda f: training.contract_ranges(SLAF(1), f, print, share=1), ValueError, "share is 1; it must be"),
        (lambda f: training.contract_ranges(SLAF(1), f, print, rounds=0), ValueError, "rounds is 0; it must be"),
        (lambda f: training.contract_ranges(SLAF(1), f, print, strength=-1), ValueError, "strength is -1; it must be"),
    ],
)
def test_wrong_arguments(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call(torch.randn(4, 1))
