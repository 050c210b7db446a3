"""Converting a trained network: its activations become polynomials, with errors that are bounded and measured."""

from ..activations import ACTIVATIONS
from .driver import convert
from .report import ConversionReport, LayerReport

__all__ = ["ACTIVATIONS", "ConversionReport", "LayerReport", "convert"]
