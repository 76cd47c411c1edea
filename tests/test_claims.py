"""Every figure quoted in CLAIMS.md and README.md is the one in its result file.

A figure is quoted as a link to the number: [99.9%](experiments/results/file.json#mean.retrieval_accuracy).
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUOTE = re.compile(r"\[([^\]]+)\]\((experiments/results/[^#)]+\.json)#([^)]+)\)")


def quotes():
    for page in ("CLAIMS.md", "README.md"):
        for shown, file, path in QUOTE.findall((ROOT / page).read_text()):
            yield pytest.param(shown, file, path, id=f"{page}:{file.split('/')[-1]}#{path}={shown}")


def as_shown(value: float, shown: str) -> str:
    """The value, rounded and written as in the quote."""
    number = re.fullmatch(r"(-?\d+(?:\.(\d+))?)(%|x)?", shown)
    assert number, f"{shown!r} is not a number, a percentage or a ratio"
    decimals = len(number[2] or "")
    return f"{value * (100 if number[3] == '%' else 1):.{decimals}f}{number[3] or ''}"


@pytest.mark.parametrize(("shown", "file", "path"), list(quotes()))
def test_a_quoted_figure_is_the_measured_one(shown, file, path):
    value = json.loads((ROOT / file).read_text())
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    assert as_shown(value, shown) == shown


def test_a_wrong_figure_would_be_noticed():
    assert as_shown(0.99942, "99.94%") == "99.94%"
    assert as_shown(0.99942, "99.95%") != "99.95%"
    assert as_shown(63.94, "63.9x") == "63.9x"
    assert as_shown(1400.0, "1400") == "1400"
