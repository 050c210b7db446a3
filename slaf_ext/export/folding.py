"""BatchNorm, and the map from a domain onto a basis's window, put into their neighbours."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..activations import names_of, replace_module
from ..arguments import check_model
from ..batch_norm import batch_norm_map
from ..convert.calibration import Batches
from ..convert.discovery import copy_of
from ..functional import basis_values
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
      coefficients of the SLAF after it: Σ_k a_k φ_k(s x + m) = Σ_k b_k φ_k(x), with a row b for each channel, and with
      a domain, if there is one, that covers those of all channels. This needs ``outside="extrapolate"``, as every
      channel would have edges of its own, and coefficients that are not ill-conditioned; otherwise BatchNorm stays.
    - The map of a SLAF's `domain` onto the window of its basis goes into the nn.Linear or convolution before it, and
      its `domain` becomes None. (:meth:`Polynomial.power_basis` puts it into the coefficients.)

    Normalised SLAFs become plain ones. A BatchNorm that is folded leaves an nn.Identity. What is used more than once
    stays as it is, and so does a BatchNorm that is not right before a SLAF.

    Args:
        model: any module that maps a tensor to a tensor and that torch.fx can trace. It is not changed.
        example: an input. Its shape tells whether what a layer gives has its channels in dim 1, where BatchNorm does;
            and the copy must give for it what the model gives.

    Raises:
        TypeError: the model is not an nn.Module.
        ValueError: the model fails on the example, or torch.fx cannot trace it; a BatchNorm before a SLAF keeps no
            running statistics, or they are not finite; or the copy computes something else, because the model has
            hooks, or reads the weights of a layer elsewhere.

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
    check_model(model)
    if isinstance(model, SLAF):
        return model.fold().eval()
    folded = copy_of(model).eval()
    sizes, expected = _run(folded, example)
    with torch.no_grad():
        for slaf, chain in _chains(folded):
            _fold(folded, slaf, chain, sizes)
        difference = _relative(folded(example.clone()), expected)
    # A wrong map changes the output by its own size, rounding by far less.
    if not difference <= min(0.1, 100 * math.sqrt(torch.finfo(expected.dtype).eps)):
        raise ValueError(
            f"the folded network differs from the model by {difference:.2g} of its largest output on the example: the "
            "model has hooks, classes with a forward of their own, or reads a layer's weights elsewhere; fold without"
        )
    return folded


def _run(model: nn.Module, example: Tensor) -> tuple[dict[nn.Module, int], Tensor]:
    """The number of dimensions of what each module gives, and what the model gives."""
    found: dict[nn.Module, int] = {}

    def see(module: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            found[module] = out.dim()

    modules = (module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule))
    hooks = [module.register_forward_hook(see) for module in modules]
    out = Batches([example], "trial").try_on(model)
    for hook in hooks:
        hook.remove()
    return found, out


def _relative(given: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value; 0 where both are the same infinity, or NaN."""
    same = (given == expected) | (given.isnan() & expected.isnan())
    difference = (given.double() - expected.double()).abs().masked_fill(same, 0)
    return float(difference.max() / expected[expected.isfinite()].double().abs().max()) if difference.any() else 0.0


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
        """The module of a call with one input, if it is called once."""
        if node.op != "call_module" or len(node.all_input_nodes) != 1:
            return None
        module = model.get_submodule(str(node.target))
        return module if calls.count(module) == 1 else None

    found = []
    for node in graph.nodes:
        slaf = once(node)
        if not isinstance(slaf, SLAF):
            continue
        chain: list[nn.Module] = []
        (before,) = node.all_input_nodes
        while (module := once(before)) is not None and len(before.users) == 1:
            if isinstance(module, BATCH_NORM) and not chain:
                chain.append(module)
            elif isinstance(module, LINEAR):
                chain.append(module)
                break
            elif not isinstance(module, (nn.Identity, nn.Dropout)):
                break
            (before,) = before.all_input_nodes
        found.append((slaf, chain))
    return found


def _fold(model: nn.Module, slaf: SLAF, chain: list[nn.Module], dimensions: dict[nn.Module, int]) -> None:
    if slaf.normalize:
        slaf = _replace(model, slaf, slaf.fold())
    norm = next((m for m in chain if isinstance(m, BATCH_NORM)), None)
    # A weight that is computed, as by pruning, is no parameter.
    linear = next((m for m in chain if isinstance(m, LINEAR) and "weight" in m._parameters), None)
    if norm is not None:
        scale, shift = batch_norm_map(norm)
        if not (scale.isfinite().all() and shift.isfinite().all()):
            raise ValueError(f"{norm} has running statistics that are not finite; train it on inputs that are")
        # A linear layer has its channels in the last dimension, a convolution before its one to three others.
        if linear is not None and dimensions[norm] == (2 if isinstance(linear, nn.Linear) else linear.weight.dim()):
            _apply(linear, scale, shift)
        elif slaf.outside == "extrapolate" and (slaf.num_groups == 1 or slaf.dim % dimensions[norm] == 1):
            composed = _composed(slaf, scale.tolist(), shift.tolist())
            if composed is None:
                return
            slaf = _replace(model, slaf, composed)
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
    dtype, trained = layer.weight.dtype, layer.weight.requires_grad
    layer.weight, layer.bias = (nn.Parameter(t.to(dtype), requires_grad=trained) for t in (weight, bias))


def _composed(slaf: SLAF, scale: list[float], shift: list[float]) -> SLAF | None:
    """The SLAF of x ↦ p(scale x + shift), with a group for each channel in dim 1; None if it loses digits."""
    channels, (lo, hi) = len(scale), slaf.domain or slaf.basis.domain
    if 0.0 in scale:
        return None
    ends = [((t - m) / s) for s, m in zip(scale, shift, strict=True) for t in (lo, hi)]
    domain = None if slaf.domain is None else (min(ends), max(ends))
    (s, m), (own, middle) = (window_map(slaf.basis, interval) for interval in (slaf.domain, domain))
    given, rows = coefficient_rows(slaf).repeat(channels // slaf.num_groups, axis=0), []
    for i, row in enumerate(given):
        # s (a x + b) + m as a function of u = own x + middle
        a, b = s * Fraction(scale[i]) / own, s * Fraction(shift[i]) + m
        try:
            rows.append(combine(row, change_of_basis(slaf.degree, slaf.basis, slaf.basis, a, b - a * middle)))
        except OverflowError:
            return None
    composed = SLAF(
        slaf.degree,
        channels,
        basis=slaf.basis,
        domain=domain,
        outside=slaf.outside,
        init=np.array(rows).squeeze(0) if channels == 1 else np.array(rows),
        device=slaf.coeffs.device,
        dtype=torch.promote_types(slaf.coeffs.dtype, torch.float32),
    ).eval()
    composed.coeffs.requires_grad_(slaf.coeffs.requires_grad)
    t = torch.linspace(lo, hi, 33, **ON_HOST)
    expected = basis_values(t, slaf.degree, slaf.basis, domain=slaf.domain) @ torch.from_numpy(given).T
    x = (t.unsqueeze(1) - torch.tensor(shift, **ON_HOST)) / torch.tensor(scale, **ON_HOST)
    error = (composed(x.to(composed.coeffs)).cpu() - expected).abs().max()
    return composed if error <= 1000 * torch.finfo(composed.coeffs.dtype).eps * expected.abs().max() else None
