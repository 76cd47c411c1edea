"""Theorems 1 to 3 of CRAM as lines, and what was measured as marks, one a seed."""

import re

import numpy as np
from matplotlib.figure import Figure

from lib.figures import style

CONDITIONS = {
    "nothing recurs": "nothing recurs: only attention can answer",
    "70% recur": "70% recur: parameters can answer, too",
}
ROUTERS = {"random": "attends at random", "positions": "attends at fixed positions",
           "the event alone": "attends by the event alone"}  # fmt: skip


@style.drawer()
def draw(result: dict) -> Figure:
    """Theorem 1 in two panels, by what recurs; Theorem 2; Theorem 3.

    Args:
      result: its `data` has `theorem_1`, `theorem_2` and `theorem_3`, as `derive.py --name=theorems` computes them.
    """
    figure, axes = style.panels(2, 2, 7.4)
    for axis, (condition, title) in zip(axes[0], CONDITIONS.items(), strict=True):
        _static(axis, result["data"]["theorem_1"], condition)
        axis.set_title(f"Theorem 1, {title}")
    _consolidation(axes[1, 0], result["data"]["theorem_2"])
    _recurrence(axes[1, 1], result["data"]["theorem_3"])
    for axis in axes.flat:
        style.below(axis)
    style.headline(figure, result)
    return figure


def _static(axis, found: dict, condition: str) -> None:
    """Attention over accuracy, beside what the theorem rules out."""
    labels = [label for label in found if label.endswith(f", {condition}")]
    named = set()
    for label in labels:
        kind = re.sub(r" \d+%$", "", label.rsplit(", ", 1)[0])
        line = style.SERIES[list(ROUTERS).index(kind)] | {"ls": "", "mfc": "none", "ms": 5}
        points = [(100 * run["retrieval_accuracy"], 100 * run["attention_tokens"]) for run in found[label]["runs"]]
        axis.plot(*zip(*points, strict=True), label=None if kind in named else ROUTERS[kind], **line)
        named.add(kind)
    runs = [run for label in labels for run in found[label]["runs"]]
    queries = np.mean([run["least_by_eq_9"] / run["retrieval_accuracy"] for run in runs])
    accuracy = np.linspace(1, 100, 200)
    axis.fill_between(accuracy, accuracy * queries, 1e-3, color="0.88", lw=0)
    axis.annotate("ruled out by\nTheorem 1", (66, 0.9), ha="center", va="center", color="0.2")
    axis.set(xlabel="queries answered right (%)", ylabel="tokens that attend (%)", xlim=(0, 102), ylim=(0.3, 120))
    style.percent_ticks(axis)


def _consolidation(axis, found: dict) -> None:
    tried = {name: of for name, of in found.items() if name != "least_error"}
    for (name, of), line in zip(tried.items(), style.SERIES, strict=False):
        share_T = np.divide(of["error"], of["bound"])  # each step size η has a bound of its own
        axis.plot(of["step"], share_T, label=f"step size {name}".replace("^2", "²"), **line | {"marker": ""})
    style.level(axis, 1, "bound: 1", color=style.BLACK, ls="--")
    axis.set(xlabel="steps of gradient descent, T", xscale="log", yscale="log", ylim=(1e-6, 1e3))
    axis.set(ylabel="error above the least / bound C / (T η)", title="Theorem 2, a linear memory of fixed retrievals")
    axis.minorticks_off()


def _recurrence(axis, found: dict) -> None:
    axis.plot([0, 100], [100, 0], color=style.BLACK, ls="--", lw=1.0, label="bound 1 - ρ, for ε = 0")
    for (label, runs), line in zip(found.items(), style.SERIES, strict=False):
        points = [(100 * run["rho"], 100 * run["of_queries"]) for run in runs]
        axis.plot(*zip(*points, strict=True), label=f"CRAM, {label}", **line | {"ls": "", "mfc": "none", "ms": 5})
    axis.set(xlabel="queries that recur, ρ (%)", ylabel="tokens that attend / queries (%)", ylim=(-3, 108))
    axis.set_title("Theorem 3, attention that is left")
