"""Brings what stands outside docs/ to the site: linked files of the repository, and the roles of our docstrings."""

import os
import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()[^)#\s]+")
# Functions that share their names with the modules that they are in.
FUNCTIONS = ("slaf_ext.fit", "slaf_ext.convert", "slaf_ext.overview", "slaf_ext.export.polynomials")
ROLE = re.compile(r":(?:func|class|meth|mod):`([\w.]+)`")


def target(page: str, link: str) -> str:
    """The path in the repository that a page's link leads to. The site has its own first page."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return "docs/index.md" if path == "README.md" else path


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages at the top of the repository, and what any page links to, at its path there."""

    def add(path: str) -> None:
        if not path.startswith("docs/") and (ROOT / path).is_file() and files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
            follow(path)

    def follow(page: str) -> None:
        if page.endswith(".md"):
            for link in LINK.findall((ROOT / page).read_text()):
                add(target(page, link))

    for page in files.documentation_pages():
        follow(f"docs/{page.src_uri}")
    for path in ("CHANGELOG.md", "CONTRIBUTING.md"):
        add(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """On the site, what is in docs/ stands beside the other folders, not among them."""
    inside = Path(page.file.abs_src_path).relative_to(ROOT).as_posix()

    def moved(match: re.Match[str]) -> str:
        path = target(inside, match[0])
        if not (ROOT / path).is_file():
            return match[0]
        return os.path.relpath(path.removeprefix("docs/"), posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)


class Docstrings(griffe.Extension):
    """Our docstrings as the parser and Markdown want them."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is None:
            return
        text = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
        # In an example the parser knows a session of Python, and elsewhere it is a quotation.
        text = re.sub(r"^>>> .*(?:\n.+)*", r"```pycon\n\g<0>\n```", text, flags=re.MULTILINE)
        # The parser takes what follows a space for the type, and without one the type of the line before.
        names = re.compile(r"^ +[a-z_]+(?:, [a-z_]+)+(?=: )", re.MULTILINE)
        text = names.sub(lambda match: match[0].replace(", ", ",\N{NO-BREAK SPACE}") + " ()", text)
        text = text.replace("‖_", "‖\\_")  # which would begin an emphasis
        obj.docstring.value = ROLE.sub(lambda match: reference(obj, match[1]), text)


def reference(obj: griffe.Object, name: str) -> str:
    """A link to what a name means where the object is defined, if a page documents it."""
    first, *rest = name.split(".")
    try:
        path = ".".join([obj.resolve(first), *rest])
    except griffe.NameResolutionError:
        path = name
    if path in FUNCTIONS:
        path += f".{path.rpartition('.')[2]}"
    return f'<autoref optional identifier="{path}"><code>{name}</code></autoref>'
