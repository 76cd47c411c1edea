"""Reads the sources of claims in claims/: a TOML file for each claim, an index of them, and texts.

claims/README.md explains how to write them.
"""

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from lib import references

SOURCES = Path(__file__).parents[2] / "claims"
RESULTS = "../../experiments/results"  # as the pages see them
END = re.compile(rf":{references.FORMAT.pattern}$")
VERDICTS = {
    "reproduced": "measured, and as the paper says",
    "partly": "part of it is as the paper says, or under a condition",
    "not reproduced": "measured, and not as the paper says",
    "not well posed": "the statement contradicts itself, or nothing could contradict it",
    "pending": "a measurement of the paper's, and ours lacks its data or is below a tenth of its size",
    "ours": "no claim of a paper: something we add",
}


@dataclass(frozen=True)
class Table:
    """A table of numbers.

    A number's reference may be split in two parts, START (NAME:PATH) and END (PATH:FORMAT). The column gives one part
    and the row the other.

    Attributes:
      columns: headings of the columns after the first, `HEADING` or `HEADING = PART`.
      rows: `LABEL = PART`, or a list of cells.
      corner: heading of the first column.
      caption: what the table shows.
    """

    columns: list[str]
    rows: list[str | list[str]]
    corner: str = ""
    caption: str = ""

    def cells(self) -> list[list[str]]:
        """Returns the cells of each row, with references.

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
        """Returns the table in Markdown, with references."""
        heads = [column.rpartition(" = ")[0] or column for column in self.columns]
        lines = [[self.corner or " ", *heads], ["---", *("---:" for _ in heads)], *self.cells()]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"{self.caption}\n\n{table}" if self.caption else table


@dataclass(frozen=True)
class Figure:
    """Attributes: name, its result, or result and file as in `srcd_paper/details`; alt, what it shows; caption."""

    name: str
    alt: str
    caption: str

    def markdown(self) -> str:
        result, _, file = self.name.partition("/")
        return f"![{self.alt}]({RESULTS}/{result}/{file or 'figure'}.png)\n\n*{self.caption}*"


@dataclass(frozen=True)
class Claim:
    """A claim as its source says it. The texts hold references.

    Attributes:
      name: name of its source and page.
      title: what is claimed, in a few words.
      where: equation, table, figure or section of the paper.
      paper: the paper's number, short.
      ours: our number, short.
      verdict: one of VERDICTS.
      summary: the verdict and its reason in two or three sentences.
      says: what the paper says.
      did: what we did: model, size, seeds.
      found: what we measured, in words.
      why: reason for the verdict.
      open: open questions.
      figures, tables: figures and tables of the page.
      command: commands beside those of the results, or a check that takes a minute.
      typed: numbers of ours that are in no result file, each with the reason.
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
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    command: str = ""
    typed: dict[str, str] | None = None

    def measured(self) -> str:
        """Returns all texts that may quote our numbers. Labels of table rows are not among them."""
        cells = [cell for table in self.tables for row in table.cells() for cell in row[1:]]
        captions = [one.caption for one in self.figures + self.tables]
        return "\n".join((self.ours, self.summary, self.found, *captions, *cells, self.why, self.open))

    def results(self) -> list[str]:
        """Returns the names of the results that the page quotes, those of its figures first."""
        names = references.named("\n".join((self.did, self.measured())))
        return list(dict.fromkeys([figure.name.split("/")[0] for figure in self.figures] + names))


def read(path: Path) -> Claim:
    """Reads a claim from its source.

    Raises:
      ValueError: if a field is unknown or missing, or the verdict is not in VERDICTS.
    """
    source = tomllib.loads(path.read_text())
    for name, kind in (("figures", Figure), ("tables", Table)):
        parts = source.pop(name, ())
        for part in parts:
            if wrong := part.keys() - {field.name for field in fields(kind)}:
                what = ", ".join(sorted(wrong))
                raise ValueError(f"{path.name}: {what} below [[{name}]]: figures and tables come last")
        source[name] = tuple(kind(**part) for part in parts)
    known = {field.name for field in fields(Claim)}
    needed = {"title", "where", "paper", "ours", "verdict", "summary", "says", "did", "why", "open"}
    if wrong := (source.keys() - known) | (needed - source.keys()):
        raise ValueError(f"{path.name}: unknown or missing: {', '.join(sorted(wrong))}")
    if source["verdict"] not in VERDICTS:
        raise ValueError(f"{path.name}: verdict {source['verdict']!r} is not one of {', '.join(VERDICTS)}")
    texts = {name: text.strip() if isinstance(text, str) else text for name, text in source.items()}
    return Claim(name=path.stem, **texts)


@dataclass(frozen=True)
class Sources:
    """Attributes:
    summary: opening lines of CLAIMS.md.
    groups: claims by heading.
    pages: texts by name.
    results: the README's text about results.
    """

    summary: str
    groups: dict[str, list[Claim]]
    pages: dict[str, str]
    results: str

    def claims(self) -> list[Claim]:
        """Returns all claims, in the order of the index."""
        return [one for group in self.groups.values() for one in group]


def read_all() -> Sources:
    """Reads everything in claims/.

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
    return Sources(index["summary"].strip(), groups, pages, (SOURCES / "results.md").read_text())
