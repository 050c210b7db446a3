"""The recipes: what they build, and that it trains without diverging."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import slaf_ext
from slaf_ext import SLAF, training

RECIPES = ("polynomial", "bounded", "drop-in", "encrypted", "herpn")


def data_for(name):
    """512 samples of a polynomial of degree 3 in four features, or of a product of waves in two of them."""
    x = torch.randn(512, 4)
    if name in ("polynomial", "encrypted", "herpn"):
        y = x[:, 0] * x[:, 1] * x[:, 2] + x[:, 3] ** 2 - 1
    else:
        y = torch.sin(3 * x[:, 0]) * torch.cos(2 * x[:, 1])
    return x, (y / y.std()).unsqueeze(1)


def network_of(r):
    return nn.Sequential(nn.Linear(4, 16), r.activation(16), nn.Linear(16, 16), r.activation(16), nn.Linear(16, 1))


def losses_of(r, steps, seed):
    torch.manual_seed(seed)
    x, y = data_for(r.name)
    model = network_of(r)
    optimizer, schedule = r.optimizer(model, epochs=steps // 8, steps_per_epoch=8)
    seen = training.range_penalty(model, r.range_penalty)
    losses = []
    for _ in range(steps // 8):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss = (model(x[index]) - y[index]).square().mean()
            (loss + seen.penalty()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), r.clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return losses


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_diverges(name):
    for seed in range(5):
        losses = losses_of(training.recipe(name), 200, seed)
        assert np.isfinite(losses).all()
        assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
        assert np.mean(losses[-8:]) < 0.8  # the best constant leaves 1


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_train_better_than_a_start_at_the_identity(name):
    r = training.recipe(name)
    at_identity = dataclasses.replace(r, options={**r.options, "init": "identity"})
    ours, theirs = (np.mean([np.mean(losses_of(of, 200, seed)[-8:]) for seed in range(3)]) for of in (r, at_identity))
    assert ours < 0.75 * theirs


def test_what_a_recipe_makes():
    r = dataclasses.replace(training.recipe("drop-in"), lr=0.1, coeffs_lr=0.2, weight_decay=0.3)
    model = network_of(r)
    optimizer, schedule = r.optimizer(model, epochs=3, steps_per_epoch=10)
    weights, coefficients = optimizer.param_groups
    assert (weights["weight_decay"], coefficients["weight_decay"]) == (0.3, 0.0)
    assert {id(p) for p in coefficients["params"]} == {id(m.coeffs) for m in training.slafs(model)}
    rates = []
    for _ in range(30):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    rates = np.array(rates)
    np.testing.assert_allclose(rates[:, 1], 2 * rates[:, 0])
    assert rates[:, 0].max() == pytest.approx(0.1, rel=0.01)
    assert rates[:, 0].argmax() in (8, 9)  # the peak follows 30 % of the steps
    assert rates[-1, 0] < 0.002
    for shape in ((8, 16), (8, 16, 5), (8, 16, 3, 3), (8, 16, 2, 2, 2)):
        assert r.activation(16)(torch.randn(shape)).shape == shape
    with pytest.raises(ValueError, match=r"x has shape \(8, 5\); its dim 1 must hold 16 channels"):
        r.activation(16)(torch.randn(8, 5))
    with pytest.raises(ValueError, match="channels is 0; it must be"):
        r.activation(0)
    with pytest.raises(ValueError, match="steps_per_epoch is 0; it must be"):
        r.optimizer(model, 1, 0)
    with pytest.raises(
        ValueError, match=r"recipe is 'best'; it must be one of polynomial, bounded, drop-in, encrypted, herpn"
    ):
        training.recipe("best")


def test_a_recipe_is_the_callers_own():
    training.recipe("bounded").options["degree"] = 3
    assert "degree" not in training.recipe("bounded").options


def test_the_encrypted_recipe_is_a_polynomial_everywhere():
    model = network_of(training.recipe("encrypted")).double()
    for _ in range(200):
        model(torch.randn(64, 4, dtype=torch.float64))
    x = 10 * torch.randn(16, 4, dtype=torch.float64)
    polynomial = slaf_ext.to_polynomial(model.eval())
    assert polynomial.degree == 4
    torch.testing.assert_close(polynomial(x), model(x).detach())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("depth", [2, 8])
def test_the_defaults_do_not_diverge(depth):
    for seed in range(3):
        torch.manual_seed(seed)
        x, y = data_for("polynomial")
        layers = [layer for _ in range(depth) for layer in (nn.Linear(16, 16), SLAF(5, 16))]
        model = nn.Sequential(nn.Linear(4, 16), *layers, nn.Linear(16, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        assert loss < 0.9
