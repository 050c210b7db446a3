"""A network for a task, and its training: the same for every activation but for what a recipe says."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from slaf_ext import SLAF

from .tasks import Task, split

RIVALS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "prelu": nn.PReLU}
try:
    from rational.torch import Rational  # the package rational-activations
except ImportError:
    pass
else:
    RIVALS["rational"] = Rational
# slaf: the task's recipe. default: SLAF(5, channels). hybrid: the recipe's activation first, ReLU in all other places.
OURS = ("slaf", "default", "hybrid")


@dataclass(frozen=True)
class Choice:
    """What is chosen on a validation split: the highest rate of the one-cycle schedule, and BatchNorm or none."""

    rate: float
    batch_norm: bool = False


def activation(task: Task, kind: str, index: int, channels: int, batch_norm: bool) -> nn.Module:
    if kind == "slaf" or (kind == "hybrid" and index == 0):
        recipe = task.recipe
        return replace(recipe, batch_norm=recipe.batch_norm and batch_norm).activation(channels)
    if kind == "default":
        return SLAF(5, channels)
    rival = RIVALS["relu" if kind == "hybrid" else kind]()
    if not batch_norm:
        return rival
    images = task.data[0].dim() == 4 and index < len(task.widths) - 1
    return nn.Sequential(nn.BatchNorm2d(channels) if images else nn.BatchNorm1d(channels), rival)


def network(task: Task, kind: str, batch_norm: bool = False, scale: float = 1.0) -> nn.Sequential:
    """Layers of the task's widths times `scale`: linear, but for images, which get convolutions and pooling first."""
    x = task.data[0]
    layers: list[nn.Module] = []
    images = x.dim() == 4
    size = x.shape[1]
    for i, width in enumerate(round(scale * width) for width in task.widths):
        if images and i < len(task.widths) - 1:
            layers += [nn.Conv2d(size, width, 3, padding=1), activation(task, kind, i, width, batch_norm)]
            layers.append(nn.MaxPool2d(2))
        else:
            if images:
                pooled = 2 ** (len(task.widths) - 1)
                layers.append(nn.Flatten())
                size *= (x.shape[2] // pooled) * (x.shape[3] // pooled)
            layers += [nn.Linear(size, width), activation(task, kind, i, width, batch_norm)]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, task.outputs))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def widened(task: Task, kind: str, batch_norm: bool) -> float:
    """The scale of widths with which a rival has the parameters of the task's recipe, or just fewer."""
    budget = parameters(network(task, "slaf"))
    scales = [1 + step / 100 for step in range(101)]
    return max((s for s in scales if parameters(network(task, kind, batch_norm, s)) <= budget), default=1.0)


def rivals_optimizer(model: nn.Module, task: Task, rate: float, steps: int) -> tuple[Optimizer, LRScheduler]:
    """What a recipe's optimizer is, for a model without SLAFs."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=task.recipe.weight_decay)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=task.epochs * steps + 1, pct_start=task.recipe.warmup
    )


def train(task: Task, kind: str, choice: Choice, seed: int, scale: float = 1.0) -> tuple[nn.Module, float]:
    """A trained network, and the median seconds of a step."""
    torch.manual_seed(seed)
    (x, y), *_ = split(task.data, seed)
    model = network(task, kind, choice.batch_norm, scale)
    steps = len(x) // task.batch
    if kind in OURS:
        recipe = replace(task.recipe, lr=choice.rate, coeffs_lr=choice.rate)
        optimizer, schedule = recipe.optimizer(model, task.epochs, steps)
    else:
        optimizer, schedule = rivals_optimizer(model, task, choice.rate, steps)
    return model, fit(task, model, optimizer, schedule, x, y)


def fit(
    task: Task, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler | None, x: Tensor, y: Tensor
) -> float:
    """Trains the model, and returns the median seconds of a step."""
    times = []
    for _ in range(task.epochs):
        model.train()
        for index in torch.randperm(len(x)).split(task.batch)[: len(x) // task.batch]:
            start = time.perf_counter()
            optimizer.zero_grad()
            task.loss(model, x[index], y[index]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), task.recipe.clip)
            optimizer.step()
            if schedule:
                schedule.step()
            times.append(time.perf_counter() - start)
    return statistics.median(times)
