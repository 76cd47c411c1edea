"""Writes the pages of claims, from the sources in claims/ and the committed results: `python experiments/claims.py`.

| source | page |
|---|---|
| claims/index.toml: the summary, and the groups of claims in their order | CLAIMS.md, docs/claims/index.md |
| claims/NAME.toml: a claim | docs/claims/NAME.md |
| claims/pages/NAME.md: a text | docs/claims/NAME.md |
| claims/results.md: results in ten lines | README.md, between `<!-- results -->` and `<!-- /results -->` |

Our own numbers are references (`lib/references.py`); the papers' numbers are typed. See claims/README.md.
"""

from functools import cache
from pathlib import Path

from lib import references, results
from lib.claim_sources import RESULTS, VERDICTS, Claim, Sources, read_all

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "claims"
README = ROOT / "README.md"


def made(names: list[str], load: references.Load) -> str:
    """Returns a table of the results that the numbers are from: machine, versions, date and commit."""
    rows = ["| result | machine | versions | date | commit |", "|---|---|---|---|---|"]
    notes = []
    for name in names:
        marks = load(name)["made_by"]
        versions = ", ".join(f"{what} {marks['versions'][what]}" for what in ("python", "jax"))
        commits = ", ".join(mark[:7] + "+" * mark.endswith("+") for mark in marks["commits"])
        link = f"[{name}]({RESULTS}/{name}/result.json)"
        cells = [link, "; ".join(marks["machines"]), versions, marks["date"], commits]
        rows.append(f"| {' | '.join(cells)} |")
        notes += [f"- `{name}`: {note}" for note in marks["notes"]]
    if not notes:
        return "\n".join(rows)
    fold = ["", f"<details><summary>Notes on these results ({len(notes)})</summary>", "", *notes, "", "</details>"]
    return "\n".join(rows + fold)


def commands(claim: Claim, load: references.Load) -> str:
    """Returns the commands that make the results of a page again."""
    told = [f"# {name}\n{load(name)['command'].strip()}" for name in claim.results()]
    return "\n\n".join(told + ([claim.command] if claim.command else []))


def page(claim: Claim, load: references.Load) -> str:
    """Returns the page of a claim."""
    found = [claim.found, *(one.markdown() for one in claim.figures + claim.tables)]
    parts = {
        "What the paper says": f"*{claim.where}.* {claim.says}",
        "What we did": claim.did,
        "What we found": "\n\n".join(part for part in found if part),
        "Why this verdict": claim.why,
        "What is left open": claim.open,
    }
    texts = [
        f"# {claim.title}",
        f"**Verdict: {claim.verdict}{' (no claim of a paper)' * (claim.verdict == 'ours')}.** {claim.summary}",
        "[All claims](../../CLAIMS.md) · [The task, the model, and what is counted](definitions.md)",
        *(f"## {title}\n\n{text}" for title, text in parts.items() if text),
    ]
    ours = references.filled("\n\n".join(texts), load)
    names = claim.results()
    origin = [made(names, load)] if names else []
    origin += [f"{figure} is typed: {reason}." for figure, reason in (claim.typed or {}).items()]
    text = commands(claim, load)
    seed = " SEED is 0, 1 and so on. [What a size takes](definitions.md#sizes)." if "SEED" in text else ""
    again = f"## Run it again\n\nFrom the repository's root.{seed}\n\n```\n{text}\n```" if text else ""
    sources = f"## Where the numbers come from\n\n{chr(10).join(origin)}" if origin else ""
    return "\n\n".join(part for part in (ours, again, sources) if part) + "\n"


def table(claims: list[Claim], folder: str, load: references.Load) -> str:
    """Returns a table with a row for each claim."""
    rows = ["| claim | paper | ours | verdict | link |", "|---|---|---|---|---|"]
    for one in claims:
        rows.append(f"| {one.title} | {one.paper} | {one.ours} | {one.verdict} | [page]({folder}{one.name}.md) |")
    return references.filled("\n".join(rows), load)


def overview(found: Sources, load: references.Load) -> str:
    """Returns CLAIMS.md: all claims on one screen."""
    groups = [f"## {title}\n\n{table(claims, 'docs/claims/', load)}" for title, claims in found.groups.items()]
    return "\n\n".join(["# Claims", references.filled(found.summary, load), *groups]) + "\n"


def by_verdict(found: Sources) -> str:
    """Returns docs/claims/index.md: the claims by their verdict, and the other pages."""
    claims = found.claims()
    parts = []
    for verdict, meaning in VERDICTS.items():
        links = [f"- [{one.title}]({one.name}.md)" for one in claims if one.verdict == verdict]
        parts.append(f"## {verdict.capitalize()} ({len(links)})\n\n{meaning.capitalize()}.\n\n" + "\n".join(links))
    pages = "\n".join(f"- [{text.split(chr(10))[0].lstrip('# ')}]({name}.md)" for name, text in found.pages.items())
    top = "One page for each claim, by its verdict. By subject, with figures: [CLAIMS.md](../../CLAIMS.md)."
    return "\n\n".join(["# Claims by verdict", top, *parts, f"## About all of them\n\n{pages}\n"])


def with_results(text: str, found: str) -> str:
    """Returns README.md's text with `found` between its two marks.

    Raises:
      ValueError: if the text does not have each mark once.
    """
    start, end = "<!-- results -->\n", "<!-- /results -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"README.md must have {start.strip()} and {end} once, on lines of their own")
    return text.split(start)[0] + start + found + end + text.split(end)[1]


def generate() -> dict[Path, str]:
    """Returns every page, by its path."""
    load = cache(results.load)
    found = read_all()
    pages = {PAGES / f"{name}.md": references.filled(text, load) for name, text in found.pages.items()}
    for one in found.claims():
        try:
            pages[PAGES / f"{one.name}.md"] = page(one, load)
        except (KeyError, ValueError) as error:
            raise ValueError(f"claims/{one.name}.toml: {error}") from error
    pages |= {ROOT / "CLAIMS.md": overview(found, load), PAGES / "index.md": by_verdict(found)}
    return pages | {README: with_results(README.read_text(), references.filled(found.results, load))}


def main() -> None:
    """Writes every page, and deletes the pages of removed claims."""
    pages = generate()
    for gone in set(PAGES.glob("*.md")) - pages.keys():
        gone.unlink()
    PAGES.mkdir(parents=True, exist_ok=True)
    for path, text in pages.items():
        path.write_text(text)
