"""Prints the include flags of the C++ sources: with the torch that is installed, or with one unpacked in a folder."""

import sys
import sysconfig

import pybind11
from torch.utils.cpp_extension import include_paths

torch = [f"{folder}/torch/include{api}" for folder in sys.argv[1:] for api in ("", "/torch/csrc/api/include")]
paths = [pybind11.get_include(), *(torch or include_paths()), sysconfig.get_path("include")]
print(*(f"-isystem {path}" for path in paths))
