"""Shows streams while they are read: the attention of each falls on the terminal."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 30  # bars of a curve
RECENT = 10  # visits behind the numbers beside it
SHOWN = 3  # streams


Show = Callable[[int, list[dict]], None]  # called with the number of visits done, and the counts of each


@contextlib.contextmanager
def shown(label: str, visits: int, lines: Show) -> Iterator[Show]:
    """Yields a function that shows a deployment: a table that is drawn again after each visit, on a terminal.

    Args:
      label: what is deployed.
      visits: their number.
      lines: is yielded where no terminal is.
    """
    console = Console()
    if not console.is_terminal:
        yield lines
        return
    with Live(console=console, auto_refresh=False) as view:

        def show(done: int, counts: list[dict]) -> None:
            names = ("attended", "least", "right", "queries")
            of = {name: np.stack([one[f"{name}_by_stream"] for one in counts]) for name in names}
            length = counts[0]["tokens"] / of["attended"].shape[1]
            view.update(table(f"{label}: visit {done} of {visits}", of, length, visits), refresh=True)

        yield show


def table(title: str, counts: dict[str, np.ndarray], length: float, visits: int) -> Table:
    """A row for each of the first streams.

    Args:
      counts: "attended", "least", "right" and "queries" by visit and stream.
      length: tokens of a visit.
      visits: number of visits of the whole curve.
    """
    out = Table(title=title, title_justify="left")
    recent = f"last {RECENT} visits"
    heads = ("stream", "tokens that attend, from the first visit on", recent, "first queries", "answered right")
    for head in heads:
        out.add_column(head, justify="left" if head == heads[1] else "right", no_wrap=True)
    for stream in range(min(SHOWN, counts["attended"].shape[1])):
        mine = {name: found[:, stream] for name, found in counts.items()}
        last = {name: found[-RECENT:].sum() for name, found in mine.items()}
        tokens = length * len(mine["attended"][-RECENT:])
        percent = lambda part, whole: f"{100 * part / max(whole, 1):.1f}%"
        curve = bars(mine["attended"] / length, visits)
        out.add_row(
            str(stream + 1),
            curve,
            percent(last["attended"], tokens),
            percent(last["least"], tokens),
            percent(last["right"], last["queries"]),
        )
    return out


def bars(shares: np.ndarray, visits: int) -> str:
    """A curve of WIDTH bars for so many visits, each the mean over its visits. The scale is that of the highest bar."""
    edge = np.linspace(0, visits, min(WIDTH, visits) + 1).round().astype(int)
    means = [shares[a:b].mean() for a, b in zip(edge[:-1], edge[1:], strict=True) if a < len(shares)]
    top = max([*means, 1e-9])
    return "".join(BARS[round((len(BARS) - 1) * mean / top)] for mean in means)
