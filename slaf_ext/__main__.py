"""``python -m slaf_ext``: what was built and what is in use, to paste into a bug report."""

import platform

import torch

from . import __version__
from .ops import _C


def main() -> None:
    cuda = f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch built without CUDA"
    facts = {
        "slaf_ext": __version__,
        "torch": torch.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "compiler": _C.compiler(),
        "CPU kernels": f"{_C.instruction_set()}, {torch.get_num_threads()} threads",
        "CUDA kernels": f"none in this build ({cuda})",
    }
    for name, value in facts.items():
        print(f"{name:<13}{value}")


if __name__ == "__main__":
    main()
