"""Prints the include flags of everything that the C++ sources use."""

import sysconfig

import pybind11
from torch.utils.cpp_extension import include_paths

print(*(f"-isystem {path}" for path in [*include_paths(), pybind11.get_include(), sysconfig.get_path("include")]))
