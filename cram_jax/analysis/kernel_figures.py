"""Figures of the kernels' benchmark, from its committed JSON."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

STYLES = {"random": ("k", "o"), "clustered": ("0.5", "s")}


def draw(folder: Path) -> list[Path]:
    """A PNG for each part that was measured, beside its JSON; returns their paths."""
    drawn = []
    for name, figure in (("attention", attention), ("stream", stream)):
        if (folder / f"{name}.json").exists():
            drawn.append(folder / f"{name}.png")
            figure(json.loads((folder / f"{name}.json").read_text()), drawn[-1])
    return drawn


def attention(result: dict, path: Path) -> None:
    """Time against utilisation: measured, in proportion to full use, and of dense attention."""
    times = result["times"]
    figure, axes = plt.subplots(1, len(times), figsize=(4.2 * len(times), 3.6), squeeze=False)
    for axis, (title, rows) in zip(axes[0], times.items(), strict=True):
        for pattern, (colour, marker) in STYLES.items():
            points = sorted((float(n.split()[1]), t) for n, t in rows.items() if n.startswith(pattern))
            points = [(share, t) for share, t in points if share > 0]
            share, ms = np.array([s for s, _ in points]), np.array([t["ms"] for _, t in points])
            spread = [ms - [t["low"] for _, t in points], [t["high"] for _, t in points] - ms]
            axis.errorbar(
                100 * share, ms, yerr=np.abs(spread), color=colour, marker=marker, label=f"skipping, {pattern}"
            )
        axis.plot(100 * share, ms[-1] * share, color="0.7", linestyle=":", label="in proportion to full use")
        for name, line in (("naive", "--"), ("jax.nn", "-.")):
            axis.axhline(rows[name]["ms"], color="k", linestyle=line, linewidth=0.8, label=f"dense, {name}")
        nothing = min((t["ms"] for n, t in rows.items() if n.endswith(" 0.0000")), default=None)
        if nothing is not None:
            axis.axhline(nothing, color="0.7", linewidth=0.8, label="nothing routed")
        way, length = title.split()
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="queries routed, %",
            ylabel="ms",
            title=f"{way.replace('_', ' + ')}, T {length}",
        )
    axes[0][0].legend(fontsize=7)
    figure.suptitle(f"4 heads of 64, float32, {result['cpu']}, jax {result['jax']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def stream(result: dict, path: Path) -> None:
    """Time a token against context."""
    rows = {n: t for n, t in result["times"].items() if n.startswith("batch")}
    batches = sorted({int(n.split()[1]) for n in rows})
    figure, axes = plt.subplots(1, len(batches), figsize=(4.2 * len(batches), 3.4), squeeze=False)
    for axis, batch in zip(axes[0], batches, strict=True):
        points = sorted((int(n.split()[3]), t) for n, t in rows.items() if int(n.split()[1]) == batch)
        for name, marker in (("cram", "o"), ("dense", "s")):
            label = f"CRAM, 1.6% attend, M {result['times']['memory']}" if name == "cram" else "dense, full cache"
            colour = "k" if name == "cram" else "0.5"
            axis.plot(
                [c for c, _ in points], [t[name]["ms"] for _, t in points], color=colour, marker=marker, label=label
            )
        axis.set(xscale="log", yscale="log", xlabel="context, tokens", ylabel="ms a token", title=f"batch {batch}")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
