"""Draws every committed figure again, from the committed results alone: `make figures`.

python experiments/figures.py [--figures=FOLDER]

| result | figure |
|---|---|
| srcd_*.json with curves, of a model that routes | attention, retrieval and time of a step over training |
| all srcd_*.json | srcd.png: what every seed ended with, side by side |
| with `entries` of experiments/compare.py | the same, of a comparison |
| the others | by the function that FIGURES names |
"""

import json
from collections.abc import Callable
from pathlib import Path

from absl import app, flags

from cram_jax.analysis import (
    change_figures,
    comparison_figures,
    exposure_figures,
    figures,
    kernel_figures,
    mqar_figures,
    plasticity_figures,
    redundancy_figures,
    text_figures,
    theorem_figures,
    transfer_figures,
)
from cram_jax.tasks.text_task import KINDS

RESULTS = Path(__file__).parent / "results"
TARGET = flags.DEFINE_string("figures", str(RESULTS), "Where the figures go.")

Drawer = Callable[[dict, Path], None]
# By the name of a result; what is in none of these has no figure of its own.
FIGURES: dict[str, Drawer] = {
    "mqar": mqar_figures.draw,
    "conversion": mqar_figures.conversion,
    "language": text_figures.comparison,
    "text": lambda result, path: text_figures.text_figure(result, path, KINDS),
    "plasticity": plasticity_figures.draw,
    "exposure": exposure_figures.draw,
    **dict.fromkeys(("change", "change_seed_1", "change_seed_2"), change_figures.draw),
    "redundancy": redundancy_figures.draw,
    "theorems": theorem_figures.draw,
    "transfer": lambda result, path: transfer_figures.draw(result["targets"], path),
    **{f"kernels/{part}": draw for part, draw in kernel_figures.FIGURES.items()},
}


def drawer(name: str, result: dict) -> Drawer | None:
    """The function that draws the result of that name; None where none does."""
    if name in FIGURES:
        return FIGURES[name]
    if "entries" in result:
        return comparison_figures.draw
    routes = name.startswith("srcd_") and "router_released_step" in result["runs"][0]
    return figures.figure_2 if routes and "curves" in result else None


def side_by_side(results: dict[str, dict]) -> dict:
    """All results on SRCD as entries of one comparison, by the rest of their names."""
    about = lambda run: f"{run['length']} events, {run['steps']} steps"
    label = lambda name, run: f"{name.removeprefix('srcd_').replace('_', ' ')}: {about(run)}"
    return {"entries": {label(name, one["runs"][0]): one for name, one in results.items() if name.startswith("srcd_")}}


def load() -> dict[str, dict]:
    """All committed results by their names below experiments/results, and `srcd`, those on SRCD side by side."""
    files = sorted(RESULTS.rglob("*.json"))
    results = {str(file.relative_to(RESULTS).with_suffix("")): json.loads(file.read_text()) for file in files}
    return results | {"srcd": side_by_side(results)}


def draw(name: str, result: dict, folder: Path) -> Path | None:
    """The figure of a result of that name, drawn into the folder: its path; None where it has none of its own."""
    if (drawn := drawer(name, result)) is None:
        return None
    path = Path(folder) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn(result, path)
    return path


def main(_) -> None:
    for name, result in load().items():
        if path := draw(name, result, TARGET.value):
            print(path)


if __name__ == "__main__":
    app.run(main)
