"""What the notebooks show: tables, small pictures of figures, and short trainings."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import unwrap
from pathlib import Path

import matplotlib
from IPython.display import Image, Markdown, display
from ml_collections import ConfigDict

from lib.figures import catalogue, style

DPI = 100  # half of that of the committed figures: a notebook holds its pictures itself


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Markdown:
    """A table with these headings and rows of cells."""
    lines = [head, ["---"] * len(head), *rows]
    return Markdown("\n".join(f"| {' | '.join(cells)} |" for cells in lines))


def share(entry: dict, name: str) -> str:
    """The mean of a number over the seeds of a result's entry, with its standard deviation, in percent; "-" where there
    is none."""
    mean, sd = entry["mean"].get(name), entry["sd"].get(name)
    if mean is None:
        return "-"
    return f"{mean:.2%}" + (f" ± {sd:.2%}" if sd is not None else "")


def figures(*named: dict) -> None:
    """Shows all figures of these results."""
    for result in named:
        for draw in catalogue.drawers(result["name"], result):
            figure(draw, result)


def figure(draw: Callable, result: dict) -> None:
    """Shows the figure that a function of `lib.figures` draws of a result.

    The picture carries the result's digest as metadata. So a test can tell the picture of other numbers.
    """
    with matplotlib.rc_context(style.RC):
        drawn = unwrap(draw)(result)
        drawn.set_dpi(DPI)
        data = io.BytesIO()
        style.picture(drawn, 64).save(data, "png", optimize=True)
    display(Image(data.getvalue(), format="png"), metadata={"result": style.digest(result)})


def short(config: ConfigDict, steps: int) -> ConfigDict:
    """The settings with so few training steps, tens, evaluated on few tokens. Learning rate and price keep to the
    steps."""
    config.run.steps = steps
    config.run.update(log_every=steps // 10, checkpoint_every=steps, final_tokens=100 * steps)
    config.run.held_out_tokens = min(config.run.held_out_tokens, 100 * steps)
    return config


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for a short training. Afterwards it is deleted. What the training prints is not shown."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        yield Path(folder)
