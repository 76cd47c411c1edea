"""Lets pages link to any file of the repository by its path, as readers of the repository expect.

A linked file outside docs/ becomes part of the site, under repository/: Markdown as a page, code as a page with
highlighting, a folder as a list of its files, everything else as a copy.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
TARGET = re.compile(r"(?<=\]\()(?![a-z]+:|#)[^)\s#]+")
CODE = {".py": "python", ".toml": "toml", ".yml": "yaml", "": "make"}
HIDDEN = "---\nhide: [toc]\nsearch: {exclude: true}\n---\n"


def _source(page: str) -> str:
    """Path in the repository of a page of the site."""
    return page.removeprefix("repository/") if page.startswith("repository/") else f"docs/{page}"


def _page(source: str) -> str:
    """Path in the site of a file of the repository."""
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    listed = (ROOT / source).is_dir() or Path(source).suffix in CODE
    return f"repository/{source}.md" if listed else f"repository/{source}"


def _targets(page: str, text: str) -> dict[str, str]:
    """The files of the repository that a page links to, by the link as it is written."""
    base = posixpath.dirname(_source(page))
    found = {target: posixpath.normpath(posixpath.join(base, target)) for target in TARGET.findall(text)}
    return {target: source for target, source in found.items() if (ROOT / source).exists()}


def _file(source: str, config) -> File:
    path = ROOT / source
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir() if child.name != "__pycache__")
        content = f"{HIDDEN}# {source}/\n\n" + "".join(f"- `{name}`\n" for name in names)
    elif path.suffix in CODE:
        content = f"{HIDDEN}# {source}\n\n````{CODE[path.suffix]} linenums='1'\n{path.read_text()}\n````\n"
    else:
        content = path.read_bytes() if path.suffix != ".md" else path.read_text()
    return File.generated(config, _page(source), content=content)


def on_files(files, config):
    """Adds what pages link to, and what these pages link to."""
    waiting = list(files.documentation_pages())
    while waiting:
        page = waiting.pop()
        for source in set(_targets(page.src_uri, page.content_string).values()):
            if files.get_file_from_path(_page(source)) is None and not source.startswith("docs/"):
                files.append(_file(source, config))
                if source.endswith(".md"):
                    waiting.append(files.get_file_from_path(_page(source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Points links to where their files stand in the site."""
    here = page.file.src_uri
    at = _targets(here, markdown)
    relative = lambda target: posixpath.relpath(_page(at[target]), posixpath.dirname(here) or ".")
    return TARGET.sub(lambda match: relative(match[0]) if match[0] in at else match[0], markdown)
