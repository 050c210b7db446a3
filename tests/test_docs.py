"""The pages that users read: their code runs, their links lead somewhere, and their tables say what is so."""

import importlib.util
import itertools
import math
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import ORACLES

import slaf_ext
import slaf_ext.export
from slaf_ext import bases

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))
# The code of training.md is the frame of a training loop.
WITH_CODE = [page for page in PAGES if page != "docs/training.md" and "```python\n" in (ROOT / page).read_text()]


@pytest.mark.parametrize("page", WITH_CODE)
def test_code_runs(page):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    for link in links:
        name, _, heading = link.partition("#")
        target = (ROOT / page).parent / name
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], link


def cells(text: str) -> list[list[str]]:
    """The rows of a table, its head first."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|:")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_bases_are_described_as_they_are():
    """The rows of each recurrence, its window, and the weight for which it is orthogonal."""
    recurrences, weights = (
        {name: [cell.strip("`") for cell in row] for name, *row in cells(part)[1:]}
        for part in (ROOT / "docs/bases.md").read_text().split("## When")[0].split("The *window*")
    )
    assert list(recurrences) == list(weights) == list(ORACLES)
    for name, row in recurrences.items():
        table = np.array([[eval(cell, {"k": k, "sqrt": math.sqrt}) for cell in row] for k in range(9)], dtype=float)
        table[0, 2] = 0.0
        np.testing.assert_allclose(table, bases.get(name).table(9), rtol=1e-15)
    for name, (window, weight, interval) in weights.items():
        assert eval(window) == bases.get(name).domain
        if weight:
            lo, hi = eval(interval, {"inf": math.inf})
            t = (np.arange(100_000) + 0.5) / 100_000
            # Crowded at finite ends, where weights may be infinite; where there is none, until the weight vanishes.
            x, dx = (-np.cos(np.pi * t), np.sin(np.pi * t)) if hi < math.inf else (max(lo, -12) + 72 * t, 72)
            phi = slaf_ext.basis_values(torch.from_numpy(x), 4, name).numpy()
            gram = phi.T @ (phi * (dx * eval(weight, {"x": x, "sqrt": np.sqrt, "exp": np.exp}))[:, None])
            size = np.sqrt(gram.diagonal())
            np.testing.assert_allclose(gram / size / size[:, None], np.eye(5), atol=1e-6)


def test_levels_are_those_of_the_package():
    degrees, *rows = cells((ROOT / "docs/encrypted.md").read_text().split("## ")[3])
    shown = {re.match("`(.*)`", name)[1]: list(map(int, row)) for name, *row in rows if name.startswith("`")}
    for i, n in enumerate(map(int, degrees[1:])):
        p = slaf_ext.export.Polynomial("f", bases.get("chebyshev"), None, np.ones(n + 1))
        assert {name: row[i] for name, row in shown.items()} == p.depth._asdict()


@pytest.fixture(scope="module")
def tables():
    for package in ("sympy", "tabulate"):
        pytest.importorskip(package, reason="the tables of the pages need the extra 'docs'")
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def committed(tables, name: str) -> list[list[str]]:
    text = (ROOT / "docs" / tables.TABLES[name][0]).read_text()
    return cells(text.split(f"<!-- begin {name} -->")[1].split(f"<!-- end {name} -->")[0])


def test_tables_have_every_row(tables):
    assert list(tables.POLYNOMIALS) == list(ORACLES)
    for name, (_, heads, _) in tables.TABLES.items():
        head, *rows = committed(tables, name)
        assert head == heads
        assert all(len(row) == len(heads) for row in rows)
        if name == "errors":
            wanted = itertools.product(ORACLES, map(str, tables.DEGREES))
            assert [tuple(row[:2]) for row in rows] == list(wanted)
        else:
            assert [row[0] for row in rows] == list(ORACLES)


@pytest.mark.cpu("the tables are the CPU's")
def test_tables_say_what_is_measured(tables):
    """Condition numbers digit for digit; errors, which differ with the instruction set, within a factor."""
    for name, inputs in itertools.product(("monomial", "legendre", "hermite_e", "laguerre"), ("uniform", "normal")):
        row = next(row for row in committed(tables, inputs) if row[0] == name)
        found = list(map(tables.number, tables.conditions(name, inputs, (4, 8))))
        assert found == [row[1], row[2], row[5], row[6]]
    for name, (column, dtype) in itertools.product(("taylor", "chebyshev"), enumerate(tables.DTYPES, 2)):
        rows = [row for row in committed(tables, "errors") if row[0] == name]
        for row, found in zip(rows, tables.errors(name, dtype, (4, 8)), strict=False):
            shown = [float(cell) for cell in row[column].split(", ")]
            for one, other in zip(shown, found if len(shown) > 1 else [max(found)], strict=True):
                assert one / 4 <= other <= one * 4
    for name in ("monomial", "legendre", "bessel"):
        row = next(row for row in committed(tables, "held") if row[0] == name)
        for cell, found in zip(row[1:], tables.held(name, (4, 8)), strict=False):
            assert float(cell) / 4 <= found <= float(cell) * 4


def test_tables_fit_on_a_screen():
    for page in ("docs/bases.md", "docs/precision.md", "docs/index.md", "docs/performance.md"):
        assert all(len(line) <= 80 for line in (ROOT / page).read_text().splitlines() if line.startswith("|")), page


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_documents_every_name(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason="the site needs the extra 'docs'")
    # Without --quiet, with which --strict sees no warning.
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        build, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert not [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("INFO ")]
    pages = {path: path.read_text() for path in tmp_path.rglob("*.html")}
    fetched = r'<(?:script|img|link|iframe)\b[^>]*(?:src|href)="(?:https?:)?//'
    assert not [path for path, text in pages.items() if re.search(fetched, text)]
    reference = "".join(text for path, text in pages.items() if path.parts[-3] == "api")
    documented = set(re.findall(r'<h[23] id="([\w.]+)" class="doc doc-heading"', reference))
    for module in (slaf_ext, slaf_ext.export, slaf_ext.training):
        for name in module.__all__:
            path = f"{module.__name__}.{name}"  # a function may stand in a module of its own name
            assert isinstance(getattr(module, name), types.ModuleType) or {path, f"{path}.{name}"} & documented, path
