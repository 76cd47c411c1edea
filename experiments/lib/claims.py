"""The pages of claims, from the sources in claims/ and the committed results: `python experiments/claims.py`.

| source | page |
|---|---|
| claims/index.toml: the summary, and the groups of claims in their order | CLAIMS.md, docs/claims/index.md |
| claims/NAME.toml: a claim | docs/claims/NAME.md |
| claims/pages/NAME.md: a text | docs/claims/NAME.md |
| claims/results.md: results in ten lines | README.md, between `<!-- results -->` and `<!-- /results -->` |

Figures of ours are references (`lib/references.py`), those of the papers are typed. claims/README.md says how.
"""

import re
import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from lib import references, results

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "claims"
PAGES = ROOT / "docs" / "claims"
README = ROOT / "README.md"
END = re.compile(rf":{references.FORMAT.pattern}$")
RESULT, FIGURE = (f"../../experiments/results/{{}}/{file}" for file in ("result.json", "figure.png"))
VERDICTS = {
    "reproduced": "measured, and as the paper says",
    "partly": "part of it is as the paper says, or under a condition",
    "not reproduced": "measured, and not as the paper says",
    "not well posed": "the statement contradicts itself, or nothing could contradict it",
    "pending": "not yet measured on what the paper measured it on",
    "ours": "no claim of a paper: something we add",
}


@dataclass(frozen=True)
class Table:
    """A table of numbers.

    A number may be said in two parts, START (NAME:PATH) and END (PATH:FORMAT): one by the column, the other by the row.

    Attributes:
      columns: headings of the columns after the first, `HEADING` or `HEADING = PART`.
      rows: `LABEL = PART`, or a list of cells, written out.
      corner: heading of the first column.
      caption: what the table shows.
    """

    columns: list[str]
    rows: list[str | list[str]]
    corner: str = ""
    caption: str = ""

    def cells(self) -> list[list[str]]:
        """The cells of each row, with references.

        Raises:
          ValueError: if a row does not have as many cells as the table has columns.
        """
        parts = [column.rpartition(" = ")[2] for column in self.columns]
        grid = []
        for row in self.rows:
            if isinstance(row, str):
                label, _, part = row.rpartition(" = ")
                ends = END.search(part)
                row = [label, *(f"{{{other}.{part}}}" if ends else f"{{{part}.{other}}}" for other in parts)]
            if len(row) != 1 + len(self.columns):
                raise ValueError(f"{row} has {len(row)} cells, its table {1 + len(self.columns)} columns")
            grid.append(row)
        return grid

    def markdown(self) -> str:
        """The table, with references."""
        heads = [column.rpartition(" = ")[0] or column for column in self.columns]
        lines = [[self.corner or " ", *heads], ["---", *("---:" for _ in heads)], *self.cells()]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"{self.caption}\n\n{table}" if self.caption else table


@dataclass(frozen=True)
class Claim:
    """A claim as its source has it; texts hold references.

    Attributes:
      name: of its source and page.
      title: what is claimed, in a few words.
      where: equation, table, figure or section of the paper.
      paper: the paper's figure, short.
      ours: our one figure, short.
      verdict: one of VERDICTS.
      summary: the verdict and its reason in two or three sentences.
      says: what the paper says.
      did: what we did: model, size, seeds.
      found: what we measured, in words.
      why: why this verdict.
      open: what is left open.
      figure: result whose figure is shown, with `alt` for those who do not see it and a `caption`.
      tables: the numbers.
      command: more commands than those that the results name, or a check that takes a minute.
      typed: figures of ours that no result file holds, each with the reason.
    """

    name: str
    title: str
    where: str
    paper: str
    ours: str
    verdict: str
    summary: str
    says: str
    did: str
    why: str
    open: str
    found: str = ""
    figure: str = ""
    alt: str = ""
    caption: str = ""
    tables: tuple[Table, ...] = ()
    command: str = ""
    typed: dict[str, str] | None = None

    def measured(self) -> str:
        """Everything that may quote our figures: of tables the captions, and the cells without their labels."""
        cells = [cell for table in self.tables for row in table.cells() for cell in row[1:]]
        captions = [table.caption for table in self.tables]
        return "\n".join((self.ours, self.summary, self.found, self.caption, *captions, *cells, self.why, self.open))

    def results(self) -> list[str]:
        """The results that the page quotes, its figure's first."""
        names = references.named("\n".join((self.did, self.measured())))
        return list(dict.fromkeys(([self.figure] if self.figure else []) + names))


def read(path: Path) -> Claim:
    """The claim of a source.

    Raises:
      ValueError: if a field is unknown or missing, or the verdict is none of VERDICTS.
    """
    source = tomllib.loads(path.read_text())
    tables = []
    for table in source.pop("tables", ()):
        if wrong := table.keys() - {"columns", "rows", "corner", "caption"}:
            raise ValueError(f"{path.name}: {', '.join(sorted(wrong))} stands below [[tables]]: tables come last")
        tables.append(Table(**table))
    known = {field.name for field in fields(Claim)}
    needed = {"title", "where", "paper", "ours", "verdict", "summary", "says", "did", "why", "open"}
    if wrong := (source.keys() - known) | (needed - source.keys()):
        raise ValueError(f"{path.name}: unknown or missing: {', '.join(sorted(wrong))}")
    if source["verdict"] not in VERDICTS:
        raise ValueError(f"{path.name}: verdict {source['verdict']!r} is not one of {', '.join(VERDICTS)}")
    texts = {name: text.strip() if isinstance(text, str) else text for name, text in source.items()}
    return Claim(name=path.stem, tables=tuple(tables), **texts)


@dataclass(frozen=True)
class Sources:
    """Attributes: summary, opening lines of CLAIMS.md; groups, claims by heading; pages, texts by name."""

    summary: str
    groups: dict[str, list[Claim]]
    pages: dict[str, str]


def sources() -> Sources:
    """Everything in claims/.

    Raises:
      ValueError: if claims/index.toml does not name every claim exactly once.
    """
    index = tomllib.loads((SOURCES / "index.toml").read_text())
    listed = [name for group in index["groups"] for name in group["claims"]]
    there = {path.stem for path in SOURCES.glob("*.toml")} - {"index"}
    if wrong := set(listed) ^ there or len(listed) - len(there):
        raise ValueError(f"claims/index.toml must name each claim once: {wrong}")
    groups = {group["title"]: [read(SOURCES / f"{name}.toml") for name in group["claims"]] for group in index["groups"]}
    pages = {path.stem: path.read_text() for path in sorted((SOURCES / "pages").glob("*.md"))}
    return Sources(index["summary"].strip(), groups, pages)


def made(names: list[str], load: references.Load) -> str:
    """Which files the numbers are from, and what made those."""
    rows = ["| result | machine | versions | date | commit |", "|---|---|---|---|---|"]
    notes = []
    for name in names:
        marks = load(name)["made_by"]
        versions = ", ".join(f"{what} {marks['versions'][what]}" for what in ("python", "jax"))
        commits = ", ".join(mark[:7] + "+" * mark.endswith("+") for mark in marks["commits"])
        cells = [f"[{name}]({RESULT.format(name)})", "; ".join(marks["machines"]), versions, marks["date"], commits]
        rows.append(f"| {' | '.join(cells)} |")
        notes += [f"- `{name}`: {note}" for note in marks["notes"]]
    if not notes:
        return "\n".join(rows)
    fold = ["", f"<details><summary>Notes on these results ({len(notes)})</summary>", "", *notes, "", "</details>"]
    return "\n".join(rows + fold)


def commands(claim: Claim, load: references.Load) -> str:
    """What makes the results of a page again."""
    told = [f"# {name}\n{load(name)['command'].strip()}" for name in claim.results()]
    return "\n\n".join(told + ([claim.command] if claim.command else []))


def page(claim: Claim, load: references.Load) -> str:
    """The page of a claim."""
    show = f"![{claim.alt}]({FIGURE.format(claim.figure)})\n\n*{claim.caption}*" if claim.figure else ""
    found = [claim.found, show, *(table.markdown() for table in claim.tables)]
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
    """A row for each claim."""
    rows = ["| claim | paper | ours | verdict | link |", "|---|---|---|---|---|"]
    for one in claims:
        rows.append(f"| {one.title} | {one.paper} | {one.ours} | {one.verdict} | [page]({folder}{one.name}.md) |")
    return references.filled("\n".join(rows), load)


def overview(found: Sources, load: references.Load) -> str:
    """CLAIMS.md: all claims on one screen."""
    groups = [f"## {title}\n\n{table(claims, 'docs/claims/', load)}" for title, claims in found.groups.items()]
    return "\n\n".join(["# Claims", references.filled(found.summary, load), *groups]) + "\n"


def by_verdict(found: Sources) -> str:
    """docs/claims/index.md: the claims by their verdict, and the other pages."""
    claims = [one for group in found.groups.values() for one in group]
    parts = []
    for verdict, meaning in VERDICTS.items():
        links = [f"- [{one.title}]({one.name}.md)" for one in claims if one.verdict == verdict]
        parts.append(f"## {verdict.capitalize()} ({len(links)})\n\n{meaning.capitalize()}.\n\n" + "\n".join(links))
    pages = "\n".join(f"- [{text.split(chr(10))[0].lstrip('# ')}]({name}.md)" for name, text in found.pages.items())
    top = "One page for each claim, by its verdict. By subject, with figures: [CLAIMS.md](../../CLAIMS.md)."
    return "\n\n".join(["# Claims by verdict", top, *parts, f"## About all of them\n\n{pages}\n"])


def with_results(text: str, found: str) -> str:
    """README.md's text with its results in place.

    Raises:
      ValueError: if the text does not have the two marks once each.
    """
    start, end = "<!-- results -->\n", "<!-- /results -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"README.md must have {start.strip()} and {end} once, on lines of their own")
    return text.split(start)[0] + start + found + end + text.split(end)[1]


def generate() -> dict[Path, str]:
    """Every page by its path."""
    load = cache(results.load)
    found = sources()
    pages = {PAGES / f"{name}.md": references.filled(text, load) for name, text in found.pages.items()}
    for claims in found.groups.values():
        for one in claims:
            try:
                pages[PAGES / f"{one.name}.md"] = page(one, load)
            except (KeyError, ValueError) as error:
                raise ValueError(f"claims/{one.name}.toml: {error}") from error
    pages |= {ROOT / "CLAIMS.md": overview(found, load), PAGES / "index.md": by_verdict(found)}
    results_block = references.filled((SOURCES / "results.md").read_text(), load)
    return pages | {README: with_results(README.read_text(), results_block)}


def main() -> None:
    """Writes every page, and deletes those of claims that are gone."""
    pages = generate()
    for gone in set(PAGES.glob("*.md")) - pages.keys():
        gone.unlink()
    PAGES.mkdir(parents=True, exist_ok=True)
    for path, text in pages.items():
        path.write_text(text)
