"""Figures quoted on the project's pages: each is a link to a number in a result file, and is rewritten from it.

python experiments/quotes.py    # after new results; what is said around a figure stays yours to check

A quote: [99.9%](experiments/results/NAME/result.json#entries.cram.mean.retrieval_accuracy). Its decimals and its sign
stay as they are. %20 and its like stand for what a link may not hold.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from lib import results

ROOT = Path(__file__).parents[1]
PAGES = ("README.md",)
QUOTE = re.compile(r"\[([^\]]+)\]\((experiments/results/([^/#)]+)/result\.json#([^)]+))\)")


def quotes(page: str) -> Iterator[tuple[str, str, str]]:
    """(figure as shown, result, path of the number in it), for each quote of a page."""
    for shown, _, name, path in QUOTE.findall((ROOT / page).read_text()):
        yield shown, name, unquote(path)


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
    write = lambda m: f"[{as_shown(results.number(m[3], unquote(m[4])), m[1])}]({m[2]})"
    return QUOTE.sub(write, text)


def main() -> None:
    for page in PAGES:
        path = ROOT / page
        path.write_text(refreshed(path.read_text()))


if __name__ == "__main__":
    main()
