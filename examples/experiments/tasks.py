"""The tasks: data, the size of their networks, and the recipe that serves them, chosen beforehand by what they are.

Source: arXiv:1906.09529 for two-spiral, the sparse polynomials and the image tasks; the image network is one plain
network for all of them, not the authors' three.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from slaf_ext.training import Recipe, recipe

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """What is learned. `widths` are the hidden layers'; of images all but the last are channels."""

    name: str
    data: Split
    widths: tuple[int, ...]
    outputs: int
    epochs: int
    batch: int
    recipe: Recipe
    may_normalize: bool = True  # whether there may be a BatchNorm

    @property
    def is_regression(self) -> bool:
        return self.data[1].is_floating_point()

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return (nn.functional.mse_loss if self.is_regression else nn.functional.cross_entropy)(model(x), y)

    @torch.no_grad()
    def score(self, model: nn.Module, data: Split) -> float:
        """Mean squared error, of targets of variance 1, or the share of wrong answers: lower is better."""
        model.eval()
        y = torch.cat([model(x) for x in data[0].split(1024)])
        if self.is_regression:
            return float((y - data[1]).square().mean())
        return float((y.argmax(1) != data[1]).float().mean())


class Poisson(Task):
    """A physics-informed network: u'' = f on (-1, 1) and u = 0 at its ends. The data are (x, u), the loss uses x alone.

    A BatchNorm would make u'' of a point depend on its neighbours, so none may be used.
    """

    FREQUENCIES = (1, 2, 4)

    @classmethod
    def solution(cls, x: Tensor) -> Tensor:
        return sum(torch.sin(math.pi * k * x) / k for k in cls.FREQUENCIES)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        wanted = -sum(math.pi**2 * k * torch.sin(math.pi * k * x) for k in self.FREQUENCIES)
        ends = model(torch.tensor([[-1.0], [1.0]]))
        return (curvature - wanted).square().mean() / 1000 + ends.square().mean()


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
    return scaled(x, y)


def scaled(x: np.ndarray, y: np.ndarray) -> Split:
    """Inputs of shape (N, features), and targets of mean 0 and variance 1."""
    return torch.from_numpy(x).float(), torch.from_numpy((y - y.mean()) / y.std()).float().unsqueeze(1)


def friedman1(samples: int) -> Split:
    """scikit-learn's regression of ten features, five of which matter, with noise."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(samples, 10, noise=1.0, random_state=0)
    return scaled((x - 0.5) * math.sqrt(12), y)


def sines(samples: int, seed: int = 0) -> Split:
    """The sum of six sines of random directions in four features, with noise of a tenth of its deviation."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, 4))
    y = np.sin(x @ rng.normal(size=(4, 6)) + rng.uniform(0, 2 * np.pi, 6)).sum(1)
    return scaled(x, y + 0.1 * y.std() * rng.standard_normal(samples))


def poisson(samples: int, seed: int = 0) -> Split:
    x = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (samples, 1))).float()
    return x, Poisson.solution(x)


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


# Each is made when it is asked for, by name.
SMALL: dict[str, Callable[[], Task]] = {
    "two-spiral": lambda: Task("two-spiral", two_spiral(2000), (20, 20), 2, 40, 64, recipe("bounded")),
    "sparse 3": lambda: Task("sparse 3", sparse_polynomial(10, 3, 6000), (64, 64), 1, 40, 128, recipe("polynomial")),
    "sparse 4": lambda: Task("sparse 4", sparse_polynomial(10, 4, 6000), (64, 64), 1, 40, 128, recipe("polynomial")),
    "digits": lambda: Task("digits", digits(), (16, 32, 64), 10, 15, 64, recipe("drop-in")),
    "friedman1": lambda: Task("friedman1", friedman1(3000), (64, 64), 1, 30, 128, recipe("drop-in")),
    "sines": lambda: Task("sines", sines(6000), (64, 64), 1, 40, 128, recipe("drop-in")),
    "poisson": lambda: Poisson("poisson", poisson(512), (32, 32), 1, 100, 64, recipe("drop-in"), False),
}
# The paper's sizes.
FULL: dict[str, Callable[[], Task]] = {
    "two-spiral": lambda: Task("two-spiral", two_spiral(100_000), (20, 20), 2, 15, 256, recipe("bounded")),
    "sparse 3": lambda: Task(
        "sparse 3", sparse_polynomial(100, 3, 100_000), (512, 512), 1, 50, 2048, recipe("polynomial")
    ),
    "sparse 4": lambda: Task(
        "sparse 4", sparse_polynomial(100, 4, 100_000), (512, 512), 1, 50, 2048, recipe("polynomial")
    ),
}


def images(name: str, folder: Path) -> Task:
    """MNIST, Fashion-MNIST or CIFAR-10, from files at hand."""
    if name == "cifar10":
        return Task(name, load_cifar10(folder), (32, 64, 256), 10, 20, 128, recipe("drop-in"))
    return Task(name, load_mnist(folder), (16, 32, 256), 10, 10, 64, recipe("drop-in"))


def split(data: Split, seed: int) -> tuple[Split, Split, Split]:
    """Training, validation and test: 70, 10 and 20 %."""
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(seed))
    ends = int(0.7 * len(order)), int(0.8 * len(order))
    parts = order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]
    train, validation, test = ((data[0][p], data[1][p]) for p in parts)
    return train, validation, test
