"""README and the pages in docs/: their code runs as printed, and their links exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}:{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
]


@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_of_code_runs_as_it_is_printed(code):
    exec(compile(code, "block", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_repository_lead_to_files(page):
    targets = re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_is_short_and_shows_a_layer():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "cj.CRAM(" in text and "```python" in text


def test_commands_named_on_pages_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        text = page.read_text()
        assert set(re.findall(r"\bmake ([a-z-]+)", "\n".join(re.findall(r"`[^`]+`", text)))) <= set(targets), page
        for path in re.findall(r"python ((?:experiments|tests)/\w+(?:/\w+)*\.py)", text):
            assert "NAME" in path or (ROOT / path).exists(), f"{page}: {path}"
