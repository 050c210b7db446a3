"""``python -m slaf_ext``: the build and the machine, to paste into a bug report."""

import ctypes
import itertools
import platform

import torch

from . import __version__
from .extension import _C, CUDA_LIBRARY


def cuda_kernels() -> str:
    """The CUDA build, its architectures, and whether this torch can use it."""
    torch_cuda = f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch built without CUDA"
    if CUDA_LIBRARY is None:
        return f"none in this build ({torch_cuda})"
    if not torch.version.cuda:
        return f"built, but not loaded ({torch_cuda})"
    library = ctypes.CDLL(str(CUDA_LIBRARY))
    toolkit = library.slaf_ext_cuda_toolkit()
    architectures = itertools.takewhile(bool, map(library.slaf_ext_cuda_architecture, itertools.count()))
    built_for = ", ".join(f"{arch // 100}.{arch // 10 % 10}" for arch in architectures)
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return (
        f"built with CUDA {toolkit // 1000}.{toolkit // 10 % 100} for {built_for} "
        f"({torch_cuda}; {', '.join(devices) or 'no GPU in sight'})"
    )


def main() -> None:
    facts = {
        "slaf_ext": __version__,
        "torch": torch.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "compiled": _C.__file__,
        "compiler": _C.compiler(),
        "CPU kernels": f"{_C.instruction_set()}, {torch.get_num_threads()} threads",
        "CUDA kernels": cuda_kernels(),
    }
    for name, value in facts.items():
        print(f"{name:<13}{value}")


if __name__ == "__main__":
    main()
