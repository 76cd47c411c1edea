"""Shows streams while they are read: the attention of each falls on the terminal."""

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 30  # bars of a curve
RECENT = 10  # visits behind the numbers beside it
SHOWN = 6  # streams


class StreamsView:
    """A table that is drawn again after each visit. Where no terminal is, only the last one of each arm is printed.

    Use it as a context; call it with the number of visits done and their counts.
    """

    def __init__(self, title: str, visits: int):
        self._title, self._visits = title, visits
        self._live = Live(console=Console(), auto_refresh=False)

    def __enter__(self):
        self._live.start()
        return self

    def __exit__(self, *_):
        self._live.stop()

    def __call__(self, done: int, counts: list[dict]) -> None:
        of = {name: np.stack([one[name] for one in counts]) for name in ("attended", "least", "right", "queries")}
        length = counts[0]["tokens"] / len(counts[0]["attended"])
        self._live.update(
            table(f"{self._title}: visit {done} of {self._visits}", of, length, self._visits), refresh=True
        )


def table(title: str, counts: dict[str, np.ndarray], length: float, visits: int) -> Table:
    """A row for each of the first streams.

    Args:
      counts: "attended", "least", "right" and "queries" by visit and stream.
      length: tokens of a visit.
      visits: number of visits of the whole curve.
    """
    out = Table(title=title, title_justify="left")
    recent = f"last {RECENT} visits"
    heads = ("stream", "tokens that attend, from the first visit on", f"{recent}", "least possible", "answered right")
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
    """A curve of WIDTH bars for so many visits, each the mean over its visits; the highest bar is the first."""
    edge = np.linspace(0, visits, min(WIDTH, visits) + 1).round().astype(int)
    means = [shares[a:b].mean() for a, b in zip(edge[:-1], edge[1:], strict=True) if a < len(shares)]
    top = max(*means, 1e-9) if len(means) > 1 else max(means[0], 1e-9)
    return "".join(BARS[round((len(BARS) - 1) * mean / top)] for mean in means)
