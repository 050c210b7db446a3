"""Self-learnable activation functions: f(x) = Σ a_k φ_k(x), fused, in any polynomial basis."""

from importlib.metadata import version as _version
from pkgutil import extend_path

# In the folder of the sources Python finds these files first; the compiled part is in the installed package.
__path__ = extend_path(__path__, __name__)

from . import bases, export, reference, training
from .convert import ConversionReport, convert
from .fit import Fit, fit
from .functional import basis_values, derivatives, slaf
from .kan import KANLinear, kan_linear
from .nn import SLAF
from .overview import overview
from .polynomial import MultivariatePolynomial, to_polynomial

__version__ = _version("slaf_ext")
__all__ = [
    "SLAF",
    "ConversionReport",
    "Fit",
    "KANLinear",
    "MultivariatePolynomial",
    "bases",
    "basis_values",
    "convert",
    "derivatives",
    "export",
    "fit",
    "kan_linear",
    "overview",
    "reference",
    "slaf",
    "to_polynomial",
    "training",
]
