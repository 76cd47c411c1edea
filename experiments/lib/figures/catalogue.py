"""Which function draws which result.

| result | figure |
|---|---|
| one entry with curves, on SRCD | figure: attention and retrieval over training; details: what lies behind them |
| several entries on SRCD | what every seed ended with, side by side |
| the others | as FIGURES says |

`srcd` is no result of its own: it is all srcd_* side by side.
"""

from collections.abc import Callable
from pathlib import Path

from lib import results
from lib.figures import (
    change,
    comparison,
    exposure,
    kernels,
    plans,
    plasticity,
    recall,
    redundancy,
    streams,
    text,
    theorems,
    training,
    transfer,
)

Drawer = Callable[[dict, Path], Path]
# By the name of a result: what draws it, where that does not follow from what it holds.
FIGURES: dict[str, Drawer] = {
    "ablations": comparison.ablations,
    "static": comparison.by_condition,
    **dict.fromkeys(("tuning", "tuning_mamba2", "tuning_jamba"), comparison.by_model),
    **dict.fromkeys(("mqar", "mqar_paper"), recall.models),
    "conversion": recall.conversion,
    "language": text.models,
    "text": text.one,
    "plasticity": plasticity.draw,
    **dict.fromkeys(("exposure", "streams_exposure"), exposure.draw),
    "change": change.draw,
    "redundancy": redundancy.draw,
    "theorems": theorems.draw,
    "transfer": transfer.draw,
    **dict.fromkeys(
        ("streams", "streams_controls", "streams_controls_256", "streams_long", "streams_speeds"), streams.draw
    ),
    **dict.fromkeys(("streams_change", "streams_change_controls"), streams.change),
    "plans": plans.draw,
    "streams_memory": streams.memory,
    "streams_ablations": comparison.streams_ablations,
    **{f"kernels_{part}": draw for part, draw in kernels.BENCHMARKS.items()},
}


def drawers(name: str, result: dict) -> list[Drawer]:
    """The functions that draw the result of that name, a figure each."""
    if name in FIGURES:
        return [FIGURES[name]]
    entries = list(result["entries"].values())
    if len(entries) > 1:
        return [comparison.draw]
    return [training.draw, training.details] if entries and "curves" in entries[0] else []


def side_by_side() -> dict:
    """All results on SRCD as entries of one comparison, by the rest of their names."""
    entries = {}
    for name in results.names():
        if name.startswith("srcd_"):
            result = results.load(name)
            run = result["config"]["run"]
            called = name.removeprefix("srcd_").replace("_", " ")
            _, entries[f"{called}: {run['length']} events, {run['steps']} steps"] = training.only(result)
    return {"name": "srcd", "question": "Where did all runs on SRCD end?", "config": None, "entries": entries}


def load() -> dict[str, dict]:
    """All that is drawn, by name: the committed results, and those on SRCD side by side."""
    return {name: results.load(name) for name in results.names()} | {"srcd": side_by_side()}


def leave(result: dict, folder: Path) -> None:
    """Writes a result into a folder, with its figures, and prints where they are."""
    print(f"result: {results.write(folder, result)}")
    for draw in drawers(result["name"], result):
        print(f"figure: {draw(result, Path(folder))}")


def draw(name: str, result: dict, folder: Path) -> list[Path]:
    """The figures of a result of that name, drawn into a folder of that name in this one; none where it has none."""
    return [one(result, Path(folder) / name) for one in drawers(name, result)]
