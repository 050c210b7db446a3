"""What is built works from any folder, and with every instruction set that this machine can run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import slaf_ext

ROOT = Path(__file__).parent.parent
COMPARE = """
import torch, slaf_ext
worst = 0.0
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    for shape, groups, dim in (((1003,), 0, 0), ((7, 6, 133), 6, 1), ((301, 37), 37, -1)):
        for outside in ("extrapolate", "clamp", "linear"):
            x = (torch.rand(shape) * 2.4 - 1.2).to(dtype).requires_grad_()
            a = torch.randn((groups, 7) if groups else 7).to(dtype).requires_grad_()
            y = slaf_ext.slaf(x, a, "legendre", dim=dim, outside=outside)
            ours = (y, *torch.autograd.grad(y.float().sum(), (x, a)))
            x, a = x.detach().double().requires_grad_(), a.detach().double().requires_grad_()
            y = slaf_ext.reference.slaf(x, a, "legendre", dim=dim, outside=outside)
            exact = (y, *torch.autograd.grad(y.sum(), (x, a)))
            for one, other in zip(ours, exact):
                error = (one - other).detach().abs().max() / other.abs().max() / torch.finfo(dtype).eps
                worst = max(worst, float(error))
print(slaf_ext.ops._C.instruction_set(), worst)
"""

NOT_SOURCES = shutil.ignore_patterns("_C.*", "_cuda.*", "__pycache__")
# An editable install finds the compiled part by a hook of its own, which the others do not have.
UNHOOKED = "import sys; sys.meta_path[:] = [hook for hook in sys.meta_path if 'Editable' not in str(hook)]; "


def run(code, tmp_path, **environment):
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_facts_for_a_bug_report(tmp_path):
    printed = run(["-m", "slaf_ext"], tmp_path)
    for fact in (slaf_ext.__version__, "torch", "compiler", slaf_ext.ops._C.instruction_set(), "CUDA kernels"):
        assert fact in printed


def test_the_folder_of_the_sources_is_no_obstacle(tmp_path):
    """Where `pip install .` was run, Python meets the sources first, which have no compiled part."""
    package = Path(slaf_ext.__file__).parent
    sources = shutil.copytree(package, tmp_path / "sources" / "slaf_ext", ignore=NOT_SOURCES)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "slaf_ext").symlink_to(package)
    work = "slaf_ext.SLAF(1, init=[0, 4])(slaf_ext.ops.torch.ones(2, 2)).sum().item()"
    code = f"import slaf_ext; print(slaf_ext.__file__, {work})"
    printed = run(["-c", UNHOOKED + code], sources.parent, PYTHONPATH=str(tmp_path / "site"))
    assert printed.split() == [str(sources / "__init__.py"), "4.0"]


@pytest.mark.parametrize(
    ("compiled", "sentence"),
    [
        ({}, r"slaf_ext is not built: there is no compiled part in \S+/slaf_ext; build it "),
        ({"_C.cpython-39-darwin.so": b""}, r"built for another Python, cpython-39-darwin\.so; this one is \S*\.so; "),
        ({f"_C{EXTENSION_SUFFIXES[0]}": b"no library"}, r"does not load with torch \d\S+ \(.*(ELF|mach-o|short).*\); "),
    ],
)
def test_what_cannot_be_imported_says_why_and_what_to_do(compiled, sentence, tmp_path):
    """In a checkout where nothing is built, or something that does not serve."""
    package = shutil.copytree(Path(slaf_ext.__file__).parent, tmp_path / "slaf_ext", ignore=NOT_SOURCES)
    for name, content in compiled.items():
        (package / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", UNHOOKED + "import slaf_ext"], cwd=tmp_path, capture_output=True, text=True
    )
    assert re.search(f"ImportError: .*{sentence}.*: pip install --no-build-isolation .*\\.\n$", done.stderr), (
        done.stderr
    )
    assert done.stderr.count("Traceback") == 1
    assert "circular" not in done.stderr


def test_cuda_kernels_that_do_not_load_say_why(tmp_path):
    package = shutil.copytree(Path(slaf_ext.__file__).parent, tmp_path / "slaf_ext", ignore=NOT_SOURCES)
    shutil.copy(slaf_ext.extension._C.__file__, package)
    (package / f"_cuda{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    code = UNHOOKED + "import torch; torch.version.cuda = '13.0'; import slaf_ext"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    sentence = r"ImportError: .*does not load with torch \d\S+ \(.*(ELF|mach-o|short).*\); "
    assert re.search(sentence, done.stderr), done.stderr


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_instruction_set(capability, tmp_path):
    """The same binary, held to the plainer sets by the variable that torch's own kernels obey."""
    name, worst = run(["-c", COMPARE], tmp_path, ATEN_CPU_CAPABILITY=capability).rsplit(maxsplit=1)
    if capability == "default":
        assert name.startswith("baseline") or "x86" not in os.uname().machine
    assert float(worst) < 16, f"{name}: off by {worst} units in the last place"


def test_no_stream_formats_what_a_sentence_says():
    """On a machine with a GPU, a stream that formatted a number ended in a segmentation fault."""
    sources = [path for path in ROOT.glob("csrc/**/*") if path.suffix in (".cpp", ".h", ".cu", ".cuh")]
    assert len(sources) > 20
    streams = re.compile(r"#include <(iomanip|ios|iostream|istream|ostream|sstream|streambuf)>")
    assert [path.name for path in sources if streams.search(path.read_text())] == []


def test_the_readme_installs_all_that_the_build_needs():
    (listed,) = re.findall(r"^requires = \[(.*)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    (command,) = re.findall(r"^pip install .*", (ROOT / "README.md").read_text(), re.MULTILINE)
    needed = {name.strip('"') for name in listed.split(", ")}
    installs, build = (shlex.split(part) for part in command.split(" && "))
    assert needed - set(installs) == {"torch>=2.10"}  # which is the user's own
    assert build == ["pip", "install", "--no-build-isolation", "."]


def test_the_sdist_holds_all_that_git_tracks(sdist):
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    missing = [name for name in tracked if not (sdist / name).is_file()]
    assert not missing, f"the source distribution lacks {missing}; name them in MANIFEST.in"


def test_every_source_and_include_is_in_the_sdist(sdist):
    """Those of the CUDA kernels too, which test_cuda_build compiles from it where there is an nvcc."""
    files = [path for path in sdist.glob("csrc/**/*") if path.is_file()]
    included = [(path, name) for path in files for name in re.findall(r'#include "(.*)"', path.read_text())]
    assert any(path.suffix == ".cu" for path, _ in included)
    assert [(path, name) for path, name in included if not (path.parent / name).is_file()] == []


def test_the_sdist_builds_and_passes_a_test(sdist):
    run(["setup.py", "-q", "build_ext", "--inplace"], sdist, SLAF_EXT_CUDA="0")
    assert " passed" in run(["-m", "pytest", "tests/test_bases.py", "-k", "values"], sdist)
