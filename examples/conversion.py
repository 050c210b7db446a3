"""A trained ReLU network turned into a polynomial, as encrypted inference needs, and what a short training recovers.

A convolutional network with BatchNorm and average pooling learns scikit-learn's digits of 8 x 8 pixels.
slaf_ext.convert replaces its ReLUs by minimax polynomials of degree 2, 4 or 8 on the ranges that their inputs have on
the training images. With outside="extrapolate" the copy is a polynomial everywhere. Fine-tuning then trains all its
parameters for a fifth of the epochs: training.param_groups gives the coefficients five times the rate of the weights,
and training.range_penalty punishes inputs of the polynomials outside the domains that were fitted. For a comparison,
the ReLU network is trained for as long again.

The report and the ranges are those of the first seed at degree 4. The errors are those on 797 test images, mean ±
deviation over five seeds, each with a split and a start of its own.

    python -m examples.conversion [--quick] [--plot FILE]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import slaf_ext
from slaf_ext import training

DEGREES = 2, 4, 8
BATCH = 50
Split = tuple[Tensor, Tensor]


def digits(seed: int) -> tuple[Split, Split]:
    """Images and labels, to train on and to test."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    x, y = torch.tensor(images[order] / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels[order])
    return (x[:1000], y[:1000]), (x[1000:], y[1000:])


def network() -> nn.Sequential:
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2)]
    second = [nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2)]
    last = [nn.Flatten(), nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*first, *second, *last)


def train(model: nn.Module, data: Split, optimizer: torch.optim.Optimizer, epochs: int, penalty=None) -> None:
    """With rates that fall to zero; `penalty()` is added to the loss."""
    model.train()
    x, y = data
    total = epochs * len(x) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    for batch in (batch for _ in range(epochs) for batch in torch.randperm(len(x)).split(BATCH)):
        optimizer.zero_grad()
        loss = cross_entropy(model(x[batch]), y[batch])
        (loss + penalty() if penalty else loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def fine_tune(model: nn.Module, data: Split, epochs: int) -> None:
    seen = training.range_penalty(model, 1.0)
    optimizer = torch.optim.Adam(training.param_groups(model, lr=1e-3))
    train(model, data, optimizer, epochs, seen.penalty)
    seen.remove()


@torch.no_grad()
def error(model: nn.Module, data: Split) -> float:
    """The share of wrong answers in percent; an answer that is not finite is wrong."""
    x, y = data
    out = model.eval()(x)
    return 100 * (1 - ((out.argmax(1) == y) & out.isfinite().all(1)).float().mean().item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and few epochs, to see that it runs")
    parser.add_argument("--plot", metavar="FILE", help="draw the error against the degree")
    options = parser.parse_args()
    seeds, epochs = (1, 1) if options.quick else (5, 25)
    more = max(1, epochs // 5)
    found = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        data, test = digits(seed)
        relu = network()
        train(relu, data, torch.optim.Adam(relu.parameters(), 1e-2), epochs)
        errors = [error(relu, test)]
        for degree in DEGREES:
            model, report = slaf_ext.convert(relu, data[0], degree=degree, outside="extrapolate", held_out=test[0])
            errors.append(error(model, test))
            fine_tune(model, data, more)
            errors.append(error(model, test))
            if seed == 0 and degree == 4:
                print(report, "ranges after fine-tuning:", slaf_ext.export.check(model, test[0]), sep="\n\n")
        train(relu, data, torch.optim.Adam(relu.parameters(), 1e-3), more)
        found.append([*errors, error(relu, test)])
    means, deviations = np.mean(found, 0), np.std(found, 0)
    cells = [f"{m:.2f} ± {d:.2f}" for m, d in zip(means, deviations, strict=True)]
    print(f"\n{'test error, %':<16}{'at first':>16}{'fine-tuned':>16}")
    print(f"{'ReLU':<16}{cells[0]:>16}{cells[-1]:>16}")
    for i, degree in enumerate(DEGREES):
        print(f"degree {degree:<9}{cells[1 + 2 * i]:>16}{cells[2 + 2 * i]:>16}")
    if options.plot:
        draw(means, deviations, options.plot)


def draw(means: np.ndarray, deviations: np.ndarray, path: str) -> None:
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for first, label in ((1, "converted"), (2, "and fine-tuned")):
        chosen = slice(first, -1, 2)
        ax.errorbar(DEGREES, means[chosen], deviations[chosen], fmt="o-", capsize=3, label=label)
    ax.axhline(means[0], color="C0", linestyle="--", label="ReLU")
    ax.axhline(means[-1], color="C1", linestyle="--", label="ReLU, trained as long again")
    ax.set(xlabel="degree", xticks=DEGREES, yscale="log", ylabel="test error, %")
    ax.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
