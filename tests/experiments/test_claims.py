"""CLAIMS.md and docs/claims: generated, readable, complete, and no figure of ours is typed."""

import re
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from lib import claim_sources, claims, references, results

ROOT = claims.ROOT
PAGES = claims.generate()
CLAIMS = claim_sources.read_all().claims()
LOAD = cache(results.load)

# Every number of the papers that a claim is about, by the page that has it: CRAM's redundancy (section 2), theory (5),
# results (7) and contradictions, and Palimpsa's reported figures, recipes and checked special cases.
PAPERS = {
    "redundancy": "124M 355M 10M 0.84 0.92 0.97 0.99 0.52 10K 0.72 300K 34% 0.8 41% 0.5 25% 88% 0.793",
    "theorem_1": "(1-ε)",
    "corollary_1": "0.05 0.3 5% 1.5% √(n log(K/δ))",
    "theorem_2": "2 / L² ε_approx² + C / (T η)",
    "theorem_3": "1 - ρ + ε",
    "optimum": "2048 5% 70% 100 30% 0.05 0.30 1.5%",
    "table_1": "0.589 68.0% 1.00 0.620 0 0.461 0.0% 0.125 1:7 0.649 0.23 0.98 1.211 100.0% 0.016 0.019 1.198 0.167 "
    "0.95",
    "retrieval": "100.0%",
    "attention": "0.016 0.019",
    "transformer": "68.0%",
    "mamba_seqboat": "68.0%",
    "jamba": "0.0% 0.125 1:7",
    "dynamics": "1.211 0.589",
    "dynamics_baselines": "0.461 0.589 0.620 0.649 1.198 1.211",
    "attention_baselines": "1.00 0.125 0.23 0.98 0.016 0.019 0.167 0.95",
    "transition": "10K 3100 0.83 3K 3.1K+",
    "transfer": "0.941 0.171 51% 0.900 0.169 52% 0.181 0.182 48% 0.338 0.271 0% 0.938 0.224",
    "power_law": "0.43 0.04 0.4 0.5 1981 1997 0.71",
    "ablations": "16.7% 0.71",
    "irregular_series": "0.900 0.783 11% 0.181 0.386 35%",
    "recurrence": "50%",
    "training_steps": "3K",
    "consistency": "consistent",
    "without_consolidation": "100.0% 0.167 0.95 0.016 10.4",
    "reductions": "37.8 0.167 0.016 10.4",
    "attention_start": "37.8 0.016 60% 0.019 84% 40%",
    "contradictions": "68.0% 37.8 0.016 60% 0.019 84% 40% 100% 16.7% 0.167 10.4 0.43 0.37 0.14 0.05 35% 11%",
    "special_cases": "9e-16 3e-16 1e-9 RetNet Mesa Longhorn DeltaNet Mamba-2 linear attention",
    "error_form": "4e-16 1/L 1/(1-a) (1-a) λ0",
    "authors_recurrence": "e^-12 e^-40 1%",
    "exact_conversion": "167M 3.3M 8 47%",
    "fine_tuning": "167M",
    "recall": "128 8 16 32 8192 512 1024 256 64 100k 3k 0.99 60 2.15e-3 4.64e-3 1e-2",
    "language_models": "32k 4096 524k 60,100 1.25e-3 2000 0.1 170M 768 19 48 30 96 760M 1536 "
    "19.02 43.55 71.06 51.63 57.06 67.97 34.64",
}


def test_pages_are_what_sources_and_results_make():
    assert {path for path in claims.PAGES.glob("*.md")} == PAGES.keys() - {ROOT / "CLAIMS.md", claims.README}
    for path, text in PAGES.items():
        assert path.read_text() == text, f"{path.name}: run `make claims`"


def test_claims_are_one_screen():
    text = (ROOT / "CLAIMS.md").read_text()
    assert len(text.encode()) <= 12_000
    assert max(map(len, text.split("\n"))) <= 300


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_link_resolves(path):
    targets = re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", PAGES[path])
    assert targets or path.stem == "definitions"
    for target in targets:
        assert target.startswith("https:") or (path.parent / target).exists(), target


def test_every_page_is_linked_from_claims():
    linked = re.findall(r"\]\(docs/claims/(\w+)\.md\)", PAGES[ROOT / "CLAIMS.md"])
    assert {path.stem for path in PAGES} - {"CLAIMS", "README"} == set(linked)


@pytest.mark.parametrize("name", PAPERS)
def test_every_number_of_the_papers_is_two_clicks_away(name):
    text = PAGES[claims.PAGES / f"{name}.md"]
    said = text if "## What the paper says" not in text else text.split("## What we did")[0] + text.split("## Why")[1]
    for number in PAPERS[name].split():
        assert re.search(rf"(?<![\w.]){re.escape(number)}(?!\w)", said), f"{name} lacks {number}"


MEASURED = re.compile(r"(?<![\w.^])\d[\d,]*(?:\.\d+)?(?:%|e-?\d+|x\b)|(?<![\w.^])\d+\.\d+")
# Pages hold figures of the papers, and settings
SETTINGS = {"results": set(), "definitions": set(), "departures": {"0.088"}, "contradictions": {"0.37", "0.14"}}


def typed(text: str) -> set[str]:
    """Figures that stand in a text and are no reference."""
    return set(MEASURED.findall(re.sub(r"\{[^{}]+:[^{}]+\}|`[^`]+`|\]\([^)]+\)", " ", text)))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda one: one.name)
def test_no_figure_of_ours_is_typed(claim):
    chosen = typed("\n".join((claim.title, claim.paper, claim.says, claim.did)))
    left = typed(claim.measured()) - chosen
    assert left == left & (claim.typed or {}).keys()
    for figure in claim.typed or ():  # and nothing is excused that is not there
        assert figure in claim.measured()


@pytest.mark.parametrize("name", SETTINGS)
def test_no_figure_of_ours_is_typed_on_other_pages(name):
    papers = set(chain.from_iterable(typed(f"{one.paper}\n{one.says}") for one in CLAIMS))
    (source,) = claim_sources.SOURCES.rglob(f"{name}.md")
    assert typed(source.read_text()) - papers == SETTINGS[name]


def test_a_typed_figure_would_be_noticed():
    assert typed("99.98% of {a:b.c:.2%}, `0.5`, 1.5 times, 1e-13 and 3 seeds, 2x") == {"99.98%", "1.5", "1e-13", "2x"}


def test_results_go_between_their_marks():
    text = "a\n<!-- results -->\nold\n<!-- /results -->\nb"
    assert claims.with_results(text, "new\n") == text.replace("old", "new")
    for wrong in ("a", text + text, text.replace("/", "")):
        with pytest.raises(ValueError, match="README.md must have"):
            claims.with_results(wrong, "new\n")


RESULT = {
    "entries": {
        "a (1 / 2), rate 0.01": {"runs": [{"x": 0.5}, {"x": 0.75}], "mean": {"x": 0.625}, "sd": {"x": 0.125}},
        "alone": {"runs": [{"x": 0.5}], "mean": {"x": 0.5}, "sd": {}},
    }
}


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("{r:entries.alone.mean.x:.1%}", "50.0%"),
        ("{r:entries.a (1 / 2), rate 0.01.mean±sd.x:.2f}", "0.62 ± 0.12"),
        ("{r:entries.alone.mean±sd.x:.2f}", "0.50"),
        ("{r:entries.a (1 / 2), rate 0.01.runs.*.x:.2f}", "0.50, 0.75"),
        ("{r:entries.alone.mean.x / r:entries.a (1 / 2), rate 0.01.sd.x:.0f} times", "4 times"),
        ("{r:entries.alone.mean.x - r:entries.a (1 / 2), rate 0.01.runs.1.x:+.0%}", "-25%"),
        ("{r:entries.a (1 / 2), rate 0.01.runs.1.x - r:entries.alone.mean.x:+.1p} points", "+25.0 points"),
        ("{tests/experiments/test_claims.py:1e-13}", "1e-13"),
    ],
)
def test_a_reference_becomes_its_number(written, shown):
    assert references.filled(written, lambda name: RESULT) == shown


@pytest.mark.parametrize(
    ("written", "error", "message"),
    [
        ("{r:entries.nobody.mean.x:.1%}", KeyError, "nobody"),
        ("{r:entries.alone.mean.x}", ValueError, "is not"),
        ("{r:entries.alone.mean.x:often}", ValueError, "is not"),
        ("{r:entries.alone.runs.*.y:.1%}", KeyError, "y"),
        ("{tests/experiments/test_claims.py:1e" + "-99}", ValueError, "does not have"),
    ],
)
def test_a_reference_to_nothing_is_an_error(written, error, message):
    with pytest.raises(error, match=message):
        references.filled(written, lambda name: RESULT)


def test_results_that_a_text_refers_to_are_named_once():
    text = "{b:x.y:.1f} {a:x / c:y:.1f} {b:z:.1f} {tests/a.py:1}"
    assert references.named(text) == ["b", "a", "c"]


SOURCE = """
title = "t"
where = "w"
paper = "1%"
ours = "{r:entries.alone.mean.x:.0%}"
verdict = "partly"
summary = "s"
says = "s"
did = "d"
why = "w"
open = "o"
"""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SOURCE.replace('why = "w"\n', ""), "missing: why"),
        (SOURCE + 'extra = "e"', "unknown or missing: extra"),
        (SOURCE.replace('"partly"', '"perhaps"'), "'perhaps' is not one of"),
        (
            SOURCE.replace('why = "w"\n', "") + '[[tables]]\ncolumns = []\nrows = []\nwhy = "w"',
            "figures and tables come last",
        ),
    ],
)
def test_a_source_that_is_wrong_says_how(tmp_path: Path, source, message):
    (tmp_path / "claim.toml").write_text(source)
    with pytest.raises(ValueError, match=message):
        claim_sources.read(tmp_path / "claim.toml")


def test_columns_and_rows_say_a_number_in_two_parts():
    table = claim_sources.Table(
        ["mean = mean.x:.1f", "seeds = runs.*.x:.2f"], ["one = r:entries.alone", ["two", "–", "3"]]
    )
    lines = references.filled(table.markdown(), lambda name: RESULT).split("\n")
    assert lines == ["|   | mean | seeds |", "| --- | ---: | ---: |", "| one | 0.5 | 0.50 |", "| two | – | 3 |"]
    turned = claim_sources.Table(["one = r:entries.alone"], ["mean = mean.x:.1f", "seeds = runs.*.x:.2f"])
    assert references.filled(turned.markdown(), lambda name: RESULT).endswith("| mean | 0.5 |\n| seeds | 0.50 |")
    with pytest.raises(ValueError, match="2 cells, its table 3"):
        claim_sources.Table(["a", "b"], [["label", "1"]]).markdown()


def test_every_claim_is_in_the_index_once(monkeypatch, tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / "here.toml").write_text(SOURCE)
    (tmp_path / "results.md").write_text("r")
    monkeypatch.setattr(claim_sources, "SOURCES", tmp_path)
    for listed in ([], ["here", "here"], ["here", "gone"]):
        (tmp_path / "index.toml").write_text(f'summary = ""\n[[groups]]\ntitle = "g"\nclaims = {listed}')
        with pytest.raises(ValueError, match="each claim once"):
            claim_sources.read_all()
    (tmp_path / "index.toml").write_text('summary = ""\n[[groups]]\ntitle = "g"\nclaims = ["here"]')
    assert [one.name for one in claim_sources.read_all().groups["g"]] == ["here"]
