"""A change in mid-training: accuracy and attention of the patterns that it concerns."""

import numpy as np
from matplotlib.figure import Figure

from lib.figures import style
from lib.figures.training import band

ACCURACY = {
    "retrieval_accuracy_changed": ("changed patterns", style.BLUE, "-"),
    "retrieval_accuracy_recurring": ("all recurring patterns", style.ORANGE, "--"),
    "retrieval_accuracy_new": ("new bindings", style.BLACK, ":"),
}
ATTENTION = {
    "attention_query_changed": ("queries of changed patterns", style.BLUE, "-"),
    "attention_tokens": ("all tokens", style.ORANGE, "--"),
}
BEFORE, AFTER = 300, 900  # steps shown
TICKS = (0, 1, 2, 5, 10, 20, 50, 100)


@style.drawer()
def draw(result: dict) -> Figure:
    """The last steps before the change and the first after it: median and range of all seeds.

    Args:
      result: with an entry for each seed, of one run; its curve has a column `changed`, 0 before the change, 1 after.
    """
    runs = [found["runs"][0] for found in result["entries"].values()]
    curves = [found["curves"][0] for found in result["entries"].values()]
    at = runs[0]["at"]
    figure, axes = style.panels(1, 2, 3.4)
    for axis, shown in zip(axes.flat, (ACCURACY, ATTENTION), strict=True):
        for name, (label, color, ls) in shown.items():
            for changed in (0, 1):
                part = [_part(curve, f"held_out/{name}", changed, at) for curve in curves]
                band(axis, part, "value", label if changed else None, {"color": color, "ls": ls})
        style.moment(axis, 0, f"the change, step {at}")
        axis.set(xlabel="training steps since the change", xlim=(-BEFORE, AFTER))
        style.below(axis)
    axes[0, 0].set(ylabel="held-out queries answered right (%)", ylim=(-2, 103))
    usual = 100 * np.mean([run["attention_tokens_before"] for run in runs])
    style.level(axes[0, 1], usual, f"all tokens, before: {usual:.2f}%")
    axes[0, 1].set_yscale("symlog", linthresh=1)
    axes[0, 1].set(ylabel="held-out tokens that attend (%),\nlinear below 1%", ylim=(-0.05, 110))
    axes[0, 1].set_yticks(TICKS, [str(tick) for tick in TICKS])
    axes[0, 1].minorticks_off()
    config = result["config"]
    changed = f"{config['change']['patterns']} of {config['data']['patterns']} patterns get other answers"
    about = f"{changed}; sequences of {config['run']['length']} events; {style.seeds(len(runs))}"
    style.headline(figure, result, about)
    return figure


def _part(curve: dict, name: str, changed: int, at: int) -> dict:
    """A column before or after the change, over steps since it."""
    kept = np.equal(curve["changed"], changed)
    column = lambda of: np.array(curve[of], float)[kept]
    return {"step": column("step") - at, "value": column(name)}
