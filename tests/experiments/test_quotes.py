"""Every figure quoted in CLAIMS.md and README.md is the one in its result file."""

import json

import pytest
import srcd
from quotes import PAGES, ROOT, as_shown, number, quotes, refreshed

from cram_jax.analysis import summary

QUOTED = [(page, *quote) for page in PAGES for quote in quotes(page)]


@pytest.mark.parametrize(("page", "shown", "file", "path"), QUOTED)
def test_a_quoted_figure_is_the_measured_one(page, shown, file, path):
    assert as_shown(number(file, path), shown) == shown


def test_pages_quote():
    assert {page for page, *_ in QUOTED} == set(PAGES)


def test_a_wrong_figure_would_be_noticed():
    assert as_shown(0.99942, "99.94%") == "99.94%"
    assert as_shown(0.99942, "99.95%") != "99.95%"
    assert as_shown(63.94, "63.9x") == "63.9x"
    assert as_shown(1400.0, "1400") == "1400"
    with pytest.raises(ValueError, match="not a number"):
        as_shown(1.0, "all")


def test_a_refreshed_page_keeps_its_words_and_corrects_its_figures():
    _, shown, file, path = QUOTED[0]
    quote = "kept: [{}](" + f"{file}#{path})."
    wrong = as_shown(number(file, path) + 1, shown)
    assert refreshed(quote.format(wrong)) == quote.format(shown) != quote.format(wrong)


def test_the_readme_shows_the_demos_table(capsys):
    # Given seed 0 of the committed runs, which is what `make demo` trains
    demo = json.loads((ROOT / "experiments/results/srcd_paper.json").read_text())["runs"][0]
    summary.show("SRCD, cram, 2048 events, seed 0", srcd.table(demo))
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.strip().split("\n"))
    assert demo["seed"] == 0 and printed in (ROOT / "README.md").read_text()
