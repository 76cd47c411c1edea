"""The one look of all figures: type, colours, lines, marks, lettered panels, and how a figure is saved.

The colours are those of Okabe and Ito, which people with any kind of colour vision can tell apart. A series also has a
line style and a marker of its own, so that figures can be read in grey. Figures are made without pyplot: nothing is
shown, and drawing leaves no global state behind.
"""

import functools
import hashlib
import json
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation
from PIL import Image

WIDTH = 7.2  # inches, of every figure: type has the same size wherever two figures are shown at one width
TYPE = 8.0  # points
DPI = 200
SHOWS = "of the result with digest"

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY = "0.45"

# Neighbours differ in lightness, too.
SERIES = (
    {"color": BLUE, "ls": "-", "marker": "o"},
    {"color": ORANGE, "ls": "--", "marker": "s"},
    {"color": BLACK, "ls": "-.", "marker": "^"},
    {"color": SKY, "ls": (0, (1, 1.2)), "marker": "D"},
    {"color": RED, "ls": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": PURPLE, "ls": (0, (3, 1)), "marker": "P"},
    {"color": GREEN, "ls": (0, (7, 2)), "marker": "X"},
)
NAMES = {
    "cram": "CRAM",
    "mamba2": "Mamba-2",
    "seqboat": "SeqBoat",
    "jamba": "Jamba",
    "palimpsa": "Palimpsa",
    "metamamba2": "MetaMamba2",
    "gated_linear": "Palimpsa without importance",
    "gated_delta": "Gated DeltaNet",
    "ssd": "SSD",
    "srcd": "SRCD",
}
PERCENT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)

RC = {
    "font.size": TYPE,
    "axes.titlesize": TYPE,
    "axes.labelsize": TYPE,
    "xtick.labelsize": TYPE,
    "ytick.labelsize": TYPE,
    "legend.fontsize": TYPE,
    "figure.titlesize": TYPE,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.borderaxespad": 0,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.constrained_layout.hspace": 0.06,
    "figure.constrained_layout.wspace": 0.04,
    "svg.hashsalt": "cram_jax",  # names within the file: the same each time
    "svg.fonttype": "path",
}


def drawer(name: str = "figure") -> Callable:
    """Makes of a function from a result to a Figure one that takes (result, folder), saves the figure there under this
    name in the style of this file, and returns what `save` returns."""

    def decorate(make: Callable[[dict], Figure]) -> Callable[[dict, Path], Path]:
        @functools.wraps(make)
        def draw(result: dict, folder: Path) -> Path:
            with matplotlib.rc_context(RC):
                return save(make(result), folder, name, f"{SHOWS} {digest(result)}")

        return draw

    return decorate


def digest(result: dict) -> str:
    """Of the question, the settings and the numbers of a result: it tells a figure of other ones."""
    shown = {part: result.get(part) for part in ("question", "config", "entries", "data")}
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]


def save(figure: Figure, folder: Path, name: str = "figure", about: str | None = None) -> Path:
    """Writes NAME.png and NAME.svg into the folder, byte for byte the same for the same figure: the path of the PNG.

    Args:
      about: a description that the SVG holds, which is not shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.png").open("wb") as file:
        picture(figure, 256).save(file, "PNG", optimize=True, dpi=(DPI, DPI))
    figure.set_layout_engine("none")  # it has its layout now, and keeps it
    with (folder / f"{name}.svg").open("w") as file:
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Description": about})
    figure.dpi = DPI  # an SVG counts in points
    return folder / f"{name}.png"


def picture(figure: Figure, colours: int) -> Image.Image:
    """The figure's pixels in so few colours, which makes a PNG less than half as large."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    rgba = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    return rgba.convert("RGB").quantize(colours, dither=Image.Dither.NONE)


def panels(rows: int, columns: int, height: float, **how) -> tuple[Figure, np.ndarray]:
    """A figure of WIDTH and its axes as an array (rows, columns), lettered from a where there are several.

    Args:
      height: in inches. how: more for `Figure.subplots`.
    """
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    axes = figure.subplots(rows, columns, squeeze=False, **how)
    if axes.size > 1:
        for letter, axis in zip("abcdefghijkl", axes.flat, strict=False):
            left = -20 if not how.get("sharey") else -6
            where = {"xycoords": "axes fraction", "textcoords": "offset points"}
            axis.annotate(letter, (0, 1), (left, 6), weight="bold", **where)
    return figure, axes


def headline(figure: Figure, result: dict, *more: str) -> None:
    """The question that the result answers, above everything, and lines of what a reader must know about it."""
    lines = [line for text in (result["question"], *more) for line in textwrap.wrap(text, 122)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left")


def below(axis, ncols: int = 1, **how) -> None:
    """A legend under a panel, below the label of its x axis."""
    shifted = axis.transAxes + ScaledTranslation(-20 / 72, -32 / 72, axis.figure.dpi_scale_trans)
    axis.legend(loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=shifted, ncols=ncols, **how)


def under_all(figure: Figure, handles: Iterable | None = None, ncols: int = 4) -> None:
    """One legend below all panels, of these handles, or of all that is labelled, each label once."""
    if handles is None:
        pairs = [pair for axis in figure.axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
        handles = list({label: handle for handle, label in reversed(pairs)}.values())[::-1]
    figure.legend(handles=list(handles), loc="outside lower center", ncols=ncols)


def on_white(text, color: str = "0.2", **how):
    """The text readable over lines: it covers them."""
    text.set(color=color, zorder=9, bbox={"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.85}, **how)
    return text


def level(axis, y: float, text: str, over: bool = True, **line) -> None:
    """A horizontal reference line, labelled at its right end, over or under it."""
    axis.axhline(y, **({"color": GREY, "ls": ":", "lw": 1.0, "zorder": 1} | line))
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
    on_white(axis.annotate(text, (1, y), (-2, 3 if over else -3), va="bottom" if over else "top", **where))


def moment(axis, x: float, text: str, ha: str = "center", **line) -> None:
    """A vertical reference line, labelled above the panel."""
    axis.axvline(x, **({"color": GREY, "ls": "-", "lw": 0.8, "zorder": 0.5} | line))
    where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": ha, "va": "bottom"}
    on_white(axis.annotate(text, (x, 1), (0, 2), **where))


def percent_ticks(axis, which: str = "y") -> None:
    """A logarithmic scale of percent within the present limits: plain numbers, powers of ten alone where it is wide."""
    low, high = getattr(axis, f"get_{which}lim")()
    getattr(axis, f"set_{which}scale")("log")
    ticks = [mark for mark in PERCENT if low <= mark <= high]
    ticks = ticks if len(ticks) <= 9 else [mark for mark in ticks if f"{mark:e}".startswith("1.0")]
    getattr(axis, f"set_{which}ticks")(ticks, [f"{tick:g}" for tick in ticks])
    getattr(axis, f"{which}axis").set_minor_locator(NullLocator())
    getattr(axis, f"set_{which}lim")(low, high)


def spelled(label: str) -> str:
    """A result's label as a reader knows it: models by their names in print."""
    words = label.replace(",", " ,").split(" ")
    return " ".join(NAMES.get(word, word) for word in words).replace(" ,", ",").replace("_", " ")


def percent(share: float) -> str:
    """0.0155 as 1.55%; with no more digits than tell something, and 100% for all alone."""
    value = 100 * share
    return "100%" if share == 1 else f"{value:.2f}%" if value < 10 or value > 99 else f"{value:.1f}%"


def seeds(number: int) -> str:
    """How many there are, and how a line and a band show them, for a title."""
    return "1 seed" if number == 1 else f"{number} seeds (line: median; band: lowest to highest)"
