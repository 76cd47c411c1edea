"""Every figure quoted in CLAIMS.md and README.md is the one in its result file."""

import pytest
from quotes import PAGES, as_shown, number, quotes, refreshed

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
