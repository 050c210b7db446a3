"""Training routines for networks with SLAF activations. Each is a line in an ordinary training loop.

| routine | the line | origin |
|---|---|---|
| recipes | ``optimizer, schedule = recipe("bounded").optimizer(model, epochs, len(loader))`` | this project |
| two learning rates | ``Adam(param_groups(model, lr=1e-3))`` | authors' code of arXiv:1906.09529 |
| decoupled penalty | ``coefficient_penalty(model, 1e-4)`` after ``optimizer.step()`` | the same |
| gating | ``gate(model)`` before the optimiser is made | the same |
| max scaling | ``nn.Sequential(MaxScale(), SLAF(5))`` | the same |
| gradient clipping | ``torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)`` | the same: 5.0, spiral 1.0 |
| hybrid | ``replace_activations(model, degree=2, every=3)`` | the same |
| two-phase | ``freeze_weights(model)``, after training and :func:`slaf_ext.convert` | PLOS ONE 2024, see there |
| alternating | ``alternate(model, step, period=100)`` at the head of the loop | this project |
| range penalty | ``loss + seen.penalty()`` | networks for homomorphic encryption, see there |

Clipping needs nothing of ours. It matters for raw powers without normalisation, whose gradients grow like |x|^n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import bases
from .convert import ACTIVATIONS
from .nn import SLAF


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")


def _check_strength(strength: float) -> float:
    return bases.check_real(strength, "strength", lambda t: 0 <= t < math.inf, "a finite number from 0 up")


def slafs(model: nn.Module) -> list[SLAF]:
    """The SLAF modules of a model, each once.

    Raises:
        ValueError: there is none.
    """
    _check_model(model)
    found = [module for module in model.modules() if isinstance(module, SLAF)]
    if not found:
        raise ValueError("the model holds no SLAF; slaf_ext.convert or training.replace_activations puts them in")
    return found


def coefficients(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model's SLAFs: their coefficients, and their gates where they have any."""
    return list({id(p): p for module in slafs(model) for p in module.parameters()}.values())


def weights(model: nn.Module) -> list[nn.Parameter]:
    """All other parameters of a model."""
    ours = {id(p) for p in coefficients(model)}
    return [p for p in model.parameters() if id(p) not in ours]


def param_groups(model: nn.Module, lr: float, *, coeffs_lr: float | None = None, **options: Any) -> list[dict]:
    """Two learning rates: parameter groups for an optimiser, the weights first, the coefficients second.

    Args:
        model: any module with SLAFs.
        lr: the weights' rate.
        coeffs_lr: the coefficients' rate; None for five times `lr`.
        options: for both groups. A `weight_decay` goes to the weights alone; :func:`coefficient_penalty` serves the
            coefficients.

    Example:
        >>> import torch, slaf_ext
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), slaf_ext.SLAF(4))
        >>> optimizer = torch.optim.Adam(param_groups(net, lr=1e-3))
        >>> [(group["lr"], len(group["params"])) for group in optimizer.param_groups]
        [(0.001, 2), (0.005, 1)]

    Source: the authors' code of arXiv:1906.09529, "two learning rates", with that factor.
    """
    wanted = "a finite number from 0 up"
    lr = bases.check_real(lr, "lr", lambda t: 0 <= t < math.inf, wanted)
    if coeffs_lr is not None:
        coeffs_lr = bases.check_real(coeffs_lr, "coeffs_lr", lambda t: 0 <= t < math.inf, wanted)
    rate = 5 * lr if coeffs_lr is None else coeffs_lr
    return [
        {"params": weights(model), "lr": lr, **options},
        {"params": coefficients(model), "lr": rate, **options, "weight_decay": 0.0},
    ]


def freeze_weights(model: nn.Module, frozen: bool = True) -> None:
    """The second of two phases: train the coefficients alone. ``frozen=False`` trains the weights again.

    Phase one trains with an ordinary activation; :func:`slaf_ext.convert` swaps the SLAFs in; phase two trains them
    for a short while. Make the optimiser afterwards, or clear the gradients: an optimiser moves what has one left.
    Call ``model.eval()`` too where running statistics of BatchNorm must stay. Thawing thaws all, whoever froze it.

    Example:
        >>> import torch, slaf_ext
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), slaf_ext.SLAF(4))
        >>> freeze_weights(net)
        >>> [name for name, p in net.named_parameters() if p.requires_grad]
        ['1.coeffs']

    Source: B. Pulido-Gaytan, A. Tchernykh, *Self-learning activation functions to increase accuracy of
    privacy-preserving convolutional neural networks with homomorphic encryption*, PLOS ONE 19(7), 2024.
    """
    _freeze(weights(model), frozen)


def freeze_coefficients(model: nn.Module, frozen: bool = True) -> None:
    """Trains the weights alone: :func:`freeze_weights` the other way round.

    Example:
        >>> import torch, slaf_ext
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), slaf_ext.SLAF(4))
        >>> freeze_coefficients(net)
        >>> [name for name, p in net.named_parameters() if p.requires_grad]
        ['0.weight', '0.bias']
    """
    _freeze(coefficients(model), frozen)


def _freeze(parameters: list[nn.Parameter], frozen: bool) -> None:
    for p in parameters:
        p.requires_grad_(not frozen)
        if frozen:
            p.grad = None


def alternate(model: nn.Module, step: int, period: int) -> bool:
    """Trains weights and coefficients by turns of `period` steps; call it at the head of every step.

    The optimiser may hold all parameters: those whose turn it is not have no gradient, and are skipped.

    Returns:
        Whether the coefficients are trained in this step.

    Example:
        >>> import torch, slaf_ext
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), slaf_ext.SLAF(4))
        >>> [alternate(net, step, period=2) for step in range(6)]
        [False, False, True, True, False, False]

    Source: this project's own; the authors of arXiv:1906.09529 update both together.
    """
    step, period = bases.check_integer(step, "step", 0), bases.check_integer(period, "period", 1)
    train_coefficients = step // period % 2 == 1
    freeze_weights(model, train_coefficients)
    freeze_coefficients(model, not train_coefficients)
    return train_coefficients


@torch.no_grad()
def coefficient_penalty(
    model: nn.Module, strength: float, *, norm: int = 2, degree_weight: Callable[[int, int], float] | None = None
) -> None:
    """A decoupled penalty on the coefficients: a step of its own, after ``optimizer.step()``.

    With s_k = strength · degree_weight(k, n) the step is a_k ← a_k − 2 s_k a_k for L2 (what gradient descent on
    s_k a_k² does) and a_k ← sign(a_k) max(|a_k| − s_k, 0) for L1 (soft thresholding, which reaches exact zeros).

    Args:
        model: any module with SLAFs. Frozen coefficients stay as they are.
        strength: from 0 up; it has the learning rate in it.
        norm: 1 or 2.
        degree_weight: a function of (k, n), n the degree; None for 1. The authors' variant is
            ``lambda k, n: 2.0 ** (n + 1 - k)``.

    Raises:
        ValueError: a norm other than 1 and 2, a negative strength, or an L2 step that would overshoot zero.

    Example:
        >>> import torch, slaf_ext
        >>> f = slaf_ext.SLAF(2, init=torch.tensor([1.0, -0.05, 0.2]))
        >>> coefficient_penalty(f, 0.1, norm=1)
        >>> f.coeffs.detach().round(decimals=4)
        tensor([0.9000, -0.0000, 0.1000])

    Source: the authors' code of arXiv:1906.09529, "decoupled penalties", for the degree weights; soft thresholding is
    the proximal step of the L1 norm.
    """
    if norm not in (1, 2):
        raise ValueError(f"norm is {norm!r}; it must be 1 or 2")
    strength = _check_strength(strength)
    for module in slafs(model):
        n = module.degree
        shares = [strength * (degree_weight(k, n) if degree_weight else 1.0) for k in range(n + 1)]
        if min(shares) < 0:
            raise ValueError(f"degree_weight makes a share of the penalty {min(shares):.3g}; all must be from 0 up")
        if norm == 2 and max(shares) > 0.5:
            raise ValueError(f"an L2 step of strength {max(shares):.3g} overshoots zero; it must be at most 0.5")
        for p in [p for p in module.parameters() if p.requires_grad and p.shape[-1:] == (n + 1,)]:
            s = torch.tensor(shares, dtype=p.dtype, device=p.device)
            p.copy_(torch.sign(p) * (p.abs() - s).clamp(min=0) if norm == 1 else p * (1 - 2 * s))


class RangeWatch:
    """Watches the inputs of SLAFs; made by :func:`range_penalty`."""

    def __init__(self, modules: list[SLAF], strength: float, interval: tuple[float, float] | None) -> None:
        self.strength = strength
        self.interval = interval
        self._first = modules[0]
        self._terms: list[Tensor] = []
        self._hooks = [module.register_forward_pre_hook(self._see, with_kwargs=True) for module in modules]

    def _see(self, module: SLAF, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        lo, hi = self.interval or module.domain or module.basis.domain
        x = args[0] if args else kwargs["x"]
        if x.numel() and torch.is_grad_enabled():
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            self._terms.append((wide - wide.clamp(lo, hi)).square().mean())

    def penalty(self) -> Tensor:
        """The penalty of the forward passes since the last call; zero where there was none."""
        terms, self._terms = self._terms, []
        if terms:
            return self.strength * torch.stack(terms).sum()
        coeffs = self._first.coeffs
        return torch.zeros((), dtype=torch.promote_types(coeffs.dtype, torch.float32), device=coeffs.device)

    def remove(self) -> None:
        """Stops watching."""
        for hook in self._hooks:
            hook.remove()


def range_penalty(
    model: nn.Module, strength: float = 1.0, *, interval: tuple[float, float] | None = None
) -> RangeWatch:
    """A penalty on inputs of SLAFs that leave their interval, to add to the loss.

    The term of a module is the mean over the elements of x of (distance of x from the interval)². The object that comes
    back watches every forward pass but those without gradients, such as a validation's; its ``penalty()`` is `strength`
    times the sum of the terms since it was last asked, and ``remove()`` ends the watch. Make it once, before the loop.

    Args:
        model: any module with SLAFs.
        strength: the factor.
        interval: (lo, hi) for every module; None for each module's domain, or its basis's window.

    Example:
        >>> import torch, slaf_ext
        >>> f = slaf_ext.SLAF(3, domain=(-2, 2))
        >>> seen = range_penalty(f)
        >>> _ = f(torch.tensor([1.0, 3.0, -4.0]))
        >>> seen.penalty()                           # (0 + 1² + 2²) / 3
        tensor(1.6667)

    Source: losses on the range are common where networks must stay polynomial, as for homomorphic encryption; the
    squared hinge is this project's choice.
    """
    interval = None if interval is None else bases.check_interval(interval, "interval")
    return RangeWatch(slafs(model), _check_strength(strength), interval)


class _Gate(nn.Module):
    """coeffs → sigmoid(g) ⊙ coeffs, the constant left alone, g shared by the groups."""

    def __init__(self, coeffs: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(coeffs.shape[-1] - 1, dtype=coeffs.dtype, device=coeffs.device))

    def forward(self, coeffs: Tensor) -> Tensor:
        return torch.cat([coeffs[..., :1], torch.sigmoid(self.logits) * coeffs[..., 1:]], dim=-1)


def gate(model: nn.Module) -> int:
    """Gives every SLAF a trained gate for each degree: f uses sigmoid(g_k) a_k for k ≥ 1, g ~ N(0, 1), one g a module.

    Use it before the optimiser is made: the modules get parameters. ``ungate`` folds the gates into the coefficients.

    Returns:
        The number of parameters added.

    Example:
        >>> import torch, slaf_ext
        >>> f = slaf_ext.SLAF(4, 8)
        >>> gate(f), sum(p.numel() for p in f.parameters())
        (4, 44)

    Source: the authors' code of arXiv:1906.09529, "gated".
    """
    added = 0
    for module in slafs(model):
        if parametrize.is_parametrized(module, "coeffs"):
            raise ValueError(f"{module} has gates already; ungate the model first")
        gates = _Gate(module.coeffs)
        parametrize.register_parametrization(module, "coeffs", gates)
        added += gates.logits.numel()
    return added


def ungate(model: nn.Module) -> None:
    """Multiplies the gates into the coefficients and removes them. Gates come from :func:`gate`.

    Example:
        >>> import torch, slaf_ext
        >>> f = slaf_ext.SLAF(4)
        >>> _ = gate(f)
        >>> ungate(f)
        >>> [name for name, _ in f.named_parameters()]
        ['coeffs']
    """
    for module in slafs(model):
        if parametrize.is_parametrized(module, "coeffs"):
            parametrize.remove_parametrizations(module, "coeffs", leave_parametrized=True)


class MaxScale(nn.Module):
    """Max scaling before the powers: x / (m · max |x| + n), m and n trained.

    Without `num_channels` the maximum is that of each sample. With it, it is each channel's, over the batch and all
    other axes, and evaluation uses a running average; no gradient flows through it.

    Args:
        num_channels: None, or the size of dim 1.
        m, n: where the two start.
        decay: running = decay · running + (1 − decay) · batch.

    Shape:
        (N, …), or (N, num_channels, …); the output has the same.

    Example:
        >>> import torch
        >>> MaxScale()(torch.tensor([[1.0, -4.0]])).detach().round(decimals=3)
        tensor([[ 0.1250, -0.5000]])

    Source: the authors' code of arXiv:1906.09529, "max scaling", for the form, m = 2 and the decay; n starts at a small
    number here, so that a sample of zeros stays one.
    """

    running_max: Tensor

    def __init__(
        self, num_channels: int | None = None, *, m: float = 2.0, n: float = 1e-5, decay: float = 0.99
    ) -> None:
        super().__init__()
        self.num_channels = None if num_channels is None else bases.check_integer(num_channels, "num_channels", 1)
        self.decay = bases.check_real(decay, "decay", lambda t: 0 <= t <= 1, "a number from 0 to 1")
        self.m, self.n = (
            nn.Parameter(torch.tensor(bases.check_real(value, name, math.isfinite, "a finite number")))
            for name, value in (("m", m), ("n", n))
        )
        if num_channels is not None:
            self.register_buffer("running_max", torch.ones(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.num_channels is None:
            largest = x.abs().flatten(1).amax(1).view(-1, *[1] * (x.dim() - 1))
        else:
            if x.dim() < 2 or x.shape[1] != self.num_channels:
                raise ValueError(f"x has shape {tuple(x.shape)}; its dim 1 must hold {self.num_channels} channels")
            channels = self.running_max
            if self.training and x.numel():
                channels = x.detach().abs().movedim(1, 0).flatten(1).amax(1)
                self.running_max.lerp_(channels.to(self.running_max), 1 - self.decay)
            largest = channels.view(-1, *[1] * (x.dim() - 2))
        return x / (self.m * largest + self.n)


class _BatchNorm(nn.BatchNorm1d):
    """BatchNorm over dim 1 of x, whatever other dimensions there are."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"x has shape {tuple(input.shape)}; its dim 1 must hold {self.num_features} channels")


@dataclass(frozen=True)
class Recipe:
    """How to build and train a network with SLAFs; made by :func:`recipe`, varied by ``dataclasses.replace``.

    Attributes:
        name, use, fails: what it is called, what it is for, and where it fails.
        degree: of every SLAF.
        options: the other arguments of :class:`slaf_ext.SLAF`.
        batch_norm: whether a BatchNorm stands before every SLAF.
        lr, coeffs_lr: the highest learning rates, of the weights and of the coefficients.
        warmup: the share of the steps in which the rates rise to these; in the others they fall to nothing.
        clip: for ``torch.nn.utils.clip_grad_norm_``.
        weight_decay: of the weights, decoupled; the coefficients have none.
        range_penalty: the strength for :func:`range_penalty`; 0 for none.
    """

    name: str
    use: str
    fails: str
    degree: int
    options: dict[str, Any]
    batch_norm: bool = False
    lr: float = 1e-2
    coeffs_lr: float = 1e-2
    warmup: float = 0.3
    clip: float = 5.0
    weight_decay: float = 0.0
    range_penalty: float = 0.0

    def activation(self, channels: int) -> nn.Module:
        """A SLAF with a polynomial a channel of x, (N, channels, …), and the BatchNorm before it where there is one."""
        slaf = SLAF(self.degree, bases.check_integer(channels, "channels", 1), **self.options)
        return nn.Sequential(_BatchNorm(channels), slaf) if self.batch_norm else slaf

    def optimizer(
        self, model: nn.Module, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """AdamW with two rates, and its one-cycle schedule: call ``schedule.step()`` after every batch."""
        steps = bases.check_integer(epochs, "epochs", 1) * bases.check_integer(steps_per_epoch, "steps_per_epoch", 1)
        groups = param_groups(model, self.lr, coeffs_lr=self.coeffs_lr, weight_decay=self.weight_decay)
        optimizer = torch.optim.AdamW(groups)
        rates = [self.lr, self.coeffs_lr]
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rates, total_steps=steps + 1, pct_start=self.warmup
        )


_RECIPES = {
    r.name: r
    for r in (
        Recipe(
            "polynomial",
            use="targets that are polynomials, or nearly: a plain low degree in few layers",
            fails="little by little with every layer more than two; on targets that wave or have kinks",
            degree=2,
            options={"basis": "hermite_e", "domain": None, "init": "noisy_identity"},
        ),
        Recipe(
            "bounded",
            use="irregular targets of few inputs: a high degree, normalised, and held within its domain",
            fails="with more than three layers; with small batches, whose statistics are noise",
            degree=7,
            options={
                "domain": (-3.0, 3.0),
                "outside": "clamp",
                "normalize": True,
                "momentum": 0.1,
                "init": "noisy_identity",
            },
        ),
        Recipe(
            "drop-in",
            use="in place of ReLU or GELU with a BatchNorm before it, in deep networks too",
            fails="without large batches, as BatchNorm does; where a polynomial is needed everywhere",
            degree=5,
            options={"domain": (-3.0, 3.0), "outside": "linear", "init": "gelu"},
            batch_norm=True,
            weight_decay=1e-4,
        ),
        Recipe(
            "encrypted",
            use="networks that are to be polynomial everywhere: BatchNorm folds into the layer before it",
            fails="where inputs leave the range that training has seen; with many layers, as the degrees multiply",
            degree=2,
            options={"basis": "hermite_e", "domain": (-4.0, 4.0), "outside": "extrapolate", "init": "gelu"},
            batch_norm=True,
            lr=3e-3,
            coeffs_lr=3e-3,
            weight_decay=1e-4,
            range_penalty=0.1,
        ),
    )
}


def recipe(name: str) -> Recipe:
    """A recipe by name: "polynomial", "bounded", "drop-in" or "encrypted".

    | recipe | for | where it fails |
    |---|---|---|
    | polynomial | targets that are polynomials | waves and kinks; many layers |
    | bounded | irregular targets of few inputs | more than three layers, small batches |
    | drop-in | in place of ReLU or GELU, at any depth | where BatchNorm does |
    | encrypted | networks that must be polynomial everywhere | inputs beyond the range seen, many layers |

    Raises:
        ValueError: another name.

    Example:
        >>> import torch
        >>> r = recipe("drop-in")
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), r.activation(8), torch.nn.Linear(8, 1))
        >>> optimizer, schedule = r.optimizer(net, epochs=2, steps_per_epoch=10)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     net(torch.randn(16, 4)).square().mean().backward()
        ...     _ = torch.nn.utils.clip_grad_norm_(net.parameters(), r.clip)
        ...     optimizer.step()
        ...     schedule.step()
        >>> r.fails
        'without large batches, as BatchNorm does; where a polynomial is needed everywhere'

    Source: this project's experiments, ``python -m examples.experiments``.
    """
    if not isinstance(name, str) or name not in _RECIPES:
        raise ValueError(f"recipe is {name!r}; it must be one of {', '.join(_RECIPES)}")
    found = _RECIPES[name]
    return replace(found, options=dict(found.options))


def replace_activations(
    model: nn.Module,
    *,
    degree: int,
    every: int | None = None,
    index: int | None = None,
    names: Iterable[str] | None = None,
    **options: Any,
) -> int:
    """Hybrid networks: replaces chosen activation modules by untrained SLAFs, in place.

    The model itself changes, its modules that torch.nn has for activations alone, and nothing is fitted to them. That
    is for training; :func:`slaf_ext.convert` serves a trained network: it leaves the model as it is and returns a copy,
    with polynomials fitted to the activations, and a report.

    Args:
        model: any module. Its activations are counted from 0 in the order of ``model.named_modules()``; one that is
            used under several names counts once.
        degree, options: for the SLAFs, see :class:`slaf_ext.SLAF`. Their device is that of the model's parameters, and
            their dtype too where it is no half precision, unless `options` say otherwise.
        every: replace those whose number is a multiple of it: 1 for all.
        index: or replace that one; a negative one counts from the end.
        names: or replace those names.

    Returns:
        The number of parameters added, less those that the replaced modules held: an int, not the model.

    Raises:
        ValueError: not exactly one of `every`, `index` and `names`, or one that names no activation.

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
    _check_model(model)
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
            raise ValueError(f"{unknown[0]!r} is no activation of the model; those are {', '.join(present)}")
    if not chosen:
        raise ValueError("there is nothing to replace: the model holds no activation modules, or names is empty")

    before = sum(p.numel() for p in model.parameters())
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    options.setdefault("device", like.device)
    options.setdefault("dtype", torch.promote_types(like.dtype, torch.float32))
    for old in [model.get_submodule(name) for name in chosen]:
        new = SLAF(degree, **options).train(old.training)
        places = [name for name, module in model.named_modules(remove_duplicate=False) if module is old]
        for name in places:
            parent, _, own = name.rpartition(".")
            if not own:
                raise ValueError("the model is an activation itself; put it into an nn.Sequential first")
            setattr(model.get_submodule(parent), own, new)
    return sum(p.numel() for p in model.parameters()) - before
