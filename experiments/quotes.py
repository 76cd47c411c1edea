"""Figures quoted on the project's pages: each is a link to a number in a result file, and is rewritten from it.

python experiments/quotes.py    # after new results; what is said around a figure stays yours to check

A quote: [99.9%](experiments/results/file.json#mean.retrieval_accuracy). Its decimals and its sign stay as they are.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
PAGES = ("CLAIMS.md", "README.md")
QUOTE = re.compile(r"\[([^\]]+)\]\((experiments/results/[^#)]+\.json)#([^)]+)\)")


def quotes(page: str) -> Iterator[tuple[str, str, str]]:
    """(figure as shown, file, path of the number in it), for each quote of a page."""
    return iter(QUOTE.findall((ROOT / page).read_text()))


def number(file: str, path: str) -> float:
    """The number at a dotted path of names and list indices; %20 and its like stand for what a link may not hold, and
    %2E for a dot in a name.

    Raises:
      KeyError: where the file has none there.
    """
    value = json.loads((ROOT / file).read_text())
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[unquote(part)]
    return value


def as_shown(value: float, shown: str) -> str:
    """The value, rounded and written like another figure: a number, a percentage (%) or a ratio (x).

    Raises:
      ValueError: where that figure is none of these.
    """
    like = re.fullmatch(r"-?\d+(?:\.(\d+))?(%|x)?", shown)
    if not like:
        raise ValueError(f"{shown!r} is not a number, a percentage or a ratio")
    decimals, sign = len(like[1] or ""), like[2] or ""
    return f"{value * (100 if sign == '%' else 1):.{decimals}f}{sign}"


def refreshed(text: str) -> str:
    """A page's text with every quoted figure as it is in its file."""
    write = lambda m: f"[{as_shown(number(m[2], m[3]), m[1])}]({m[2]}#{m[3]})"
    return QUOTE.sub(write, text)


def main() -> None:
    for page in PAGES:
        path = ROOT / page
        path.write_text(refreshed(path.read_text()))


if __name__ == "__main__":
    main()
