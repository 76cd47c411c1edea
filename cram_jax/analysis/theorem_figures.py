"""Theorems 1 to 3 of CRAM as lines, and what was measured as marks; readable in greyscale."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

MARKS = "ox^sDv<>"


def draw(found: dict, path: Path) -> None:
    """A mark a seed.

    Args:
      found: `theorem_1`, `theorem_2` and `theorem_3` as experiments/theorems.py makes them.
    """
    figure, grid = plt.subplots(2, 2, figsize=(11, 8.4), constrained_layout=True)
    axes = grid.ravel()
    groups = {
        "nothing recurs: only attention can answer": [n for n in found["theorem_1"] if n.endswith("nothing recurs")],
        "70% recur: parameters can answer, too": [n for n in found["theorem_1"] if not n.endswith("nothing recurs")],
    }
    for axis, (title, labels) in zip(axes[:2], groups.items(), strict=True):
        for mark, label in zip(MARKS, labels, strict=False):
            runs = found["theorem_1"][label]["runs"]
            points = [(100 * run["retrieval_accuracy"], 100 * run["attention_tokens"]) for run in runs]
            name = label.rsplit(", ", 1)[0]
            axis.plot(*zip(*points, strict=True), mark, color="k", mfc="none", ms=6, label=name)
        queries = np.mean([run["least_by_eq_9"] / run["retrieval_accuracy"] for n in labels for run in
                           found["theorem_1"][n]["runs"]])  # fmt: skip
        accuracy = np.linspace(1, 100, 200)
        axis.fill_between(accuracy, accuracy * queries, 1e-3, color="0.88", label="ruled out by Theorem 1")
        axis.set(xlabel="queries answered right (%)", yscale="log", ylim=(0.3, 120), xlim=(0, 102), title=title)
    axes[0].set(ylabel="tokens that attend (%)")
    axis, tried = axes[2], {name: of for name, of in found["theorem_2"].items() if name != "least_error"}
    for style, (name, of) in zip(("-", "--", "-.", ":", (0, (1, 3))), tried.items(), strict=True):
        axis.plot(of["step"], of["error"], ls=style, color="k", lw=1, label=f"step {name}")
    axis.plot(of["step"], tried["1 / L^2"]["bound"], color="0.6", lw=3, label="C / (T eta) at 1 / L^2")
    axis.set(xlabel="steps of gradient descent, T", ylabel="error of a linear memory above the least", xscale="log")
    axis.set(yscale="log", ylim=(1e-8, 1e4), title="Theorem 2: consolidation of fixed retrievals")
    axis = axes[3]
    for mark, (label, runs) in zip(MARKS, found["theorem_3"].items(), strict=False):
        points = [(100 * run["rho"], 100 * run["of_queries"]) for run in runs]
        axis.plot(*zip(*points, strict=True), mark, color="k", mfc="none", ms=6, label=label)
    axis.plot([0, 100], [100, 0], "k--", lw=1, label="1 - rho")
    axis.set(xlabel="queries that recur, rho (%)", ylabel="tokens that attend, of the queries (%)", ylim=(-3, 130))
    axis.set(title="Theorem 3: CRAM")
    for axis in axes:
        axis.legend(fontsize=7, frameon=False)
        axis.grid(alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
