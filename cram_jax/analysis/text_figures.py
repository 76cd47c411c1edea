"""The figures of runs on text; greyscale-safe: every curve has its own line style, every bar its own shade."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from cram_jax.analysis.figures import band, mark, seeds
from cram_jax.analysis.ngram import ORDERS

GRAMS = (":", "-.", "--")  # a line style each, by order


def text_figure(result: dict, path: Path, kinds: dict[str, str]) -> None:
    """Bits per byte beside the n-grams', and, where a router decides, attention over steps and by kind of byte.

    Args:
      result: by seed `runs` and perhaps `curves`, and their `mean`, as experiments/collect.py makes them. Without
        curves, bits are shown at the end, and no attention over steps.
      kinds: of bytes, by their name in the summary (`attention_NAME`), as a person calls them.
    """
    mean, over_steps = result["mean"], "curves" in result
    routes = "attention_tokens" in mean
    panels = [_bits if over_steps else _bits_at_the_end]
    panels += [_attention] * (routes and over_steps)
    panels += [lambda axis, result: _kinds(axis, result["mean"], kinds)] * routes
    figure, axes = plt.subplots(1, len(panels), figsize=(4.7 * len(panels), 4), constrained_layout=True, squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        panel(axis, result)
    run = result["runs"][0]
    text = f"{result['config']['model']}, {run['length']} bytes of {run['text_megabytes']:.0f} MB of text at a time"
    figure.suptitle(f"{text}, {seeds(result['runs'])}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _bits(axis, result: dict) -> None:
    curves = result["curves"]
    band(axis, curves, "held_out/bits_per_byte", "the network", dict(color="k", ls="-"), scale=1.0)
    marks = [result["mean"][f"bits_per_byte_{n}_gram"] for n in ORDERS]
    for n, value, style in zip(ORDERS, marks, GRAMS, strict=True):
        axis.axhline(value, color="0.45", ls=style, label=f"{n}-gram, {value:.2f}")
    low = min(*marks, *(min(curve["held_out/bits_per_byte"]) for curve in curves))
    axis.set(xlabel="training step", ylabel="bits per byte", title="Held-out files", ylim=(low - 0.3, max(marks) + 0.4))
    axis.legend(fontsize=8, frameon=False)
    axis.grid(alpha=0.2)


def _bits_at_the_end(axis, result: dict) -> None:
    mean = result["mean"]
    bits = {"the network": mean["bits_per_byte"]} | {f"{n}-gram": mean[f"bits_per_byte_{n}_gram"] for n in ORDERS}
    ranked = sorted(bits, key=bits.get)
    shades = ["k" if name == "the network" else "0.8" for name in ranked]
    bars = axis.barh(ranked, [bits[name] for name in ranked], color=shades, edgecolor="k")
    axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axis.set(xlabel="bits per byte", title="Held-out files, at the end", xlim=(0, 1.15 * max(bits.values())))


def _attention(axis, result: dict) -> None:
    curves = result["curves"]
    band(axis, curves, "held_out/attention_tokens", "bytes that attend", dict(color="k", ls="-"))
    band(axis, curves, "held_out/attention_utilisation", "(byte, layer) pairs", dict(color="0.45", ls="--"))
    released = [run["router_released_step"] for run in result["runs"]]
    mark(axis, released, "router released", dict(color="0.8", lw=3))
    axis.set(xlabel="training step", ylabel="attention (%)", title="Attention", ylim=(-3, 103))
    axis.legend(fontsize=8, frameon=False)
    axis.grid(alpha=0.2)


def _kinds(axis, mean: dict, kinds: dict[str, str]) -> None:
    shares = {name: 100 * mean[f"attention_{kind}"] for kind, name in kinds.items() if f"attention_{kind}" in mean}
    shown = sorted(shares, key=shares.get)
    bars = axis.barh(shown, [shares[name] for name in shown], color="0.6", edgecolor="k")
    axis.bar_label(bars, fmt="%.2f%%", padding=3, fontsize=8, bbox=dict(fc="w", ec="none", pad=0.5))
    everything = 100 * mean["attention_tokens"]
    axis.axvline(everything, color="k", ls=":", label=f"all bytes, {everything:.1f}%")
    room = 1.2 * max(shares.values()) + 1  # for the bars' labels
    axis.set(xlabel="bytes that attend at the end (%)", title="Having read what", xlim=(0, room))
    axis.legend(fontsize=8, frameon=False, loc="lower right")


def comparison(result: dict, path: Path) -> None:
    """Bits per byte of several models over their training, a line a seed, beside the n-grams'.

    Args:
      result: `models`, by name `bits_per_byte` and `runs`, summaries with a `curve`, as experiments/language.py makes
        them.
    """
    models = result["models"]
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
    for n, value in marks.items():
        axis.axhline(value, color="0.8", lw=3, zorder=0)
        axis.annotate(
            f"{n}-gram, {value:.2f}", (0.99, value), xycoords=("axes fraction", "data"), ha="right", va="bottom"
        )
    low = min(model["bits_per_byte"] for model in models.values())
    title = f"Held-out files, {run['length']} bytes at a time; seeds a model: {len(ranked[0][1]['runs'])}"
    axis.set(xlabel="training step", ylabel="bits per byte", title=title, ylim=(low - 0.2, low + 2.4))
    axis.legend(fontsize=8, frameon=False)
    axis.grid(alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
