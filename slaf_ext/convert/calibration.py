"""The calibration data, checked, and as often as it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Batches:
    """The inputs in the calibration data; can be iterated many times."""

    def __init__(self, data: Any, name: str = "calibration") -> None:
        if isinstance(data, (str, Mapping)) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
            raise TypeError(
                f"{name} is a {type(data).__name__}; it must be inputs like those that the model will see, to "
                "measure ranges and errors on: a tensor, or an iterable of batches, such as a DataLoader"
            )
        if isinstance(data, Iterator):  # it can be consumed only once
            data = list(data)
        self.name = name
        self.data = [data] if isinstance(data, Tensor) else data

    def __iter__(self) -> Iterator[Tensor]:
        seen = False
        for batch in self.data:
            x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(x, Tensor):
                raise ValueError(
                    f"a {self.name} batch is a {type(x).__name__}; give tensors, or tuples that start with one. For a "
                    "model with more inputs, convert a module around it that takes one and fills in the others"
                )
            if not x.isfinite().all():
                raise ValueError(f"a {self.name} batch of shape {tuple(x.shape)} holds nan or inf; it must be finite")
            if x.numel():
                seen = True
                yield x
        if not seen:
            raise ValueError(f"{self.name} holds no inputs; give a tensor, or an iterable of batches")

    def try_on(self, model: nn.Module) -> Tensor:
        """The model's output for the first batch, if it accepts that and returns a tensor."""
        x = next(iter(self))
        try:
            with torch.no_grad():
                out = model(x.clone())
        except Exception as error:  # the model's own code may raise anything
            raise ValueError(
                f"the model fails on a {self.name} batch of shape {tuple(x.shape)} and {x.dtype}: {error}"
            ) from error
        if not isinstance(out, Tensor):
            raise ValueError(f"the model returns a {type(out).__name__}; it must return a tensor")
        return out

    def run(self, *models: nn.Module) -> Iterator[list[Tensor]]:
        """The models' outputs for each batch."""
        with torch.no_grad():
            for x in self:
                yield [model(x.clone()) for model in models]  # a model may change its input in place
