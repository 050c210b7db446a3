"""Hybrid networks: SLAFs beside ordinary activations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import bases
from ..activations import ACTIVATIONS, names_of, replace_module
from ..arguments import check_model
from ..nn import SLAF


def replace_activations(
    model: nn.Module,
    *,
    degree: int,
    every: int | None = None,
    index: int | None = None,
    names: Iterable[str] | None = None,
    **options: Any,
) -> int:
    """Hybrid networks: replaces some activation modules by untrained SLAFs, in place.

    For training from scratch: it changes the model itself, replaces only the activation modules of torch.nn, and fits
    nothing. For a trained network use :func:`slaf_ext.convert`, which returns a converted copy, with polynomials fitted
    to the activations, and a report.

    Args:
        model: any module. Its activations are counted from 0 in the order of ``model.named_modules()``; one that has
            several names counts once.
        degree, options: for the SLAFs, see :class:`slaf_ext.SLAF`. By default their device is that of the model's
            parameters, and their dtype too, except that half precision becomes float32.
        every: replace the activations whose index is a multiple of it: 1 for all.
        index: or replace this one; a negative index counts from the end.
        names: or replace those with these names.

    Returns:
        The number of parameters added, minus those of the replaced modules: an int, not the model.

    Raises:
        ValueError: not exactly one of `every`, `index` and `names` is given, or it names no activation.

    Example:
        >>> import torch, slaf_ext
        >>> nn = torch.nn
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> replace_activations(net, degree=2, index=-1)
        3
        >>> net[3]
        SLAF(2, basis='chebyshev', domain=(-4.0, 4.0), outside='linear')

    Source: the abstract of arXiv:1906.09529 (SLAF beside standard activations); its authors' smallest hybrid is one
    SLAF of degree 2 in a ResNet-32.
    """
    check_model(model)
    if sum(choice is not None for choice in (every, index, names)) != 1:
        raise ValueError("give exactly one of every, index and names: which activations to replace")
    present = [name for name, module in model.named_modules() if isinstance(module, ACTIVATIONS)]
    if every is not None:
        every = bases.check_integer(every, "every", 1)
        chosen = present[::every]
    elif index is not None:
        is_integer = isinstance(index, (int, np.integer)) and not isinstance(index, bool)
        if not (is_integer and -len(present) <= index < len(present)):
            raise ValueError(f"index is {index} and the model holds {len(present)} activations: {', '.join(present)}")
        chosen = [present[index]]
    else:
        chosen = [names] if isinstance(names, str) else list(names or ())
        unknown = [name for name in chosen if name not in present]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not an activation of the model; those are {', '.join(present)}")
    if not chosen:
        raise ValueError("there is nothing to replace: the model holds no activation modules, or names is empty")

    before = sum(p.numel() for p in model.parameters())
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    options.setdefault("device", like.device)
    options.setdefault("dtype", torch.promote_types(like.dtype, torch.float32))
    for old in [model.get_submodule(name) for name in chosen]:
        new = SLAF(degree, **options).train(old.training)
        if old is model:
            raise ValueError("the model is an activation itself; put it into an nn.Sequential first")
        replace_module(model, names_of(model, old), new)
    return sum(p.numel() for p in model.parameters()) - before
