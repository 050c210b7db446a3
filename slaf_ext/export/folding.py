"""BatchNorm, and the map from a domain onto a basis's window, put into their neighbours."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ..activations import names_of, replace_module
from ..batch_norm import batch_norm_map
from ..convert.calibration import Batches
from ..convert.discovery import copy_of
from ..nn import SLAF, coefficient_rows
from ..series import change_of_basis, combine, window_map
from ..torch_private import BATCH_NORM

ON_HOST: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fold_batch_norm(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a network, in evaluation mode, without BatchNorm before its SLAFs and without maps of their domains.

    Both are linear maps, and cost an encrypted evaluation a level each. In evaluation mode, and up to rounding, the
    copy computes the same:

    - y = s x + m of a BatchNorm goes into the nn.Linear or convolution before it. Where there is none, it goes into the
      coefficients of the SLAF after it: Σ_k a_k φ_k(s x + m) = Σ_k b_k φ_k(x), exactly, with a row b for each channel.
      This needs ``outside="extrapolate"``, as every channel would have edges of its own.
    - The map of a SLAF's `domain` onto the window of its basis goes into the nn.Linear or convolution before it, and
      its `domain` becomes None. (:meth:`Polynomial.power_basis` puts it into the coefficients.)

    Normalised SLAFs become plain ones. A BatchNorm that is folded leaves an nn.Identity. What is used more than once
    stays as it is, and so does a BatchNorm that is not before a SLAF.

    Args:
        model: any module that maps a tensor to a tensor and that torch.fx can trace. It is not changed.
        example: an input. Its shape tells whether what a layer gives has its channels in dim 1, where BatchNorm does.

    Raises:
        TypeError: the model is not an nn.Module.
        ValueError: the model fails on the example, or torch.fx cannot trace it; or a BatchNorm before a SLAF keeps no
            running statistics.

    Example:
        >>> import torch, slaf_ext
        >>> nn = torch.nn
        >>> norm = nn.BatchNorm1d(3)
        >>> net = nn.Sequential(nn.Linear(2, 3), norm, slaf_ext.SLAF(2, 3, domain=(-4, 4), outside="extrapolate"))
        >>> x = torch.randn(5, 2)
        >>> folded = slaf_ext.export.fold_batch_norm(net, x)
        >>> folded[1], folded[2].domain
        (Identity(), None)
        >>> torch.allclose(folded(x), net.eval()(x), atol=1e-5)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    folded = copy_of(model).eval()
    sizes = _dimensions(folded, example)
    with torch.no_grad():
        for slaf, chain in _chains(folded):
            _fold(folded, slaf, chain, sizes)
    return folded


def _dimensions(model: nn.Module, example: Tensor) -> dict[nn.Module, int]:
    """The number of dimensions of what each module gives."""
    found: dict[nn.Module, int] = {}

    def see(module: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            found[module] = out.dim()

    hooks = [module.register_forward_hook(see) for module in model.modules()]
    Batches([example], "trial").try_on(model)
    for hook in hooks:
        hook.remove()
    return found


class _Tracer(fx.Tracer):
    """Keeps SLAFs and every kind of BatchNorm whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (SLAF, BATCH_NORM)) or super().is_leaf_module(m, module_qualified_name)


def _chains(model: nn.Module) -> list[tuple[SLAF, list[nn.Module]]]:
    """Each SLAF, with the modules right before it that serve nothing else: a BatchNorm, a linear layer, or both."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # the model's own code may raise anything when it gets a proxy
        raise ValueError(f"torch.fx cannot trace the model, so what is before a SLAF is unknown: {error}") from error
    calls = [model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"]

    def once(node: Any) -> nn.Module | None:
        """The module of a call, if it is called once."""
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        module = model.get_submodule(str(node.target))
        return module if calls.count(module) == 1 else None

    found = []
    for node in graph.nodes:
        slaf = once(node)
        if not isinstance(slaf, SLAF):
            continue
        chain: list[nn.Module] = []
        before = node.args[0]
        while (module := once(before)) is not None and len(before.users) == 1:
            if isinstance(module, BATCH_NORM) and not chain:
                chain.append(module)
            elif isinstance(module, LINEAR):
                chain.append(module)
                break
            elif not isinstance(module, (nn.Identity, nn.Dropout)):
                break
            before = before.args[0]
        found.append((slaf, chain))
    return found


def _fold(model: nn.Module, slaf: SLAF, chain: list[nn.Module], dimensions: dict[nn.Module, int]) -> None:
    if slaf.normalize:
        slaf = _replace(model, slaf, slaf.fold())
    norm = next((m for m in chain if isinstance(m, BATCH_NORM)), None)
    linear = next((m for m in chain if isinstance(m, LINEAR) and not parametrize.is_parametrized(m)), None)
    if norm is not None:
        scale, shift = batch_norm_map(norm)
        # A linear layer has its channels in the last dimension, a convolution before its one to three others.
        if linear is not None and dimensions[norm] == (2 if isinstance(linear, nn.Linear) else linear.weight.dim()):
            _apply(linear, scale, shift)
        elif slaf.outside == "extrapolate" and (slaf.num_groups == 1 or slaf.dim % dimensions[norm] == 1):
            slaf = _replace(model, slaf, _composed(slaf, scale, shift))
            linear = None  # the map of the domain comes after this one
        else:
            return
        _replace(model, norm, nn.Identity())
    if linear is not None and slaf.domain is not None:
        _apply(linear, *torch.tensor(list(map(float, window_map(slaf.basis, slaf.domain))), **ON_HOST))
        slaf.domain = None


def _replace(model: nn.Module, old: nn.Module, new: Any) -> Any:
    replace_module(model, names_of(model, old), new)
    return new


def _apply(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """Makes a layer give scale · y + shift, for scalars or a value for each channel."""
    weight = layer.weight.double()
    scale, shift = (t.to(weight.device).expand(len(weight)) for t in (scale, shift))
    bias = shift if layer.bias is None else scale * layer.bias.double() + shift
    weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    # New parameters, because another layer may share the old ones.
    layer.weight, layer.bias = (nn.Parameter(t.to(layer.weight.dtype)) for t in (weight, bias))


def _composed(slaf: SLAF, scale: Tensor, shift: Tensor) -> SLAF:
    """The SLAF of x ↦ p(scale x + shift), with a group for each channel in dim 1."""
    channels = len(scale)
    s, m = window_map(slaf.basis, slaf.domain)
    composed = []
    for i, row in enumerate(coefficient_rows(slaf).repeat(channels // slaf.num_groups, axis=0)):
        a, b = Fraction(float(scale[i])), Fraction(float(shift[i]))
        # s (a x + b) + m as a function of u = s x + m
        composed.append(combine(row, change_of_basis(slaf.degree, slaf.basis, slaf.basis, a, s * b + m - a * m)))
    return SLAF(
        slaf.degree,
        channels,
        basis=slaf.basis,
        domain=slaf.domain,
        outside=slaf.outside,
        init=np.array(composed).squeeze(0) if channels == 1 else np.array(composed),
        device=slaf.coeffs.device,
        dtype=slaf.coeffs.dtype,
    ).eval()
