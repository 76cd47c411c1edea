"""The paper's Figure 2 from a committed result: a line for the median of all seeds, a band from the lowest to the
highest. Readable in greyscale: every curve has its own line style."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

PERCENT = (1, 2, 5, 10, 20, 50, 100)


def moments(lines: list[dict], transition: int | None) -> list[dict]:
    """Three lines to compare: early, at the transition (or half-way), last."""
    steps = np.array([line["step"] for line in lines])
    middle = transition if transition is not None else steps[-1] / 2
    early = lines[min(len(lines) - 1, max(1, len(lines) // 30))]
    return [early, lines[int(np.argmin(np.abs(steps - middle)))], lines[-1]]


def band(axis, curves: list[dict], name: str, label: str, style: dict, scale: float = 100.0) -> None:
    """`name` over steps, times `scale`, where any seed has it; nothing where none ever has.

    Args:
      curves: by seed, columns of logged numbers with None where there is none, as experiments/collect.py makes them.
    """
    if name not in curves[0]:
        return
    values_NxT = scale * np.array([curve[name] for curve in curves], float)
    seen_T = np.any(np.isfinite(values_NxT), axis=0)
    steps, values_NxT = np.array(curves[0]["step"])[seen_T], values_NxT[:, seen_T]
    axis.plot(steps, np.nanmedian(values_NxT, axis=0), label=label, **style)
    low, high = np.nanmin(values_NxT, axis=0), np.nanmax(values_NxT, axis=0)
    axis.fill_between(steps, low, high, color=style["color"], alpha=0.18, lw=0)


def mark(axis, steps: list[int | None], what: str, style: dict) -> None:
    """A line over the height of a panel at the median of the steps at which it came, by seed, on a shade from the first
    to the last, which the label names."""
    steps = sorted(step for step in steps if step is not None)
    if steps:
        when = f"step {steps[0]}" if steps[0] == steps[-1] else f"steps {steps[0]} to {steps[-1]}"
        axis.axvline(np.median(steps), zorder=0, label=f"{what}, {when}", **style)
        axis.axvspan(steps[0], steps[-1], zorder=-1, color="0.93", lw=0)


def seeds(runs: list[dict]) -> str:
    """How many, and how they are shown, for a title."""
    return "1 seed" if len(runs) == 1 else f"{len(runs)} seeds: median, and from the lowest to the highest"


def figure_2(result: dict, path: Path) -> None:
    """Attention, accuracy and the time of a step over training; the density of quality at three moments, where the
    result has it.

    Args:
      result: `config`, and by seed `runs`, `curves` and perhaps `quality`, as experiments/collect.py makes them.
    """
    runs, curves = result["runs"], result["curves"]
    rows, columns = (2, 2) if "quality" in result else (1, 3)
    figure, axes = plt.subplots(rows, columns, figsize=(4.7 * columns, 3.9 * rows), constrained_layout=True)
    axes = axes.flat
    attention, accuracy, clock = axes[:3]

    band(attention, curves, "held_out/attention_tokens", "tokens that attend", dict(color="k", ls="-"))
    pairs = dict(color="0.45", ls="--")
    band(attention, curves, "held_out/attention_utilisation", "(token, layer) pairs that attend", pairs)
    floor = 100 * np.mean([run["realised_new_share"] for run in runs])
    attention.axhline(floor, color="0.3", ls=":", label=f"queries of new bindings, {floor:.2f}%")
    attention.set(yscale="log", ylabel="share of held-out tokens (%)", title="Attention", ylim=(0.7, 120))
    attention.minorticks_off()
    attention.set_yticks(PERCENT, [str(tick) for tick in PERCENT])

    for name, label, style in (
        ("held_out/retrieval_accuracy", "all queries", dict(color="k", ls="-")),
        ("held_out/retrieval_accuracy_recurring", "of recurring bindings", dict(color="0.5", ls="--")),
        ("held_out/retrieval_accuracy_new", "of bindings new in the sequence", dict(color="0.35", ls="-.")),
        ("probe/quality_query_recurring_busiest", "quality of recall, recurring", dict(color="0.2", ls=":", lw=2)),
    ):
        band(accuracy, curves, name, label, style)
    accuracy.set(ylabel="held-out queries answered right (%)", title="Retrieval", ylim=(-2, 102))
    if "quality" in result:
        accuracy.set(ylabel="answered right; quality of recall (%)", title="Retrieval, and quality of recall")
        _densities(axes[3], result["quality"])

    machine = runs[0]["cpu"] if runs[0].get("device", "cpu").startswith("cpu") else runs[0]["device"]
    band(clock, curves, "step_ms", f"a training step on\n{machine}", dict(color="k", ls="-"), scale=1.0)
    clock.set(ylabel="time (ms)", title="Time of a step", ylim=(0, 1.05 * clock.get_ylim()[1]))

    for axis in axes[:3]:
        axis.set(xlabel="training step")
        mark(axis, [run["router_released_step"] for run in runs], "router released", dict(color="0.6", lw=0.8))
        mark(axis, [run["transition_step"] for run in runs], "transition", dict(color="0.85", lw=4))
    for axis in axes:
        axis.legend(fontsize=7, frameon=False)
        axis.grid(alpha=0.2)
    figure.suptitle(f"{result['config']['model']}, {runs[0]['length']} events, {seeds(runs)}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _densities(axis, by_seed: list[dict]) -> None:
    """Of q over the queries of all seeds together, at three moments."""
    names = ("early", "at the transition or half-way", "last")
    for i, (name, style, shade) in enumerate(zip(names, (":", "--", "-"), ("0.55", "0.35", "0"), strict=True)):
        counts_Q = np.sum([found["bins"][i] for found in by_seed], axis=0)
        bins, steps = len(counts_Q), sorted(found["step"][i] for found in by_seed)
        when = f"step {steps[0]}" if steps[0] == steps[-1] else f"steps {steps[0]} to {steps[-1]}"
        density = counts_Q / max(counts_Q.sum(), 1) * bins
        axis.stairs(density, np.linspace(0, 1, bins + 1), color=shade, ls=style, lw=1.6, label=f"{name}, {when}")
    axis.set(xlabel="quality q of recall for a query", ylabel="density", xlim=(0, 1), ylim=(0, None))
    axis.set(title="Quality of recall, queries of all seeds")
