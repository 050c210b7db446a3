"""Training routines for networks with SLAF activations. Each is one line in an ordinary training loop.

| routine | the line | origin |
|---|---|---|
| recipes | ``optimizer, schedule = recipe("bounded").optimizer(model, epochs, len(loader))`` | this project |
| two learning rates | ``Adam(param_groups(model, lr=1e-3))`` | authors' code of arXiv:1906.09529 |
| decoupled penalty | ``coefficient_penalty(model, 1e-4)`` after ``optimizer.step()`` | the same |
| gating | ``gate(model)`` before creating the optimiser | the same |
| max scaling | ``nn.Sequential(MaxScale(), SLAF(5))`` | the same |
| gradient clipping | ``torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)`` | the same: 5.0, spiral 1.0 |
| odd or even | ``parity(model, "odd")`` before creating the optimiser | this project |
| hybrid | ``replace_activations(model, degree=2, every=3)`` | the same |
| two-phase | ``freeze_weights(model)``, after training and :func:`slaf_ext.convert` | PLOS ONE 2024, see there |
| alternating | ``alternate(model, step, period=100)`` at the start of each step | this project |
| range penalty | ``loss + seen.penalty()`` | networks for homomorphic encryption, see there |
| progressive | ``convert_progressively(model, x, fine_tune, degree=4)`` | SmartPAF, see there |
| contraction | ``contract_ranges(model, x, fine_tune)`` | this project |

Clipping is torch's own. It matters for monomials without normalisation, whose gradients grow like |x|^n.
"""

from .hybrid import replace_activations
from .layers import MaxScale, gate, parity, ungate
from .parameters import alternate, coefficients, freeze_coefficients, freeze_weights, param_groups, slafs, weights
from .penalties import RangeWatch, coefficient_penalty, range_penalty
from .progressive import contract_ranges, convert_progressively
from .recipes import Recipe, recipe

__all__ = [
    "MaxScale",
    "RangeWatch",
    "Recipe",
    "alternate",
    "coefficient_penalty",
    "coefficients",
    "contract_ranges",
    "convert_progressively",
    "freeze_coefficients",
    "freeze_weights",
    "gate",
    "param_groups",
    "parity",
    "range_penalty",
    "recipe",
    "replace_activations",
    "slafs",
    "ungate",
    "weights",
]
