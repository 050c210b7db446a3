"""Every private part of torch that is used here: what it is for, and what to do without it.

If a future torch drops one, `import slaf_ext` fails at its line below; for attributes that are read inside a function,
the first call of that function fails. Methods of nn.Module that are meant to be overridden, such as `_apply`, stay in
the classes that override them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _are_functorch_transforms_active,
    _AutoDispatchBelowAutograd,
    _dispatch_tls_is_dispatch_key_included,
    _ExcludeDispatchKeyGuard,
    _is_tracing,
    _len_torch_dispatch_stack,
)
from torch._C._functorch import unwrap_if_dead as _unwrap_if_dead
from torch.autograd import forward_ad

# A context in which operators run their kernels and skip autograd. There is no public replacement: without it, an
# autograd rule that calls its own operator would recurse for ever.
below_autograd = _AutoDispatchBelowAutograd

# How many dispatch modes (fake tensors, make_fx, a user's own) are active. Without it: assume one, and use the slower
# operator, which tracers can read.
dispatch_stack_depth = _len_torch_dispatch_stack

# Whether a tracer records calls before autograd sees them: make_fx(…, pre_dispatch=True), torch.jit.trace. Without the
# first, a pre-dispatch trace would not record `slaf`; the second is torch.jit.is_tracing() without its Python code.
is_traced_before_autograd = functools.partial(_dispatch_tls_is_dispatch_key_included, DispatchKey.PreDispatch)
is_traced_by_jit = _is_tracing


# The tensor inside a wrapper that a torch.func transform leaves behind when it ends. Without it: use `Function.apply`,
# which does the same, instead of `direct_apply`.
unwrap_if_dead = _unwrap_if_dead


def is_transformed() -> bool:
    """Whether forward-mode AD or a torch.func transform is active. Without it: give the autograd functions torch's own
    `setup_context`, `vmap` and `jvp`, which is slower."""
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


def direct_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` without its check for torch.func transforms, which the caller has made; tensors must have gone
    through `unwrap_if_dead`. Saves 7 % of forward + backward at 4096 elements. Without it: `function.apply`."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


def direct_call(operator: Any) -> Callable[..., Any]:
    """An operator without the Python code around it. Without it: the operator itself."""
    return operator._op


def argument_names(operator: Any) -> list[str]:
    """The names in an operator's schema. Without it: write them out beside the schema's name."""
    return [argument.name for argument in operator._schema.arguments]


def without_functionalization() -> Any:
    """A context in which new tensors are plain even while torch.compile functionalizes. Without it: a cached tensor may
    be a wrapper that outlives its trace."""
    return _ExcludeDispatchKeyGuard(DispatchKeySet(DispatchKey.Functionalize))


def jagged_sizes(x: Any) -> dict[str, Any]:
    """What `torch.nested.nested_tensor_from_jagged` needs beside values, offsets and lengths to build a tensor shaped
    like x. Without it: leave these out; torch then computes the lengths again, and takes the ragged dim to be 1."""
    return {"min_seqlen": x._maybe_min_seqlen, "max_seqlen": x._maybe_max_seqlen, "jagged_dim": x._ragged_idx}


# The common base classes of torch.nn's layers. Without one: list its subclasses.
BATCH_NORM = nn.modules.batchnorm._BatchNorm
DROPOUT = nn.modules.dropout._DropoutNd
POOLING = (
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
