"""Scores and attention on the targets of a transfer, side by side."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.figures import style

WAYS = {
    "from scratch": {"color": style.BLACK, "marker": "s"},
    "frozen": {"color": style.BLUE, "marker": "o"},
    "head alone": {"color": style.ORANGE, "marker": "^"},
}
SCORES = {"copy": "accuracy", "records": "area under the ROC curve", "motion": "accuracy"}


@style.drawer()
def draw(result: dict) -> Figure:
    """A row of panels a target: score, and tokens that attend; a row in them a model and a way.

    Args:
      result: with an entry a target, model and way, as its settings say; `data` has `targets` by what they are called.
    """
    targets = result["data"]["targets"]
    figure, axes = style.panels(len(targets), 2, 1.95 * len(targets) + 0.7)
    for (left, right), (called, target) in zip(axes, targets.items(), strict=True):
        entries = [found for found in result["entries"].values() if found["settings"].get("target") == target]
        for axis, name, factor in ((left, "score", 1), (right, "attention_tokens_end", 100)):
            for y, found in enumerate(entries):
                seeds = [factor * run[name] for run in found["runs"]]
                axis.plot(seeds, [y] * len(seeds), "|", color=style.BLACK, ms=8)
                mark = WAYS[found["settings"]["way"]] | {"ls": "", "ms": 5, "zorder": 1.5}
                axis.plot(factor * found["mean"][name], y, **mark)
            axis.set_ylim(len(entries) - 0.5, -0.5)
        rows = [(style.spelled(found["settings"]["model"]), found["settings"]["way"]) for found in entries]
        left.set_yticks(range(len(rows)), [f"{model}, {way}" for model, way in rows])
        right.set_yticks(range(len(rows)), [])
        left.set(title=called, xlabel=SCORES[target])
        right.set(xlabel="tokens that attend (%)")
        right.set_xlim(min(-2, right.get_xlim()[0]), None)
    marks = [Line2D([], [], ls="", label=f"{way}, mean of seeds", **mark) for way, mark in WAYS.items()]
    style.under_all(figure, [Line2D([], [], ls="", marker="|", ms=8, color=style.BLACK, label="a seed"), *marks])
    ways = "the target alone (from scratch), or SRCD before it: what routes frozen, or all but the head"
    style.headline(figure, result, f"Trained on {ways}")
    return figure
