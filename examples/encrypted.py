"""Ways to a network that an encrypted evaluation can run, on scikit-learn's digits.

A small convolutional network with average pooling is trained with ReLU, and then made polynomial:

- converted: slaf_ext.convert fits polynomials on the ranges seen; nothing is trained;
- progressive: training.convert_progressively replaces one activation after another, and trains between;
- in range: training.contract_ranges goes on until no input of the validation images is outside its domain;
- encrypted, herpn: the recipes of these names, trained as polynomials from the start.

The table shows, over the seeds, the error on test images, the largest share of a polynomial's inputs that are outside
its domain on them (herpn has none), and the largest input; then what slaf_ext.export says of the last network, and
its ranges. Polynomials have degree 4 if converted, and 2 in the recipes.

    python -m examples.encrypted [--quick] [--plot FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from slaf_ext import SLAF, convert, export, training

BATCH, DEGREE, CHANNELS = 100, 4, (8, 16)
Data = list[tuple[Tensor, Tensor]]  # images and labels to train on, to validate, and to test


def digits(seed: int) -> Data:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    x = torch.tensor(images[order] / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
    return list(zip(*(t.split([1000, 397, 400]) for t in (x, torch.tensor(labels[order]))), strict=True))


def network(activation: Callable[[int], nn.Module]) -> nn.Sequential:
    first, second = CHANNELS
    return nn.Sequential(
        *(nn.Conv2d(1, first, 3, padding=1), activation(first), nn.AvgPool2d(2)),
        *(nn.Conv2d(first, second, 3, padding=1), activation(second), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(4 * second, 64), activation(64), nn.Linear(64, 10)),
    )


def relu(channels: int) -> nn.Module:
    return nn.Sequential((nn.BatchNorm1d if channels == 64 else nn.BatchNorm2d)(channels), nn.ReLU())


def batches(data: Data):
    x, y = data[0]
    for index in torch.randperm(len(x)).split(BATCH):
        yield x[index], y[index]


def train(model: nn.Module, data: Data, epochs: int, r: training.Recipe) -> nn.Module:
    """With the recipe's optimiser, or for a network without SLAFs with the same at the recipe's rate."""
    steps = -(-len(data[0][0]) // BATCH)
    if any(isinstance(m, SLAF) for m in model.modules()):
        optimizer, schedule = r.optimizer(model, epochs, steps)
        penalty = training.range_penalty(model, r.range_penalty).penalty
    else:
        optimizer = torch.optim.AdamW(model.parameters(), r.lr, weight_decay=r.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, r.lr, total_steps=epochs * steps + 1)
        penalty = torch.zeros(()).clone
    for _ in range(epochs):
        run_epoch(model, data, optimizer, penalty, schedule.step)
    return model.eval()


def run_epoch(model, data: Data, optimizer, penalty: Callable[[], Tensor], after_step=lambda: None) -> None:
    for x, y in batches(data):
        optimizer.zero_grad()
        (functional.cross_entropy(model(x), y) + penalty()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        after_step()


def ways(seed: int, epochs: int) -> tuple[dict[str, nn.Module], Data]:
    """The networks of one seed."""
    torch.manual_seed(seed)
    data = digits(seed)
    (x, _), (held_out, _), _ = data
    encrypted, herpn = training.recipe("encrypted"), training.recipe("herpn")
    found = {"ReLU": train(network(relu), data, epochs, encrypted)}
    found["converted"], _ = convert(found["ReLU"], x, degree=DEGREE, outside="extrapolate")

    def fine_tune(model: nn.Module, penalty: Callable[[], Tensor]) -> None:
        optimizer = torch.optim.AdamW(training.param_groups(model, lr=3e-4, coeffs_lr=1e-4))
        for _ in range(max(1, epochs // 10)):
            run_epoch(model, data, optimizer, penalty)

    found["progressive"], _ = training.convert_progressively(found["ReLU"], x, fine_tune, degree=DEGREE)
    found["in range"], _ = training.convert_progressively(found["ReLU"], x, fine_tune, degree=DEGREE)
    training.contract_ranges(found["in range"], held_out, fine_tune)
    found["herpn"] = train(network(herpn.activation), data, epochs, herpn)
    found["encrypted"] = train(network(encrypted.activation), data, epochs, encrypted)
    return found, data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and one epoch, to see that it runs")
    parser.add_argument("--plot", metavar="FILE", help="draw the error over the seeds")
    options = parser.parse_args()
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(1 if options.quick else 5):
        found, data = ways(seed, 1 if options.quick else 15)
        x, y = data[2]
        for name, model in found.items():
            with torch.no_grad():
                error = 100 * (model(x).argmax(1) != y).float().mean().item()
            report = export.check(model, x) if name != "ReLU" else None
            outside = 100 * report.outside if report and name != "herpn" else np.nan
            largest = max(max(map(abs, layer.inputs)) for layer in report.layers) if report else np.nan
            rows.setdefault(name, []).append((error, outside, largest))
    print(f"{'':<13}{'error, %':>14}{'outside, %':>13}{'largest input':>16}")
    for name, cells in rows.items():
        (error, outside, largest), deviation = np.mean(cells, 0), np.std(cells, 0)[0]
        error_cell = f"{error:.2f} ± {deviation:.2f}"
        print(f"{name:<13}{error_cell:>14}{outside:>13.2f}{largest:>16.1f}".replace("nan", "  -"))
    folded = export.fold_batch_norm(model, x)
    print("\nthe last one, folded:")
    for p in export.polynomials(folded):
        first = p.power_basis()[0].round(3)
        print(
            f"{p.name}: {len(p.coeffs)} polynomials of degree {p.degree}, {p.depth.bsgs} levels; the first is {first}"
        )
    print(export.check(folded, x))
    if options.plot:
        draw(rows, options.plot)


def draw(rows: dict[str, list[tuple[float, float, float]]], path: str) -> None:
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for name, cells in rows.items():
        ax.plot([name] * len(cells), [error for error, _, _ in cells], "o")
    ax.set(ylabel="test error, %", ylim=(0, None))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
