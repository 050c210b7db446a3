"""The training routines change the parameters by their formulas, and change no others."""

import copy

import pytest
import torch
from torch import nn

import slaf_ext
from slaf_ext import SLAF, training


def network(seed=0, **options):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), SLAF(3, 4, init="noisy_identity", **options), nn.Linear(4, 2), SLAF(2))


def train(model, optimizer, steps=5, after=lambda step: None, before=lambda step: None):
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    for step in range(steps):
        before(step)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        after(step)


def changed(before, model):
    return {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


COEFFS, WEIGHTS = {"1.coeffs", "3.coeffs"}, {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_two_learning_rates_partition_the_parameters():
    model = network()
    slow, fast = training.param_groups(model, lr=0.1, weight_decay=0.5)
    assert {id(p) for p in slow["params"]} | {id(p) for p in fast["params"]} == {id(p) for p in model.parameters()}
    assert (slow["lr"], fast["lr"]) == (0.1, 0.5)
    assert (slow["weight_decay"], fast["weight_decay"]) == (0.5, 0.0)
    assert training.param_groups(model, lr=0.1, coeffs_lr=0.3)[1]["lr"] == 0.3
    before = snapshot(model)
    train(model, torch.optim.SGD(training.param_groups(model, lr=0.0, coeffs_lr=0.01)))
    assert changed(before, model) == COEFFS


@pytest.mark.parametrize(("freeze", "moving"), [("freeze_weights", COEFFS), ("freeze_coefficients", WEIGHTS)])
def test_frozen_parameters_keep_their_bits(freeze, moving):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    train(model, optimizer)  # so that momentum and gradients exist before the freeze
    getattr(training, freeze)(model)
    before = snapshot(model)
    train(model, optimizer)
    assert changed(before, model) == moving
    getattr(training, freeze)(model, False)
    assert all(p.requires_grad for p in model.parameters())


def test_two_phases_after_a_conversion():
    torch.manual_seed(0)
    x = torch.randn(256, 3)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    converted, _ = slaf_ext.convert(model, x, degree=2)
    training.freeze_weights(converted)
    target = model(x).detach()
    before, loss = snapshot(converted), nn.functional.mse_loss(converted(x), target).item()
    optimizer = torch.optim.Adam(training.coefficients(converted), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.mse_loss(converted(x), target).backward()
        optimizer.step()
    assert nn.functional.mse_loss(converted(x), target).item() < 0.5 * loss
    assert changed(before, converted) == {"1.coeffs"}


def test_alternating_moves_one_kind_at_a_time():
    model = network()
    history = [snapshot(model)]
    turns = []
    train(
        model,
        torch.optim.Adam(model.parameters(), lr=0.01),
        steps=8,
        before=lambda step: turns.append(training.alternate(model, step, 2)),
        after=lambda step: history.append(snapshot(model)),
    )
    assert turns == [False, False, True, True] * 2
    for turn, before, after in zip(turns, history[:-1], history[1:], strict=True):
        assert {name for name in before if not torch.equal(before[name], after[name])} == (COEFFS if turn else WEIGHTS)
    resumed = network()
    assert training.alternate(resumed, 3, 2)  # resumed in the middle of a turn
    assert {name for name, p in resumed.named_parameters() if p.requires_grad} == COEFFS
    resumed[1].coeffs.grad = torch.ones_like(resumed[1].coeffs)
    training.alternate(resumed, 3, 2)
    assert resumed[1].coeffs.grad is not None  # kept, for gradients accumulated over several calls
    with pytest.raises(ValueError, match="period is 0"):
        training.alternate(model, 0, 0)


def test_l2_is_the_gradient_step_of_its_sum_of_squares():
    model = network()
    twin = copy.deepcopy(model)
    weight = lambda k, n: 2.0 ** (n + 1 - k)  # noqa: E731
    loss = sum(
        0.01 * weight(k, m.degree) * m.coeffs[..., k].square().sum()
        for m in training.slafs(twin)
        for k in range(m.degree + 1)
    )
    loss.backward()
    training.coefficient_penalty(model, 0.01, degree_weight=weight)
    for ours, theirs in zip(training.coefficients(model), training.coefficients(twin), strict=True):
        torch.testing.assert_close(ours, theirs - theirs.grad)
    assert all(torch.equal(a, b) for a, b in zip(training.weights(model), training.weights(twin), strict=True))


def test_l1_reaches_exact_zeros_and_leaves_frozen_coefficients():
    model = network()
    with torch.no_grad():
        model[3].coeffs.copy_(torch.tensor([0.3, -0.5, 0.05]))
    model[1].requires_grad_(False)
    before = model[1].coeffs.clone()
    training.coefficient_penalty(model, 0.1, norm=1)
    torch.testing.assert_close(model[3].coeffs.detach(), torch.tensor([0.2, -0.4, 0.0]))
    assert model[3].coeffs[2] == 0
    assert torch.equal(model[1].coeffs, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0.1, 3), "norm is 3"), ((-0.1, 2), "strength is -0.1"), ((0.6, 2), "overshoots zero")],
)
def test_wrong_penalties_get_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        training.coefficient_penalty(network(), arguments[0], norm=arguments[1])
    with pytest.raises(ValueError, match=r"degree_weight gives a strength of -0\.2"):
        training.coefficient_penalty(network(), 0.1, degree_weight=lambda k, n: 1 - k)
    with pytest.raises(ValueError, match="holds no SLAF"):
        training.coefficient_penalty(nn.Linear(2, 2), 0.1)


def test_range_penalty_and_its_gradient():
    model = nn.Sequential(SLAF(2, domain=(-1, 2), init="identity"), SLAF(2, domain=None, init="identity"))
    seen = training.range_penalty(model, 0.5)
    x = torch.tensor([[3.0, 0.5], [-4.0, -1.0]], dtype=torch.float32, requires_grad=True)
    model(x)  # both are the identity, and the second's interval is that of its basis, (-1, 1)
    penalty = seen.penalty()
    assert penalty.item() == pytest.approx(0.5 * ((1 + 9) / 4 + (4 + 9) / 4))
    penalty.backward()
    torch.testing.assert_close(x.grad, 0.5 / 4 * torch.tensor([[2.0 + 4.0, 0.0], [-6.0 - 6.0, 0.0]]))
    assert seen.penalty() == 0
    seen.remove()
    model(x)
    assert seen.penalty() == 0
    fixed = training.range_penalty(model, interval=(-10, 10))
    model(x)
    assert fixed.penalty() == 0
    with pytest.raises(ValueError, match=r"interval is \(1.0, -1.0\)"):
        training.range_penalty(model, interval=(1, -1))


def test_range_penalty_leaves_validation_out():
    model = SLAF(2, domain=None)
    seen = training.range_penalty(model)
    with torch.no_grad():
        model(torch.tensor([5.0]))
    model(x=torch.tensor([2.0]))
    assert seen.penalty() == 1


def test_range_penalty_pulls_the_inputs_in():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), SLAF(3, domain=(-1, 1)))
    x = 3 * torch.randn(64, 4)
    seen = training.range_penalty(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        model(x)
        loss = seen.penalty()
        loss.backward()
        optimizer.step()
    assert model[0](x).abs().max() < 1.5


def test_gates():
    model = network()
    x = torch.randn(5, 3)
    rows = model[1].coeffs.detach().clone()
    assert training.gate(model) == 3 + 2
    logits = model[1].parametrizations.coeffs[0].logits
    expected = torch.cat([rows[:, :1], torch.sigmoid(logits) * rows[:, 1:]], 1)
    torch.testing.assert_close(model[1].coeffs, expected)
    before = snapshot(model)
    train(model, torch.optim.SGD(training.coefficients(model), lr=0.1), steps=1)
    assert len(changed(before, model)) == 4  # the coefficients and gates of both modules, and no weight
    y = model(x)
    training.coefficient_penalty(model, 0.0)
    with pytest.raises(ValueError, match="gates already"):
        training.gate(model)
    training.ungate(model)
    torch.testing.assert_close(model(x), y)
    assert {name for name, _ in model.named_parameters()} == COEFFS | WEIGHTS


def test_max_scaling_by_sample():
    scale = training.MaxScale(m=3.0, n=0.5)
    x = torch.randn(4, 2, 3)
    expected = torch.stack([sample / (3 * sample.abs().max() + 0.5) for sample in x])
    torch.testing.assert_close(scale(x), expected)
    scale(x).sum().backward()
    assert scale.m.grad.abs() > 0
    assert training.MaxScale()(torch.zeros(2, 3)).abs().max() == 0


def test_max_scaling_by_channel_keeps_a_running_average():
    scale = training.MaxScale(3, decay=0.9)
    running = torch.ones(3)
    for seed in range(3):
        x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(seed))
        largest = x.abs().amax((0, 2))
        torch.testing.assert_close(scale(x), x / (2 * largest + 1e-5).view(3, 1))
        running = 0.9 * running + 0.1 * largest
    torch.testing.assert_close(scale.running_max, running)
    scale.eval()
    torch.testing.assert_close(scale(x), x / (2 * running + 1e-5).view(3, 1))
    assert scale.train()(x[:0]).shape == (0, 3, 5)
    torch.testing.assert_close(scale.running_max, running)
    with pytest.raises(ValueError, match="3 channels"):
        scale(torch.zeros(2, 4))


def relus():
    shared = nn.ReLU()
    inner = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), shared)
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), inner, nn.PReLU(), shared, nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("choice", "replaced", "added"),
    [
        ({"every": 1}, {"1", "2.1", "2.3", "3", "4"}, 4 * 3 - 1),
        ({"every": 2}, {"1", "2.3", "4"}, 6),
        ({"index": 1}, {"2.1"}, 3),
        ({"index": -1}, {"3"}, 3 - 1),
        ({"names": ["2.3", "1"]}, {"1", "2.3", "4"}, 6),
    ],
)
def test_hybrids_replace_what_was_chosen_and_count_it(choice, replaced, added):
    model = relus()
    assert training.replace_activations(model, degree=2, **choice, basis="legendre") == added
    found = {name for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, SLAF)}
    assert found == replaced
    assert model(torch.randn(3, 2)).isfinite().all()


def test_a_hybrid_has_the_dtype_the_device_and_the_mode_of_the_model():
    model = relus().double().eval()
    training.replace_activations(model, degree=2, names="1", normalize=True)
    assert model(torch.randn(3, 2, dtype=torch.float64)).dtype == torch.float64
    assert not model[1].training
    meta = relus().to("meta").half()
    training.replace_activations(meta, degree=2, every=1)
    assert (meta[1].coeffs.device.type, meta[1].coeffs.dtype) == ("meta", torch.float32)
    training.replace_activations(model, degree=2, index=0, dtype=torch.float32)
    assert model[2][1].coeffs.dtype == torch.float32


def test_a_hybrid_decoder_layer_keeps_its_activation_in_copies():
    model = nn.Sequential(nn.TransformerDecoderLayer(4, 1, 8, activation=nn.GELU()))
    training.replace_activations(model, degree=2, every=1)
    assert isinstance(copy.deepcopy(model)[0].activation, SLAF)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, "exactly one"),
        ({"every": 2, "index": 1}, "exactly one"),
        ({"every": 0}, "every is 0"),
        ({"index": 7}, "index is 7 and the model holds 4 activations: 1, 2.1, 2.3, 3"),
        ({"names": ["relu"]}, "'relu' is not an activation of the model"),
        ({"names": []}, "nothing to replace"),
    ],
)
def test_wrong_choices_get_a_sentence(choice, message):
    with pytest.raises(ValueError, match=message):
        training.replace_activations(relus(), degree=2, **choice)


NET = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), SLAF(2, outside="extrapolate"), nn.Linear(3, 1))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: training.param_groups(NET, "a"), "lr is 'a'; it must be a finite number from 0 up"),
        (lambda: training.param_groups(NET, 0.1, coeffs_lr=-1.0), "coeffs_lr is -1.0; it must be"),
        (lambda: training.coefficient_penalty(NET, float("nan")), "strength is nan; it must be"),
        (lambda: training.coefficient_penalty(NET, "a"), "strength is 'a'; it must be"),
        (lambda: training.range_penalty(NET, -1.0), "strength is -1.0; it must be"),
        (lambda: training.alternate(NET, "a", 2), "step is 'a'; it must be an integer from 0 up"),
        (lambda: training.alternate(NET, 1, 0), "period is 0; it must be an integer from 1 up"),
        (lambda: training.MaxScale(-3), "num_channels is -3; it must be"),
        (lambda: training.MaxScale(m="a"), "m is 'a'; it must be a finite number"),
        (lambda: training.MaxScale(decay=5), "decay is 5; it must be a number from 0 to 1"),
        (lambda: training.replace_activations(NET, degree=2, every="a"), "every is 'a'; it must be an integer"),
        (lambda: training.replace_activations(NET, degree=2, index="a"), "index is a and the model holds 1"),
        (lambda: slaf_ext.to_polynomial(NET[2:], max_terms="a"), "max_terms is 'a'; it must be an integer"),
    ],
)
def test_wrong_arguments_get_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_what_is_no_module_gets_a_sentence():
    for call in (
        lambda: training.param_groups(None, 0.1),
        lambda: training.freeze_weights("net"),
        lambda: training.replace_activations(None, degree=2, every=1),
    ):
        with pytest.raises(TypeError, match=r"model is a \w+; it must be a torch.nn.Module"):
            call()
