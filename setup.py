"""Builds the extension; everything else about the package stands in pyproject.toml."""

from pathlib import Path

import pybind11
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

root = Path(__file__).parent
headers = [str(path.relative_to(root)) for path in root.glob("csrc/**/*.h")]

# The stable ABI of torch 2.10: one binary serves every torch from there on.
flags = [
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    "-O3",
    "-ffp-contract=fast",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wno-psabi",
]

setup(
    ext_modules=[
        CppExtension(
            "slaf_ext._C",
            ["csrc/ops.cpp", "csrc/arguments.cpp", "csrc/cpu/slaf.cpp", "csrc/module.cpp"],
            include_dirs=[pybind11.get_include()],
            depends=headers,
            extra_compile_args={"cxx": flags},
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
