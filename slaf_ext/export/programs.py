"""What other formats need of a network with SLAFs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import kan_ops, ops


def decompositions() -> dict[Any, Callable]:
    """The package's operators in terms of torch's own, for ``ExportedProgram.run_decompositions``.

    All but the backward passes of the normalised form and of kan_linear. torch.onnx.export needs none of them. Without
    them an exported program keeps the fused operators, which AOTInductor runs.

    Example:
        >>> import torch, slaf_ext
        >>> from slaf_ext.export import decompositions
        >>> program = torch.export.export(slaf_ext.SLAF(2), (torch.randn(3, 4),))
        >>> plain = program.run_decompositions({**torch.export.default_decompositions(), **decompositions()})
        >>> any("slaf_ext" in str(node.target) for node in plain.graph.nodes)
        False
    """
    return {**ops.DECOMPOSITIONS, **kan_ops.DECOMPOSITIONS}
