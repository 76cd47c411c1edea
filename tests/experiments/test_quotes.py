"""Every figure quoted on a page is the one in its result file."""

import pytest
import srcd
from lib import results
from quotes import PAGES, ROOT, as_shown, quotes, refreshed

from cram_jax.analysis import summary

QUOTED = [(page, *quote) for page in PAGES for quote in quotes(page)]


@pytest.mark.parametrize(("page", "shown", "name", "path"), QUOTED)
def test_a_quoted_figure_is_the_measured_one(page, shown, name, path):
    assert as_shown(results.number(name, path), shown) == shown


def test_a_wrong_figure_would_be_noticed():
    assert as_shown(0.99942, "99.94%") == "99.94%"
    assert as_shown(0.99942, "99.95%") != "99.95%"
    assert as_shown(63.94, "63.9x") == "63.9x"
    assert as_shown(1400.0, "1400") == "1400"
    with pytest.raises(ValueError, match="not a number"):
        as_shown(1.0, "all")


def test_a_refreshed_page_keeps_its_words_and_corrects_its_figures():
    page = "kept: [{}](experiments/results/srcd_paper/result.json#entries.cram.mean.{}), [text](README.md)."
    page = page.format("{}", "retrieval_accuracy")
    assert refreshed(page.format("11.11%")) == page.format("99.98%")


def test_a_name_that_a_link_may_not_hold_is_found():
    path = "entries.cram%20without%20consolidation.mean.retrieval_accuracy"
    quote = f"[1%](experiments/results/table_1/result.json#{path})"
    assert refreshed(quote) == quote.replace("1%", "100%", 1)


def test_the_readme_shows_the_demos_table(capsys):
    # Given seed 0 of the committed runs, which is what `make demo` trains
    demo = results.load("srcd_paper")["entries"]["cram"]["runs"][0]
    summary.show("SRCD, cram, 2048 events, seed 0", srcd.table(demo))
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.strip().split("\n"))
    assert demo["seed"] == 0 and printed in (ROOT / "README.md").read_text()
