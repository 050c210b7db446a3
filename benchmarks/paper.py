"""The paper's experiments, with equal budgets and a correct baseline: ``python -m benchmarks.paper --help``.

Networks with SLAF, with one SLAF beside ReLU, and with ReLU, of the same widths. Every SLAF is normalised; ReLU has a
BatchNorm before it, and the output is linear in all of them. Each network gets the same optimiser, epochs and choice of
learning rates, made on a validation split with a seed of its own; what is reported is the test split at the last epoch,
over several seeds.

Source: arXiv:1906.09529 for the tasks. Widths, degrees and epochs are smaller here, and the image network is one plain
network for all image tasks, not the authors' three.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot
from torch import Tensor, nn
from tqdm import tqdm

from slaf_ext import SLAF, overview

KINDS = ("slaf", "hybrid", "relu")
RATES = (1e-2, 3e-3)
Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """Data and network of an experiment. `widths` are the hidden layers'; of images all but the last are channels."""

    name: str
    data: tuple[Tensor, Tensor]
    widths: tuple[int, ...]
    degree: int
    outputs: int
    epochs: int
    batch: int

    @property
    def is_regression(self) -> bool:
        return self.data[1].is_floating_point()


class Naive(nn.Module):
    """The normalised SLAF in monomials as people write it, for the time it takes."""

    def __init__(self, degree: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(degree + 1, channels))
        nn.init.ones_(self.weight[1])

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        axes = [d for d in range(x.dim()) if d != 1]
        y = self.weight[0].view(shape).expand_as(x)
        for k in range(1, len(self.weight)):
            z = x**k
            variance, mean = torch.var_mean(z, axes, correction=0, keepdim=True)
            y = y + self.weight[k].view(shape) * (z - mean) / torch.sqrt(variance + 1e-5)
        return y


def activation(kind: str, index: int, degree: int, channels: int, images: bool) -> nn.Module:
    if kind == "naive":
        return Naive(degree, channels)
    if kind == "slaf" or (kind == "hybrid" and index == 0):
        return SLAF(degree, channels, basis="monomial", normalize=True, momentum=0.1)
    return nn.Sequential(nn.BatchNorm2d(channels) if images else nn.BatchNorm1d(channels), nn.ReLU())


def network(task: Task, kind: str) -> nn.Sequential:
    x = task.data[0]
    layers: list[nn.Module] = []
    images = x.dim() == 4
    size = x.shape[1]
    for i, width in enumerate(task.widths):
        convolution = images and i < len(task.widths) - 1
        if convolution:
            layers += [nn.Conv2d(size, width, 3, padding=1), activation(kind, i, task.degree, width, True)]
            layers.append(nn.MaxPool2d(2))
        else:
            if images:
                side = x.shape[2] // 2 ** (len(task.widths) - 1), x.shape[3] // 2 ** (len(task.widths) - 1)
                layers.append(nn.Flatten())
                size *= side[0] * side[1]
            layers += [nn.Linear(size, width), activation(kind, i, task.degree, width, False)]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, task.outputs))


def two_spiral(points: int, seed: int = 0) -> Split:
    """Two spirals of two turns, with noise U[0, 0.1]."""
    rng = np.random.default_rng(seed)
    label = np.repeat([0, 1], points)
    t = np.sqrt(rng.random(2 * points))
    angle = 4 * np.pi * t + np.pi * label
    x = np.stack([t * np.cos(angle), t * np.sin(angle)], 1) + 0.1 * rng.random((2 * points, 2))
    return torch.from_numpy(x).float(), torch.from_numpy(label)


def sparse_polynomial(features: int, degree: int, samples: int, seed: int = 0) -> Split:
    """The sum of ten random monomials of that degree in standard normal features, scaled to variance 1."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, features))
    y = sum(x[:, rng.integers(0, features, degree)].prod(1) for _ in range(10))
    return torch.from_numpy(x).float(), torch.from_numpy((y - y.mean()) / y.std()).float().unsqueeze(1)


def digits() -> Split:
    """scikit-learn's bundled 8 × 8 digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.from_numpy(data.images).float().unsqueeze(1) / 16, torch.from_numpy(data.target).long()


def read_idx(path: Path) -> np.ndarray:
    """An IDX file, as MNIST and Fashion-MNIST come, compressed or not."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is no IDX file of bytes: it starts with {raw[:4]!r}")
    ndim = raw[3]
    shape = np.frombuffer(raw, ">i4", ndim, 4)
    if len(raw) != 4 + 4 * ndim + shape.prod():
        raise ValueError(f"{path} holds {len(raw)} bytes, which is not what its shape {tuple(shape.tolist())} needs")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def load_mnist(folder: Path) -> Split:
    """The training files of MNIST or Fashion-MNIST in a folder."""
    found = [sorted(folder.glob(f"train-{kind}-ubyte*")) for kind in ("images-idx3", "labels-idx1")]
    if not all(found):
        raise ValueError(f"{folder} lacks train-images-idx3-ubyte or train-labels-idx1-ubyte, with or without .gz")
    images, labels = (read_idx(files[0]) for files in found)
    return torch.from_numpy(images.copy()).float().unsqueeze(1) / 255, torch.from_numpy(labels.astype(np.int64))


def load_cifar10(folder: Path) -> Split:
    """The training files of CIFAR-10's binary version in a folder."""
    files = sorted(folder.glob("data_batch_*.bin"))
    if not files:
        raise ValueError(f"{folder} holds no data_batch_*.bin; get CIFAR-10's binary version")
    bytes_of = [np.fromfile(file, np.uint8) for file in files]
    for file, read in zip(files, bytes_of, strict=True):
        if len(read) % 3073:
            raise ValueError(f"{file} holds {len(read)} bytes; rows of CIFAR-10 have 3073, so a part of it is missing")
    rows = np.concatenate(bytes_of).reshape(-1, 3073)
    images = torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).copy()).float() / 255
    return images, torch.from_numpy(rows[:, 0].astype(np.int64))


def tasks(full: bool, mnist: Path | None, fashion: Path | None, cifar10: Path | None) -> list[Task]:
    if full:
        chosen = [Task("two-spiral", two_spiral(100_000), (20, 20), 7, 2, 15, 256)]
        for degree in (3, 4):
            data = sparse_polynomial(100, degree, 100_000)
            chosen.append(Task(f"sparse poly {degree}", data, (512, 512), 2, 1, 50, 2048))
        chosen.append(Task("digits", digits(), (16, 32, 64), 3, 10, 40, 64))
    else:
        chosen = [Task("two-spiral", two_spiral(2000), (20, 20), 7, 2, 15, 128)]
        for degree in (3, 4):
            data = sparse_polynomial(10, degree, 6000)
            chosen.append(Task(f"sparse poly {degree}", data, (64, 64), 2, 1, 15, 128))
        chosen.append(Task("digits", digits(), (8, 16, 32), 3, 10, 8, 64))
    for name, path, load in (("MNIST", mnist, load_mnist), ("Fashion-MNIST", fashion, load_mnist)):
        if path is not None:
            chosen.append(Task(name, load(path), (16, 32, 256), 4, 10, 10, 64))
    if cifar10 is not None:
        chosen.append(Task("CIFAR-10", load_cifar10(cifar10), (32, 64, 256), 3, 10, 20, 128))
    return chosen


def split(data: Split, seed: int) -> tuple[Split, Split, Split]:
    """Training, validation and test: 70, 10 and 20 %."""
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(seed))
    ends = int(0.7 * len(order)), int(0.8 * len(order))
    parts = order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]
    train, validation, test = ((data[0][p], data[1][p]) for p in parts)
    return train, validation, test


def score(task: Task, model: nn.Module, data: Split) -> float:
    """Mean squared error, or the share of wrong answers: lower is better."""
    model.eval()
    with torch.no_grad():
        y = torch.cat([model(x) for x in data[0].split(1024)])
    if task.is_regression:
        return float((y - data[1]).square().mean())
    return float((y.argmax(1) != data[1]).float().mean())


def train(task: Task, kind: str, rate: float, seed: int, epochs: int | None = None) -> tuple[nn.Module, float, float]:
    """A trained network, and its training's seconds an epoch; the last number is the validation score."""
    torch.manual_seed(seed)
    training, validation, _ = split(task.data, seed)
    model = network(task, kind)
    epochs = epochs or task.epochs
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    loss_of = nn.MSELoss() if task.is_regression else nn.CrossEntropyLoss()
    times = []
    for _ in range(epochs):
        model.train()
        start = time.perf_counter()
        for index in torch.randperm(len(training[0])).split(task.batch):
            optimizer.zero_grad()
            loss_of(model(training[0][index]), training[1][index]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        schedule.step()
        times.append(time.perf_counter() - start)
    return model, statistics.median(times), score(task, model, validation)


def draw(task: Task, models: dict[str, nn.Module], out: Path) -> None:
    """The learned activations of the last seed's SLAF network; of points in the plane, what each network decides."""
    name = task.name.replace(" ", "-")
    overview(models["slaf"], task.data[0][:2000]).savefig(out / f"{name}-activations.png", dpi=120)
    if task.data[0].shape[1:] == (2,):
        axis = torch.linspace(-1.3, 1.3, 300)
        plane = torch.cartesian_prod(axis, axis)
        figure, axes = pyplot.subplots(1, len(models), figsize=(4 * len(models), 4), layout="constrained")
        for ax, (kind, model) in zip(axes, models.items(), strict=True):
            with torch.no_grad():
                decided = model.eval()(plane).argmax(1).reshape(300, 300).T.numpy()
            ax.pcolormesh(axis.numpy(), axis.numpy(), decided, cmap="coolwarm", alpha=0.4)
            ax.scatter(*task.data[0][::10].T.numpy(), c=task.data[1][::10].numpy(), cmap="coolwarm", s=2)
            ax.set_title(kind)
            ax.set_aspect("equal")
        figure.savefig(out / f"{name}-decisions.png", dpi=120)
    pyplot.close("all")


def experiment(task: Task, seeds: int, bar: tqdm, out: Path) -> list[dict]:
    """A row for each kind of network; pictures are written to `out`."""
    rows, models = [], {}
    for kind in KINDS:
        by_rate = {}
        for rate in RATES:
            # NaN, a run that broke down, must not win.
            by_rate[rate] = np.nan_to_num(train(task, kind, rate, seed=10_000)[2], nan=np.inf)
            bar.update()
        rate = min(by_rate, key=by_rate.__getitem__)
        scores, times = [], []
        for seed in range(seeds):
            model, seconds, _ = train(task, kind, rate, seed)
            scores.append(score(task, model, split(task.data, seed)[2]))
            times.append(seconds)
            bar.update()
        row = {"task": task.name, "network": kind, "rate": rate, "scores": scores, "seconds": statistics.median(times)}
        row["parameters"] = sum(p.numel() for p in model.parameters())
        row["measure"] = "MSE" if task.is_regression else "error %"
        if kind == "slaf":
            row["naive_seconds"] = train(task, "naive", rate, 0, epochs=3)[1]
        rows.append(row)
        models[kind] = model
    draw(task, models, out)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown whose columns line up, and then where SLAF loses: to ReLU, by how much, and in time."""
    cells = [("task", "network", "test error ± sd", "parameters", "s/epoch", "naive")]
    for row in rows:
        factor = 1 if row["measure"] == "MSE" else 100
        mean, deviation = factor * np.mean(row["scores"]), factor * np.std(row["scores"], ddof=1)
        score = f"{mean:.3g} ± {deviation:.1g} {row['measure'].removeprefix('error ')}"
        naive = f"{row['naive_seconds']:.3g}" if "naive_seconds" in row else ""
        cells.append((row["task"], row["network"], score, f"{row['parameters']:,}", f"{row['seconds']:.3g}", naive))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    lines += ["", "naive: s/epoch of the SLAF network with a tensor for every power.", ""]

    lost, slower = [], []
    for task in dict.fromkeys(row["task"] for row in rows):
        by_network = {row["network"]: row for row in rows if row["task"] == task}
        slaf, relu = by_network["slaf"], by_network["relu"]
        slower.append(slaf["seconds"] / relu["seconds"])
        ours, theirs = np.mean(slaf["scores"]), np.mean(relu["scores"])
        if not ours < theirs:  # NaN, of runs that broke down, loses too
            factor = 1 if slaf["measure"] == "MSE" else 100
            near = abs(ours - theirs) <= np.hypot(np.std(slaf["scores"], ddof=1), np.std(relu["scores"], ddof=1))
            verb = "equals" if ours == theirs else "loses to"
            numbers = f"{factor * ours:.3g} to {factor * theirs:.3g} {slaf['measure']}"
            lost.append(f"SLAF {verb} ReLU on {task}: {numbers}{', within the noise' * bool(near)}.")
    lines += lost or ["SLAF loses to ReLU on no task."]
    lines.append(f"An epoch with SLAF takes {min(slower):.2g} to {max(slower):.2g} times as long as one with ReLU.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the paper's sizes; hours on a CPU")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/local/paper"))
    parser.add_argument("--mnist", type=Path, help="a folder with MNIST's IDX files")
    parser.add_argument("--fashion", type=Path, help="a folder with Fashion-MNIST's IDX files")
    parser.add_argument("--cifar10", type=Path, help="a folder with CIFAR-10's binary files")
    parser.add_argument("--threads", type=int, default=1, help="networks this small lose time by waiting for threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    mpl.use("agg")
    if arguments.seeds < 2:
        parser.error(f"--seeds is {arguments.seeds}; a deviation needs at least 2")
    chosen = tasks(arguments.full, arguments.mnist, arguments.fashion, arguments.cifar10)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tqdm(total=len(chosen) * len(KINDS) * (arguments.seeds + len(RATES))) as bar:
        for task in chosen:
            bar.set_description(task.name)
            rows += experiment(task, arguments.seeds, bar, arguments.out)
            facts = {"torch": torch.__version__, "machine": platform.platform(), "threads": torch.get_num_threads()}
            (arguments.out / "raw.json").write_text(json.dumps({**facts, "rows": rows}, indent=1))
            (arguments.out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
