"""The figure of a run on text; greyscale-safe: every curve has its own line style, every bar its own shade."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from cram_jax.analysis.ngram import ORDERS

GRAMS = (":", "-.", "--")  # a line style each, by order


def text_figure(lines: list[dict], summary: dict, kinds: dict[str, str], path: Path) -> None:
    """Bits per byte beside the n-grams', and, where a router decides, attention over steps and by kind of byte.

    Args:
      kinds: of bytes, by their name in the summary (`attention_NAME`), as a person calls them.
    """
    routes = "attention_tokens" in summary
    figure, axes = plt.subplots(
        1, 3 if routes else 1, figsize=(14 if routes else 5, 4), constrained_layout=True, squeeze=False
    )
    _bits(axes[0, 0], lines, summary)
    if routes:
        _attention(axes[0, 1], lines, summary)
        _kinds(axes[0, 2], summary, kinds)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _bits(axis, lines: list[dict], summary: dict) -> None:
    steps, bits = [line["step"] for line in lines], [line["held_out/bits_per_byte"] for line in lines]
    axis.plot(steps, bits, "k-", label="the network")
    marks = [summary[f"bits_per_byte_{n}_gram"] for n in ORDERS]
    for n, mark, style in zip(ORDERS, marks, GRAMS, strict=True):
        axis.axhline(mark, color="0.45", ls=style, label=f"{n}-gram, {mark:.2f}")
    low = min(*bits, *marks)
    axis.set(xlabel="training step", ylabel="bits per byte", title="Held-out files", ylim=(low - 0.3, max(marks) + 0.4))
    axis.legend(fontsize=8, frameon=False)
    axis.grid(alpha=0.2)


def _attention(axis, lines: list[dict], summary: dict) -> None:
    steps = [line["step"] for line in lines]
    percent = lambda name: [100 * line[f"held_out/{name}"] for line in lines]
    axis.plot(steps, percent("attention_tokens"), "k-", label="bytes that attend")
    axis.plot(steps, percent("attention_utilisation"), color="0.45", ls="--", label="(byte, layer) pairs")
    if summary["router_released_step"] is not None:
        step = summary["router_released_step"]
        axis.axvline(step, color="0.8", lw=3, zorder=0, label=f"router released, by step {step}")
    axis.set(xlabel="training step", ylabel="attention (%)", title="Attention", ylim=(-3, 103))
    axis.legend(fontsize=8, frameon=False)
    axis.grid(alpha=0.2)


def _kinds(axis, summary: dict, kinds: dict[str, str]) -> None:
    shares = {name: 100 * summary[f"attention_{kind}"] for kind, name in kinds.items()}
    shown = sorted((name for name in shares if np.isfinite(shares[name])), key=shares.get)
    bars = axis.barh(shown, [shares[name] for name in shown], color="0.6", edgecolor="k")
    axis.bar_label(bars, fmt="%.1f%%", padding=3, fontsize=8)
    axis.axvline(100 * summary["attention_tokens"], color="k", ls=":", label="all bytes")
    room = 1.2 * max(shares[name] for name in shown) + 1  # for the bars' labels
    axis.set(xlabel="bytes that attend at the end (%)", title="Having read what", xlim=(0, room))
    axis.legend(fontsize=8, frameon=False, loc="lower right")


def comparison(models: dict, path: Path) -> None:
    """Bits per byte of several models over their training, a line a seed, beside the n-grams'.

    Args:
      models: by name `bits_per_byte` and `runs`, summaries with a `curve`, as experiments/language.py makes them.
    """
    figure, axis = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    ranked = sorted(models.items(), key=lambda item: item[1]["bits_per_byte"])
    shades = ["0.0", "0.35", "0.55", "0.7"]
    for i, (name, model) in enumerate(ranked):
        for seed, curve in enumerate(run["curve"] for run in model["runs"]):
            axis.plot(
                curve["step"], curve["held_out/bits_per_byte"], color=shades[i % 4], ls=("-", "--", "-.", ":")[i % 4],
                label=None if seed else f"{name}, {model['bits_per_byte']:.3f}",
            )  # fmt: skip
    run = ranked[0][1]["runs"][0]
    marks = {n: run[f"bits_per_byte_{n}_gram"] for n in ORDERS[1:]}
    for n, mark in marks.items():
        axis.axhline(mark, color="0.8", lw=3, zorder=0)
        axis.annotate(f"{n}-gram, {mark:.2f}", (0.99, mark), xycoords=("axes fraction", "data"), ha="right")
    low = min(model["bits_per_byte"] for model in models.values())
    axis.set(xlabel="training step", ylabel="bits per byte", title="Held-out files", ylim=(low - 0.2, low + 2.4))
    axis.legend(fontsize=8, frameon=False)
    axis.grid(alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
