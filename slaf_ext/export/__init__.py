"""What others need of a network with SLAFs: its polynomials, an encrypted evaluation's promises, other formats."""

from ..convert.ranges import Range, RangeReport, check
from .folding import fold_batch_norm
from .polynomials import Depth, Polynomial, from_json, polynomials, to_json
from .programs import decompositions

__all__ = [
    "Depth",
    "Polynomial",
    "Range",
    "RangeReport",
    "check",
    "decompositions",
    "fold_batch_norm",
    "from_json",
    "polynomials",
    "to_json",
]
