"""What makes SLAF networks fail, each shown by a run, and how signals cross deep ones.

``python -m examples.experiments.lessons`` writes lessons.md, depth.png, curves.png and learned.png, in six minutes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot
from torch import Tensor, nn

from slaf_ext import SLAF, convert
from slaf_ext.training import RangeWatch, Recipe, range_penalty, recipe, slafs

from .tasks import SMALL, Task, digits, split
from .train import Choice, fit, network, rivals_optimizer, train

WIDTH = 64  # and the pixels of a digit
Activation = Callable[[int], nn.Module]


def flat_digits() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return x.flatten(1), y


def mlp(activation: Activation, layers: int) -> nn.Sequential:
    hidden = [layer for _ in range(layers) for layer in (nn.Linear(WIDTH, WIDTH), activation(WIDTH))]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, 10))


class Block(nn.Module):
    """Two convolutions beside the identity, as in a ResNet."""

    def __init__(self, activation: Activation, channels: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.body = nn.Sequential(activation(channels), first, activation(channels), second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def residual(activation: Activation, layers: int = 18, channels: int = 16) -> nn.Sequential:
    """Of that many layers with weights: the first, blocks of two, and the last."""
    blocks = [Block(activation, channels) for _ in range((layers - 2) // 2)]
    pooled = nn.Sequential(activation(channels), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, channels, 3, padding=1), *blocks, pooled, nn.Linear(4 * channels, 10)
    )


def score_of(task: Task, seed: int) -> float:
    model, _ = train(task, "slaf", Choice(task.recipe.lr), seed)
    return task.score(model, split(task.data, seed)[2]) * (1 if task.is_regression else 100)


class Decayed(Recipe):
    """A recipe that decays the coefficients too."""

    def optimizer(self, model, epochs, steps_per_epoch):
        optimizer, schedule = super().optimizer(model, epochs, steps_per_epoch)
        optimizer.param_groups[1]["weight_decay"] = 1.0
        return optimizer, schedule


def varied(name: str, **options: Any) -> Recipe:
    r = recipe(name)
    return replace(r, options={**r.options, **options})


TASKS = {
    **SMALL,
    "digits, 6 layers": lambda: Task("digits", flat_digits(), (WIDTH,) * 6, 10, 15, 64, recipe("drop-in")),
}
WHOLE_LINE = {"domain": None, "outside": "extrapolate"}
# What goes wrong, the task that shows it, and the recipe with that mistake in it. BatchNorm is left out.
LESSONS = [
    ("a start at the identity", "sparse 4", varied("polynomial", init="identity")),
    ("monomials of degree 7", "two-spiral", varied("bounded", basis="monomial", init="identity", **WHOLE_LINE)),
    ("tails that are not held", "digits, 6 layers", varied("drop-in", **WHOLE_LINE)),
    ("weight decay of 1 on coefficients", "sparse 4", Decayed(**vars(recipe("polynomial")))),
]


def summary(found: list[float]) -> str:
    broken = sum(not math.isfinite(score) for score in found)
    return f"{broken} of {len(found)} diverge" if broken else f"{np.mean(found):.3g} ± {np.std(found, ddof=1):.2g}"


def lessons(seeds: int) -> str:
    lines = ["| what | task, recipe | with it | without |", "|---|---|--:|--:|"]
    for what, name, mistaken in LESSONS:
        task = TASKS[name]()
        tasks = (replace(task, recipe=mistaken), task)
        wrong, right = (summary([score_of(task, seed) for seed in range(seeds)]) for task in tasks)
        lines.append(f"| {what} | {name}, {mistaken.name} | {wrong} | {right} |")
    return "\n".join([*lines, "", f"Test error, of two-spiral and digits in percent; {seeds} seeds."])


DEEP: dict[str, Activation] = {
    "drop-in": recipe("drop-in").activation,
    "SLAF(5, channels)": lambda channels: SLAF(5, channels),
    "GELU": lambda _: nn.GELU(),
    "noisy identity, extrapolated": lambda channels: SLAF(
        5, channels, domain=None, outside="extrapolate", init="noisy_identity"
    ),
}


def signals(model: nn.Module) -> tuple[list[float], list[float]]:
    """The variances of what the linear layers give, and of the loss's gradients there, before training."""
    outputs: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, y: (y.retain_grad(), outputs.append(y))[0])
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    x, y = flat_digits()
    nn.functional.cross_entropy(model.train()(x[:512]), y[:512]).backward()
    for hook in hooks:
        hook.remove()
    return [t.var().item() for t in outputs], [t.grad.var().item() for t in outputs]


def depth(out: Path, seeds: int) -> str:
    """Draws how variances go through 20 layers, and trains both deep networks with the recipe."""
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, activation in DEEP.items():
        torch.manual_seed(0)
        for ax, values in zip(axes, signals(mlp(activation, 20)), strict=True):
            ax.semilogy(range(1, len(values) + 1), values, label=name)
    for ax, title in zip(axes, ("of the outputs of linear layers", "of the loss's gradients there"), strict=True):
        ax.set(xlabel="layer", title=f"variance {title}", ylim=(1e-12, 1e6))
        ax.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(out / "depth.png", dpi=120)
    pyplot.close(figure)
    lines = ["| network | test error |", "|---|--:|"]
    for name, build in (
        ("20 layers", lambda r: mlp(r.activation, 20)),
        ("residual, 18", lambda r: residual(r.activation)),
    ):
        lines.append(f"| {name} | {summary([deep_error(build, seed) for seed in range(seeds)])} |")
    return "\n".join([*lines, "", f"The drop-in recipe on digits at its own rate: percent, {seeds} seeds."])


def deep_error(build: Callable[[Recipe], nn.Module], seed: int) -> float:
    torch.manual_seed(seed)
    task = digits_task("drop-in")
    return train_digits(build(task.recipe), task, seed)


@dataclass(frozen=True)
class Watched(Task):
    """A task with the range penalty in its loss."""

    watch: RangeWatch | None = None

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return super().loss(model, x, y) + (self.watch.penalty() if self.watch else 0)


def digits_task(name: str) -> Watched:
    return Watched("digits", flat_digits(), (), 10, 20, 64, recipe(name))


def train_digits(model: nn.Module, task: Task, seed: int) -> float:
    """The test error in percent, after training at the recipe's rate."""
    (x, y), _, test = split(task.data, seed)
    steps = len(x) // task.batch
    if any(isinstance(module, SLAF) for module in model.modules()):
        optimizer, schedule = task.recipe.optimizer(model, task.epochs, steps)
    else:
        optimizer, schedule = rivals_optimizer(model, task, 1e-2, steps)
    fit(task, model, optimizer, schedule, x, y)
    return 100 * task.score(model, test)


@torch.no_grad()
def largest_input(model: nn.Module, x: Tensor) -> float:
    """The largest absolute value that a SLAF sees."""
    seen: list[float] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].abs().max().item()))
        for module in slafs(model)
    ]
    model.eval()(x)
    for hook in hooks:
        hook.remove()
    return max(seen)


def polynomial_networks(task: Watched, seed: int) -> dict[str, tuple[nn.Module, float]]:
    """Residual networks of 6 layers, polynomial everywhere but for the first, with their test errors in percent.

    They are trained as they are, with the range penalty and without, or converted from the trained ReLU network.
    """
    torch.manual_seed(seed)
    relu = residual(lambda channels: nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()), 6)
    found = {"ReLU": (relu, train_digits(relu, task, seed))}
    (x, _), _, test = split(task.data, seed)
    for degree in (2, 8):
        model, _ = convert(relu, x, degree=degree, outside="extrapolate")
        found[f"converted, degree {degree}"] = model, 100 * task.score(model, test)
    for name, strength in (("no range penalty", 0.0), ("the recipe", task.recipe.range_penalty)):
        torch.manual_seed(seed)
        model = residual(task.recipe.activation, 6)
        watch = range_penalty(model, strength)
        found[name] = model, train_digits(model, replace(task, watch=watch), seed)
        watch.remove()
    return found


def encrypted(seeds: int) -> str:
    task = digits_task("encrypted")
    runs = [polynomial_networks(task, seed) for seed in range(seeds)]
    lines = ["| network | test error | largest input of a polynomial |", "|---|--:|--:|"]
    tests = [split(task.data, seed)[2][0] for seed in range(seeds)]
    for name in runs[0]:
        models = [run[name][0] for run in runs] if name != "ReLU" else []
        largest = summary([largest_input(*pair) for pair in zip(models, tests, strict=True)]) if models else ""
        lines.append(f"| {name} | {summary([run[name][1] for run in runs])} | {largest} |")
    return "\n".join([*lines, "", f"The encrypted recipe, of degree 2, on digits: percent, {seeds} seeds."])


def curves(out: Path) -> None:
    """Draws the learned activations of the two-spiral network, over their inputs, before training and after."""
    task = SMALL["two-spiral"]()
    torch.manual_seed(0)
    before, (after, _) = network(task, "slaf"), train(task, "slaf", Choice(task.recipe.lr), 0)
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for row, model, when in zip(axes, (before, after), ("before", "after"), strict=True):
        x = task.data[0]
        with torch.no_grad():
            model.train()(x)  # which gives the running statistics something to start from
            model.eval()
            for i, layer in enumerate(model):
                if isinstance(layer, SLAF):
                    layer.plot(row[i // 2], inputs=x)
                    row[i // 2].set_title(f"layer {i // 2 + 1}, {when} training")
                x = layer(x)
    figure.savefig(out / "curves.png", dpi=120)
    pyplot.close(figure)


@torch.no_grad()
def learned(out: Path) -> None:
    """Draws the polynomials of the default SLAF(5, channels) in the two-spiral network beside their start."""
    task = SMALL["two-spiral"]()
    with torch.enable_grad():
        model, _ = train(task, "default", Choice(task.recipe.lr), 0)
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    seen = task.data[0]
    places = iter(zip(axes, (1, 2), strict=True))
    for layer in model:
        if isinstance(layer, SLAF):
            ax, number = next(places)
            x = torch.linspace(-5, 5, 400).unsqueeze(1)
            ax.hist(seen.flatten(), 80, (-5, 5), color="0.88", weights=torch.full((seen.numel(),), 40 / seen.numel()))
            for curve in layer(x.expand(-1, layer.num_groups)).T[::3]:
                ax.plot(x, curve, linewidth=1.4)
            ax.plot(x, SLAF(5)(x), color="black", linestyle="--", label="start: GELU")
            ax.set(title=f"layer {number}", xlabel="x", ylabel="f(x)", xlim=(-5, 5), ylim=(-5, 7))
            ax.grid(alpha=0.3)
        seen = layer(seen)
    axes[0].legend()
    figure.savefig(out / "learned.png", dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.experiments.lessons", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "local")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    mpl.use("agg")
    arguments.out.mkdir(parents=True, exist_ok=True)
    curves(arguments.out)
    learned(arguments.out)
    parts = lessons(arguments.seeds), depth(arguments.out, arguments.seeds), encrypted(arguments.seeds)
    text = "\n\n".join(parts) + "\n"
    (arguments.out / "lessons.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
