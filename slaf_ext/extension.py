"""Loads the compiled part, which registers the operators."""

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from . import __path__

try:
    from . import _C

    # The CUDA kernels, if they were built. Only a torch with CUDA can load them.
    CUDA_LIBRARY = next(Path(_C.__file__).parent.glob("_cuda.*"), None)
    has_cuda_kernels = CUDA_LIBRARY is not None and torch.version.cuda is not None
    if has_cuda_kernels:
        torch.ops.load_library(CUDA_LIBRARY)
except (ImportError, OSError) as error:
    tags = [
        path.name[3:] for folder in __path__ for path in Path(folder).glob("_C.*") if path.suffix in (".so", ".pyd")
    ]
    if not tags:
        reason = f"slaf_ext is not built: there is no compiled part in {' or '.join(__path__)}"
    elif not {f".{tag}" for tag in tags} & set(EXTENSION_SUFFIXES):
        reason = f"slaf_ext is built for another Python, {', '.join(tags)}; this one is {EXTENSION_SUFFIXES[0][1:]}"
    else:
        why = error.__cause__ or error  # torch's own says only which library it could not load
        reason = f"the compiled part of slaf_ext does not load with torch {torch.__version__} ({why})"
    raise ImportError(
        f"{reason}; build it for this Python and this torch, in the folder of its sources: "
        "pip install --no-build-isolation --force-reinstall --no-deps ."
    ) from None
