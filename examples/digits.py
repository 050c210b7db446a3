"""SLAF beside ReLU and GELU in a small convolutional network, on scikit-learn's digits of 8 x 8 pixels.

The three networks differ in their activations alone. Each activation stands after a BatchNorm; SLAF is the "drop-in"
recipe of slaf_ext.training, a polynomial of degree 5 for every channel. All have AdamW, the same one-cycle schedule,
batches and number of epochs, and each the rate of three with the least loss on validation data. A seed gives the split
into 400 images to train on, 397 to validate and 1000 to test, and the initial weights.

The networks take their steps in turns, so that whatever else the machine does slows all of them. The table shows the
test error, mean ± deviation over the seeds, the median time of a step, and the median of its ratios to ReLU's.

    python -m examples.digits [--quick] [--plot FILE]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from slaf_ext.training import recipe

RECIPE = recipe("drop-in")
KINDS = "SLAF", "ReLU", "GELU"
RATES = 3e-3, 1e-2, 3e-2
BATCH = 50
Data = list[tuple[Tensor, Tensor]]  # images and labels to train on, to validate, and to test


def digits(seed: int) -> Data:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    x = torch.tensor(images[order] / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
    return list(zip(*(t.split([400, 397, 1000]) for t in (x, torch.tensor(labels[order]))), strict=True))


def activation(kind: str, channels: int) -> nn.Module:
    if kind == "SLAF":
        return RECIPE.activation(channels)  # a BatchNorm and a SLAF
    norm = nn.BatchNorm1d if channels == 64 else nn.BatchNorm2d
    return nn.Sequential(norm(channels), getattr(nn, kind)())


def network(kind: str) -> nn.Sequential:
    first = [nn.Conv2d(1, 16, 3, padding=1), activation(kind, 16), nn.MaxPool2d(2)]
    second = [nn.Conv2d(16, 32, 3, padding=1), activation(kind, 32), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(128, 64), activation(kind, 64), nn.Linear(64, 10))


def optimizer(kind: str, model: nn.Module, rate: float, epochs: int, steps: int):
    """The recipe's optimiser and schedule; for a network without SLAFs, the same."""
    if kind == "SLAF":
        return replace(RECIPE, lr=rate, coeffs_lr=rate).optimizer(model, epochs, steps)
    adam = torch.optim.AdamW(model.parameters(), weight_decay=RECIPE.weight_decay)
    return adam, torch.optim.lr_scheduler.OneCycleLR(
        adam, rate, total_steps=epochs * steps + 1, pct_start=RECIPE.warmup
    )


def train(data: Data, rate: float, epochs: int, seed: int) -> tuple[dict[str, nn.Sequential], list[list[float]]]:
    """A trained network of each kind, and the seconds that each took for every step."""
    (x, y), *_ = data
    models, steps = {}, len(x) // BATCH
    for kind in KINDS:
        torch.manual_seed(seed)
        models[kind] = network(kind)
    optimizers = {kind: optimizer(kind, model, rate, epochs, steps) for kind, model in models.items()}
    seconds = []
    for batch in (batch for _ in range(epochs) for batch in torch.randperm(len(x)).split(BATCH)):
        seconds.append([])
        for kind, model in models.items():
            start = perf_counter()
            adam, schedule = optimizers[kind]
            adam.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip)
            adam.step()
            schedule.step()
            seconds[-1].append(perf_counter() - start)
    return models, seconds


@torch.no_grad()
def judge(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The loss, and the share of wrong answers in percent."""
    out = model.eval()(x)
    return cross_entropy(out, y).item(), 100 * (out.argmax(1) != y).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and one epoch, to see that it runs")
    parser.add_argument("--plot", metavar="FILE", help="draw the learned activations of one layer, and the errors")
    options = parser.parse_args()
    seeds, epochs = (1, 1) if options.quick else (5, 25)
    errors: dict[str, list[float]] = {kind: [] for kind in KINDS}
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    trained: dict[str, nn.Sequential] = {}
    seconds = []
    for seed in range(seeds):
        data = digits(seed)
        found = [train(data, rate, epochs, seed) for rate in RATES]
        seconds += [step for _, steps in found for step in steps]
        for kind in KINDS:
            losses = [judge(models[kind], *data[1])[0] for models, _ in found]
            best = int(np.argmin(losses))
            trained[kind] = found[best][0][kind]
            errors[kind].append(judge(trained[kind], *data[2])[1])
            rates[kind].append(RATES[best])
    times = np.array(seconds)
    ratios = np.median(times / times[:, [KINDS.index("ReLU")]], 0)
    print(f"{'activation':<12}{'test error, %':>14}{'parameters':>12}{'ms a step':>11}{'/ReLU':>7}  rates chosen")
    for kind, time, ratio in zip(KINDS, np.median(times, 0), ratios, strict=True):
        error = f"{np.mean(errors[kind]):.2f} ± {np.std(errors[kind]):.2f}"
        size = sum(p.numel() for p in network(kind).parameters())
        chosen = " ".join(f"{rate:g}" for rate in rates[kind])
        print(f"{kind:<12}{error:>14}{size:>12,}{1e3 * time:>11.2f}{ratio:>7.2f}  {chosen}")
    if options.plot:
        draw(trained["SLAF"], data[2][0], errors, options.plot)


@torch.no_grad()
def draw(model: nn.Sequential, x: Tensor, errors: dict[str, list[float]], path: str) -> None:
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(3, 2), layout="constrained")
    norm, slaf = model[4]
    slaf.plot(left, inputs=norm(model[:4](x)), max_groups=6)
    left.get_legend().set_loc("upper left")
    left.set_title("SLAFs of the second layer, over their inputs", fontsize="medium")
    for i, kind in enumerate(KINDS):
        right.plot(np.full(len(errors[kind]), i), errors[kind], "o", color=f"C{i}", alpha=0.5)
        right.plot(i, np.mean(errors[kind]), "_", color=f"C{i}", markersize=30)
    right.set(xticks=range(len(KINDS)), xticklabels=KINDS, xlim=(-0.5, len(KINDS) - 0.5), ylabel="test error, %")
    right.set_title("each seed, and the mean", fontsize="medium")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
