"""The layers of the package, which part may import which so that every arrow points down, and the length of files."""

import ast
import re
from pathlib import Path

import slaf_ext

ROOT = Path(slaf_ext.__file__).parent
# Each part, from the bottom up, and what it may import. `_C` is the compiled part.
ALLOWED = {
    "bases": set(),
    "activations": set(),
    "torch_private": set(),
    "ranks": set(),
    "batch_norm": {"torch_private"},
    "distributed": set(),
    "extension": {"_C"},
    "arguments": {"bases", "torch_private"},
    "series": {"bases"},
    "fit": {"bases", "series", "activations"},
    "reference": {"bases", "arguments", "ranks"},
    "fakes": {"arguments", "torch_private"},
    "ops": {"arguments", "reference", "fakes", "distributed", "extension", "torch_private"},
    "kan_ops": {"arguments", "reference", "fakes", "ops", "torch_private"},
    "functional": {"bases", "arguments", "reference", "ops", "torch_private"},
    "init": {"bases", "activations", "fit", "functional"},
    "kan": {"bases", "arguments", "reference", "kan_ops"},
    "plot": {"bases", "functional"},
    "nn": {"bases", "arguments", "ops", "functional", "series", "init", "plot"},
    "overview": {"bases", "nn"},
    "polynomial": {"bases", "batch_norm", "nn"},
    "convert": {
        *("bases", "activations", "batch_norm", "arguments", "fit", "functional", "kan", "nn", "torch_private"),
    },
    "export": {
        *("bases", "activations", "batch_norm", "arguments", "series", "ops", "kan_ops", "nn", "convert"),
        *("functional", "torch_private"),
    },
    "training": {"bases", "activations", "arguments", "nn", "convert"},
    "__main__": {"extension"},
}


class Imports(ast.NodeVisitor):
    """The parts of the package that a file imports when it runs, so not for type checkers."""

    def __init__(self, path: Path) -> None:
        self.depth, self.found = len(path.relative_to(ROOT).parts), set()
        self.visit(ast.parse(path.read_text()))

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != "TYPE_CHECKING":
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        assert not any(each.name.startswith("slaf_ext") for each in node.names), "imports here are relative"

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level or not node.module.startswith("slaf_ext"), "imports here are relative"
        if node.level == self.depth:
            self.found |= {node.module.split(".")[0]} if node.module else {each.name for each in node.names}


def test_every_arrow_points_down():
    order = list(ALLOWED)
    assert all(order.index(below) < order.index(part) for part in order for below in ALLOWED[part] - {"_C"})
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).with_suffix("").parts[0]
        if part != "__init__":
            beyond = Imports(path).found - ALLOWED[part] - {"__version__", "__path__"}
            assert not beyond, f"{path} imports {', '.join(sorted(beyond))}"


def test_private_parts_of_torch_have_one_place():
    private = re.compile(r"torch\._[a-zA-Z]|\._op\b|\._schema\b|forward_ad|modules\.\w+\._")
    for path in ROOT.rglob("*.py"):
        assert path.name == "torch_private.py" or not private.search(path.read_text()), path


def test_files_are_short():
    for path in [*ROOT.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]:
        limit = 400 if path.name == "test_benchmarks.py" else 350
        assert len(path.read_text().splitlines()) <= limit, path
