"""Self-learnable activation functions: f(x) = Σ a_k φ_k(x), fused, in any polynomial basis."""

from importlib.metadata import version as _version

from . import bases, reference
from .functional import basis_values, slaf
from .nn import SLAF

__version__ = _version("slaf_ext")
__all__ = ["SLAF", "bases", "basis_values", "reference", "slaf"]
