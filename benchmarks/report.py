"""Reports: for the terminal, the block in README.md between the markers, and the file with every table."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import figures, tables
from .results import Results, ResultsError, check_folder, load, writing
from .statistics import groups

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
COMMAND = "python -m benchmarks report"


def text(results: list[Results]) -> str:
    """Everything in the results, for a terminal of 80 columns; what sums it up comes last."""
    parts = [*map(tables.times, groups(results, "times")), *map(tables.memory, groups(results, "memory", "memory"))]
    parts += [tables.network(*pair) for pair in tables.network_groups(results)]
    lines = [line for r in results for line in textwrap.wrap(_origin(r), tables.COLUMNS)]
    return "\n\n".join(["\n".join(lines), *(table.plain() for table in [*parts, *_summaries(results)])])


def _summaries(results: list[Results]) -> Iterator[tables.Table]:
    kinds = tables.summary, tables.memory_summary, tables.network_summary, tables.verdicts, tables.floor
    for part in ([r for r in results if not _is_gpu(r)], [r for r in results if _is_gpu(r)]):
        yield from filter(None, (table(part) for table in kinds))


def _is_gpu(result: Results) -> bool:
    return result.environment["gpu"] is not None


def _origin(result: Results) -> str:
    e = result.environment
    return (
        f"Measured on {e['date'][:10]} at commit {e['commit']}: {e['gpu'] or e['cpu']}, {e['cores']} cores, "
        f"{e['kernels']} kernels, torch {e['torch']}, Python {e['python']}, slaf_ext {e['slaf_ext']}"
    )


def write(readme: Path, results: list[Results], pictures: Path | None, details: Path | None) -> list[Path]:
    """Rewrites what lies between the markers of `readme`, after the figures and `details`, the file with every table.

    Returns:
        The figures.

    Raises:
        ResultsError: something cannot be written, or `readme` cannot be read, or has no such markers.
    """
    try:
        old = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{readme} cannot be read: {error.strerror}.") from None
    new, count = _BLOCK.subn(lambda _: block(readme, results, pictures, details), old)
    if count != 1:
        raise ResultsError(f"{readme} has {count} pairs of markers; it needs {BEGIN} and {END}, once.")
    # Nothing is written before everything is known to have its place, and last what links to the rest.
    if details is not None:
        _check_file(details)
    drawn = []
    if pictures is not None:
        check_folder(pictures)
        drawn = figures.draw_all(results, pictures)
    if details is not None:
        with writing(details):
            details.write_text(every_table(details, results, pictures), encoding="utf-8")
    with writing(readme):
        readme.write_text(new, encoding="utf-8")
    return drawn


def _check_file(path: Path) -> None:
    with writing(path):
        if path.is_dir():
            raise ResultsError(f"{path} is a folder; give a file in it.")
        if not path.parent.is_dir():
            raise ResultsError(f"{path} cannot be written: there is no folder {path.parent}; make it first.")


def sources(readme: Path) -> tuple[list[Results], Path | None, Path | None]:
    """The raw files, the folder of figures and the file with every table that the block of `readme` names.

    Raises:
        ResultsError: there is no block, or one that names no raw file.
    """
    match = _BLOCK.search(readme.read_text(encoding="utf-8"))
    if match is None:
        raise ResultsError(f"{readme} has no block between {BEGIN} and {END}.")
    linked = [readme.parent / path for path in re.findall(r"\]\(([^)]*)\)", match[0])]
    files = [path for path in linked if path.suffix == ".jsonl"]
    if not files:
        raise ResultsError(f"{readme} names no raw file between {BEGIN} and {END}.")
    pictures = next((path.parent for path in linked if path.suffix == ".png"), None)
    return [load(path) for path in files], pictures, next((path for path in linked if path.suffix == ".md"), None)


def regenerated(readme: Path) -> dict[Path, str]:
    """What `readme`, and the file with every table that its block names, have to say by the raw files that it names."""
    results, pictures, details = sources(readme)
    old = readme.read_text(encoding="utf-8")
    texts = {readme: _BLOCK.sub(lambda _: block(readme, results, pictures, details), old)}
    return texts | ({details: every_table(details, results, pictures)} if details else {})


_BLOCK = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)


def block(readme: Path, results: list[Results], pictures: Path | None, details: Path | None) -> str:
    """The markers and, between them, the figures, what sums the results up, and where they come from."""
    lines = [BEGIN, *_figure(readme, results, pictures, "headline")]
    for table in _summaries(results):
        lines += [table.markdown(), ""]
    for suite in ("rivals", "calls"):
        if (table := tables.sweep(filter(_is_gpu, results), suite)) is not None:
            lines += [f"**{HEADINGS[suite]}**", "", table.markdown(), ""]
    lines += _figure(readme, results, pictures, "gpu")
    lines += ["On a GPU: not measured.", ""] * (not any(map(_is_gpu, results)))
    lines += _figure(readme, results, pictures, "scaling")
    ending = f" Every table: [{details.name}]({_link(readme, details)})." if details else ""
    return "\n".join([*lines, *_origins(readme, results, ending), END])


def every_table(path: Path, results: list[Results], pictures: Path | None) -> str:
    """The file with every table."""
    how = _link(path, Path(__file__).parent / "README.md")
    lines = ["# Every table of the benchmarks", "", f"Written by `{COMMAND}`; [how each number is taken]({how}).", ""]
    lines += [*_origins(path, results), "", "## Summary", ""]
    for table in _summaries(results):
        lines += [table.markdown(), ""]
    sections: dict[str, list[tables.Table | None]] = {
        "headline": [tables.times(group) for group in groups(results, "times", "headline")],
        "memory": [tables.memory(group) for group in groups(results, "memory", "memory")],
        "networks": [tables.network(*pair) for pair in tables.network_groups(results)],
        "scaling": [],
        **{suite: [tables.sweep(results, suite)] for suite in tables.LABELS},
    }
    for name, made in sections.items():
        parts = _figure(path, results, pictures, name)
        for table in made:
            parts += [table.markdown(), ""] if table is not None else []
        lines += [f"## {HEADINGS[name]}", "", *parts] if parts else []
    return "\n".join(lines).rstrip() + "\n"


HEADINGS = {
    "headline": "The cases that have bars",
    "memory": "Memory",
    "networks": "Networks",
    "scaling": "Scaling",
    "sizes": "Time against the number of elements",
    "degrees": "Time against the degree",
    "channels": "Time against the number of channels",
    "threads": "Time against the number of threads",
    "bases": "Every basis",
    "gpu": "Kernels on a GPU",
    "rivals": "Kernels on a GPU: degree 8 beside what one would write instead",
    "calls": "Calls on a GPU: degree 8, the host's part included",
    "forms": "Passes, dtypes, sharing and layout",
}


def _figure(page: Path, results: list[Results], pictures: Path | None, name: str) -> list[str]:
    """The link to a figure, if the results have the numbers for it."""
    if pictures is None or name not in figures.FIGURES or not figures.FIGURES[name].chosen(results):
        return []
    return [f"![{figures.FIGURES[name].caption}]({_link(page, pictures / f'{name}.png')})", ""]


def _origins(page: Path, results: Iterable[Results], ending: str = "") -> list[str]:
    said = " ".join(f"{_origin(r)}; raw numbers in [{r.path.name}]({_link(page, r.path)})." for r in results)
    return textwrap.wrap(said + ending, tables.COLUMNS, break_long_words=False, break_on_hyphens=False)


def _link(page: Path, path: Path) -> str:
    return Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix()
