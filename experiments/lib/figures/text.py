"""Runs on text: bits per byte beside n-grams', and attention by kind of byte."""

from matplotlib.figure import Figure

from cram_jax.analysis.ngram import ORDERS
from cram_jax.tasks.text_task import KINDS
from lib.figures import style
from lib.figures.training import band, moments, only, over_steps


@style.drawer()
def one(result: dict) -> Figure:
    """Bits per byte beside the n-grams', and, where a router decides, attention over steps and by kind of byte.

    Args:
      result: with one entry. Where it has no curves, bits are shown at the end, and no attention over steps.
    """
    label, found = only(result)
    curves, routes = "curves" in found, "attention_tokens" in found["mean"]
    drawn = [_bits if curves else _bits_at_the_end] + [_attention] * (routes and curves) + [_kinds] * routes
    rows = -(-len(drawn) // 2)
    figure, axes = style.panels(rows, min(2, len(drawn)), 3.2 * rows)
    for axis, panel in zip(axes.flat, drawn, strict=False):
        panel(axis, found)
    for axis in axes.flat[len(drawn) :]:
        axis.remove()
    run = found["runs"][0]
    about = f"{style.spelled(label)}, {run['length']} bytes of {run['text_megabytes']:.0f} MB of text at a time"
    style.headline(figure, result, f"{about}; {style.seeds(len(found['runs']))}")
    return figure


def _bits(axis, found: dict) -> None:
    curves = found["curves"]
    band(axis, curves, "held_out/bits_per_byte", "the network", {"color": style.BLUE, "ls": "-"}, scale=1.0)
    grams = _grams(axis, found["mean"], ORDERS)
    low = min(*grams, *(min(curve["held_out/bits_per_byte"]) for curve in curves))
    axis.set(ylabel="bits per byte, held-out files", ylim=(low - 0.3, max(grams) + 0.6))
    over_steps(axis, curves)
    style.below(axis)


def _grams(axis, numbers: dict, orders) -> list[float]:
    """Lines for n-gram models; what they reach."""
    reached = [numbers[f"bits_per_byte_{n}_gram"] for n in orders]
    for n, bits in zip(orders, reached, strict=True):
        style.level(axis, bits, f"{n}-gram model: {bits:.2f}", color=style.BLACK)
    return reached


def _bits_at_the_end(axis, found: dict) -> None:
    mean = found["mean"]
    bits = {"the network": mean["bits_per_byte"]}
    bits |= {f"{n}-gram model": mean[f"bits_per_byte_{n}_gram"] for n in ORDERS}
    ranked = sorted(bits, key=bits.get)
    colors = [style.BLUE if name == "the network" else style.SKY for name in ranked]
    bars = axis.barh(ranked, [bits[name] for name in ranked], color=colors)
    axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.grid(False, axis="y")
    axis.set(xlabel="bits per byte, held-out files, at the end", xlim=(0, 1.15 * max(bits.values())))


def _attention(axis, found: dict) -> None:
    curves = found["curves"]
    band(axis, curves, "held_out/attention_tokens", "bytes that attend", {"color": style.BLUE, "ls": "-"})
    pairs = {"color": style.ORANGE, "ls": "--"}
    band(axis, curves, "held_out/attention_utilisation", "(byte, layer) pairs that attend", pairs)
    axis.set(ylabel="attention, held-out files (%)", ylim=(-3, 103))
    over_steps(axis, curves)
    moments(axis, found)
    style.below(axis)


def _kinds(axis, found: dict) -> None:
    mean = found["mean"]
    shares = {name: 100 * mean[f"attention_{kind}"] for kind, name in KINDS.items() if f"attention_{kind}" in mean}
    shown = sorted(shares, key=shares.get)
    bars = axis.barh(shown, [shares[name] for name in shown], color=style.SKY)
    for text in axis.bar_label(bars, fmt="%.2f%%", padding=3):
        style.on_white(text)
    everything = 100 * mean["attention_tokens"]
    style.moment(axis, everything, f"all bytes: {everything:.1f}%", color=style.BLACK, ls=":")
    axis.grid(False, axis="y")
    axis.set(xlabel="held-out bytes that attend at the end (%),\nby the byte that was read")
    axis.set_xlim(0, 1.25 * max(shares.values()) + 1)


@style.drawer()
def models(result: dict) -> Figure:
    """Bits per byte of several models over their training, a line a seed, and at the end, beside the n-grams'.

    Args:
      result: with an entry a model, each with `curves`.
    """
    figure, axes = style.panels(1, 2, 3.6, width_ratios=(3, 2))
    left, right = axes.flat
    ranked = sorted(result["entries"].items(), key=lambda item: item[1]["mean"]["bits_per_byte"])
    for i, ((label, found), line) in enumerate(zip(ranked, style.SERIES, strict=False)):
        for seed, curve in enumerate(found["curves"]):
            named = None if seed else style.spelled(label)
            left.plot(curve["step"], curve["held_out/bits_per_byte"], label=named, **line | {"ms": 3})
        bits = [run["bits_per_byte"] for run in found["runs"]]
        right.plot(bits, [i] * len(bits), line["marker"], color=line["color"])
        mean = found["mean"]["bits_per_byte"]
        right.annotate(f"{mean:.3f}", (max(bits), i), (6, 0), textcoords="offset points", va="center")
    low, run = ranked[0][1]["mean"]["bits_per_byte"], ranked[0][1]["runs"][0]
    _grams(left, run, ORDERS[1:])
    left.set(ylabel="bits per byte, held-out files", ylim=(low - 0.2, low + 2.4))
    over_steps(left, ranked[0][1]["curves"])
    style.below(left, ncols=2)
    right.set_yticks(range(len(ranked)), [style.spelled(label) for label, _ in ranked])
    right.set(xlabel="bits per byte, held-out files, at the end", ylim=(len(ranked) - 0.5, -0.5))
    right.margins(x=0.3)
    number = len(ranked[0][1]["runs"])
    about = f"{run['length']} bytes at a time; {'1 seed' if number == 1 else f'{number} seeds'} a model"
    style.headline(figure, result, about)
    return figure
