"""From a trained network to a polynomial one: step by step, and until its inputs stay in their ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from .. import bases
from ..arguments import check_model
from ..bases import Basis
from ..convert import convert
from ..convert.calibration import Batches
from ..convert.ranges import RangeReport, check
from .penalties import range_penalty

# Trains a network in place; the second argument gives what is to be added to the loss of each batch.
FineTune = Callable[[nn.Module, Callable[[], Tensor]], None]


def convert_progressively(
    model: nn.Module,
    calibration: Tensor | Iterable,
    fine_tune: FineTune,
    *,
    degree: int,
    basis: str | Basis = "chebyshev",
    method: str = "minimax",
    quantile: float = 0.999,
    margin: float = 0.0,
    strength: float = 0.1,
) -> tuple[nn.Module, RangeReport]:
    """Converts the activations of a trained network one after another, and trains it after each.

    Each activation, in order of execution, becomes a SLAF that is fitted on most of its inputs and extrapolates, see
    :func:`slaf_ext.convert`; then ``fine_tune(network, penalty)`` trains all parameters. Later activations are fitted
    on what the network has become by then, so errors do not add up as they do when all are replaced at once.

    Args:
        model: any module that maps a tensor to a tensor. It is not changed. If it calls its activations as functions,
            ``F.dropout(x, training=self.training)`` in it stays off while it is trained; use nn.Dropout.
        calibration: inputs like those that the network will see, as for :func:`slaf_ext.convert`.
        fine_tune: a function of a network, in training mode, and of ``penalty``, a function without arguments; it
            trains the network in place, for an epoch or so, and adds ``penalty()`` to the loss of every batch: the
            :func:`range_penalty` of the SLAFs so far.
        degree, basis, method, margin: of every polynomial, see :func:`slaf_ext.convert`.
        quantile: the share of an activation's inputs that its domain covers.
        strength: of the range penalty.

    Returns:
        The network, polynomial wherever activations were, in evaluation mode; and what
        :func:`slaf_ext.export.check` reports of it on the calibration data.

    Raises:
        TypeError, ValueError: as :func:`slaf_ext.convert`; or no activation can be converted.

    Example:
        >>> import torch, slaf_ext
        >>> nn = torch.nn
        >>> net, x = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)), torch.randn(256, 2)
        >>> def fine_tune(network, penalty):
        ...     optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        ...     for batch in x.split(64):
        ...         optimizer.zero_grad()
        ...         (network(batch).sub(batch.prod(1, keepdim=True)).square().mean() + penalty()).backward()
        ...         optimizer.step()
        >>> polynomial, report = convert_progressively(net, x, fine_tune, degree=4)
        >>> polynomial[1].degree, polynomial[1].outside, report.not_polynomial
        (4, 'extrapolate', [])

    Source: progressive approximation after SmartPAF (J. Tong and others, MLSys 2024, arXiv:2404.03216); the quantile
    and the penalty are this project's choice.
    """
    how = {"degree": degree, "basis": basis, "method": method, "margin": margin, "quantile": quantile}
    data = Batches(calibration).data  # which an iterator would give once
    _, plan = convert(model, data, outside="extrapolate", **how)  # type: ignore[arg-type]
    if not plan.layers:
        raise ValueError("no activation of the model can be converted; slaf_ext.convert's report says why")
    for layer in plan.layers:
        model, _ = convert(model, data, targets=layer.name, outside="extrapolate", **how)  # type: ignore[arg-type]
        seen = range_penalty(model, strength)
        try:
            fine_tune(model.train(), seen.penalty)
        finally:
            seen.remove()
        model.eval()
    return model, check(model, data)


def contract_ranges(
    model: nn.Module,
    data: Tensor | Iterable,
    fine_tune: FineTune,
    *,
    strength: float = 0.1,
    share: float = 0.0,
    rounds: int = 10,
) -> RangeReport:
    """Trains a network with a growing range penalty until the inputs of its SLAFs stay in their domains.

    Each round trains with :func:`range_penalty` at twice the strength of the round before, and ends the training if
    :func:`slaf_ext.export.check` finds no larger share of the inputs outside in any SLAF.

    Args:
        model: any module with SLAFs. It is trained in place, and is in evaluation mode afterwards.
        data: held-out inputs, as for :func:`slaf_ext.export.check`.
        fine_tune: as for :func:`convert_progressively`; called once a round.
        strength: of the penalty in the first round.
        share: the largest share of a SLAF's inputs that may be outside.
        rounds: the most.

    Returns:
        The last :class:`slaf_ext.export.RangeReport`; its `outside` is at most `share` if the ranges were contracted.

    Raises:
        ValueError: an argument is out of range, or the model holds no SLAF or fails on the data.

    Example:
        >>> import torch, slaf_ext
        >>> nn = torch.nn
        >>> net, x = nn.Sequential(nn.Linear(1, 4), slaf_ext.SLAF(3, domain=(-1, 1))), torch.randn(64, 1)
        >>> def fine_tune(network, penalty):
        ...     optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        ...     for _ in range(50):
        ...         optimizer.zero_grad()
        ...         network(x)
        ...         penalty().backward()
        ...         optimizer.step()
        >>> contract_ranges(net, x, fine_tune, rounds=20).outside
        0.0

    Source: this project's own.
    """
    check_model(model)
    share = bases.check_real(share, "share", lambda t: 0 <= t < 1, "a number from 0 up, below 1")
    rounds = bases.check_integer(rounds, "rounds", 1)
    data = Batches(data, "data").data
    report = check(model, data)
    seen = range_penalty(model, strength)
    try:
        for _ in range(rounds):
            if report.outside <= share:
                break
            fine_tune(model.train(), seen.penalty)
            seen.strength *= 2
            report = check(model.eval(), data)
    finally:
        seen.remove()
    model.eval()
    return report
