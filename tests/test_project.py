"""What is written in two places is the same in both."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def found(pattern: str, name: str) -> list[str]:
    return re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE)


def test_the_version_is_that_of_pyproject():
    (version,) = found(r'^version = "(.*)"$', "pyproject.toml")
    assert found(r"^version: (.*)$", "CITATION.cff") == [version]
    assert {"Unreleased", version} & set(found(r"^## (\S+)", "CHANGELOG.md"))


def test_linters_have_one_version():
    hooks = found(r"additional_dependencies: \[(.*)\]$", ".pre-commit-config.yaml")
    assert {hook.partition("==")[0] for hook in hooks} == {"ruff", "clang-format"}
    assert set(hooks) <= set((ROOT / ".ci/requirements.txt").read_text().splitlines())


def test_ci_does_what_anyone_can_do():
    workflow = ".github/workflows/ci.yml"
    assert found(r"^ *- run: (.*)$", workflow) == [".ci/run"]
    (versions,) = found(r"^ *python: \[(.*)\]$", workflow)
    supported = found(r"Programming Language :: Python :: (3\.\d+)", "pyproject.toml")
    assert set(re.findall(r"[\d.]+", versions)) <= set(supported)
    assert found(r'^requires-python = ">=(.*)"$', "pyproject.toml") == supported[:1]
