"""Figures from logged lines; greyscale-safe: every curve has its own line style or marker."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def _moments(lines: list[dict], transition: int | None) -> list[dict]:
    """Three lines to compare: early, at the transition (or half-way), last."""
    steps = np.array([line["step"] for line in lines])
    middle = transition if transition is not None else steps[-1] / 2
    early = lines[min(len(lines) - 1, max(1, len(lines) // 30))]
    return [early, lines[int(np.argmin(np.abs(steps - middle)))], lines[-1]]


def figure_2(lines: list[dict], summary: dict, path: Path) -> None:
    """The paper's Figure 2: attention, accuracy and mean quality over steps; density of quality at three times. And
    the time of a step."""
    steps = [line["step"] for line in lines]
    pick = lambda name: [line.get(name, np.nan) for line in lines]
    layer, transition = summary["busiest_layer"], summary["transition_step"]
    released = summary["router_released_step"]
    figure, (left, middle, clock, right) = plt.subplots(1, 4, figsize=(16, 3.8), constrained_layout=True)

    percent = lambda name: 100 * np.array(pick(name), float)
    left.plot(steps, percent("held_out/attention_tokens"), "k-", label="tokens that attend")
    left.plot(steps, percent("held_out/attention_utilisation"), color="0.55", ls="--", label="(token, layer) pairs")
    left.axhline(100 * summary["realised_new_share"], color="0.3", ls=":", label="queries of new bindings")
    left.set(yscale="log", ylabel="attention (%)", title="Attention")

    middle.plot(steps, percent("held_out/retrieval_accuracy"), "k-", label="all queries")
    middle.plot(steps, percent("held_out/retrieval_accuracy_recurring"), color="0.45", ls="--", label="recurring")
    middle.plot(steps, percent("held_out/retrieval_accuracy_new"), color="0.45", ls="-.", label="new in the sequence")
    quality = percent(f"probe/quality_query_recurring_layer_{layer}")
    middle.plot(steps, quality, "k:", lw=2, label=f"mean quality, recurring (layer {layer})")
    middle.set(ylabel="retrieval accuracy, quality (%)", ylim=(-2, 102), title="Accuracy and quality of recall")

    clock.plot(steps, pick("step_ms"), "k-", label="a training step")
    clock.set(ylabel="milliseconds", title="Time of a step", ylim=(0, None))

    for line, style in zip(_moments(lines, transition), ("k:", "k--", "k-"), strict=True):
        counts = np.array(line[f"probe/quality_bins_layer_{layer}"])
        centres = (np.arange(len(counts)) + 0.5) / len(counts)
        density = counts / max(counts.sum(), 1) * len(counts)
        right.plot(centres, density, style, drawstyle="steps-mid", label=f"step {line['step']}")
    right.set(xlabel="quality q of a query", ylabel="density", title=f"Quality of recall, all queries (layer {layer})")

    for axis in (left, middle, clock):
        axis.set(xlabel="training step")
        if transition is not None:
            axis.axvline(transition, color="0.8", lw=4, zorder=0, label=f"transition, step {transition}")
        if released is not None:
            axis.axvline(released, color="0.6", lw=0.8, zorder=0, label=f"router released by step {released}")
    for axis in (left, middle, clock, right):
        axis.legend(fontsize=7, frameon=False)
        axis.grid(alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
