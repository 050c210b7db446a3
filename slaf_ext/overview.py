"""A plot of every activation of a model, over its inputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .bases import check_integer
from .nn import SLAF

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def overview(model: nn.Module, x: Tensor, *, columns: int = 3) -> Figure:
    """Runs the model on x, and plots the learned curves of each SLAF over a histogram of its inputs.

    Args:
        model: any module with SLAFs. It runs once, in evaluation mode; each module's mode is restored afterwards.
        x: a batch.
        columns: the number of plots in a row.

    Returns:
        A matplotlib figure, for example to save: ``figure.savefig("activations.png")``.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: columns is not an integer from 1 up, or no SLAF ran.

    Example:
        >>> import torch, slaf_ext
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), slaf_ext.SLAF(4))
        >>> figure = slaf_ext.overview(net, torch.randn(100, 2))  # doctest: +SKIP
    """
    columns = check_integer(columns, "columns", 1)
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("overview needs matplotlib, which is not installed: pip install matplotlib") from error
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: seen.setdefault(name, args[0].detach().cpu()))
        for name, module in model.named_modules()
        if isinstance(module, SLAF)
    ]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        raise ValueError("no SLAF ran when the model did; there is nothing to plot")
    columns = min(columns, len(seen))
    rows = math.ceil(len(seen) / columns)
    figure = pyplot.figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    for i, (name, inputs) in enumerate(seen.items()):
        slaf = model.get_submodule(name)
        assert isinstance(slaf, SLAF)
        ax = slaf.plot(figure.add_subplot(rows, columns, i + 1), inputs=inputs)
        ax.set_title(f"{name or 'SLAF'}: degree {slaf.degree}, {slaf.num_groups} group{'s' * (slaf.num_groups > 1)}")
    return figure
