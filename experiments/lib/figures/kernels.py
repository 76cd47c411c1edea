"""The kernels' benchmarks."""

import numpy as np
from matplotlib.figure import Figure

from lib.figures import style

PATTERNS = {"random": style.SERIES[0], "clustered": style.SERIES[1]}
DENSE = {"naive": {"color": style.BLACK, "ls": "--"}, "jax_nn": {"color": style.RED, "ls": "-."}}
SPELLED = {"naive": "dense, plain", "jax_nn": "dense, jax.nn"}


def _made(result: dict, what: str) -> str:
    """What was measured, on which machine."""
    made = result["made_by"]
    return f"{what}; {' and '.join(made['machines'])}, jax {made['versions']['jax']}"


@style.drawer()
def attention(result: dict) -> Figure:
    """Time against utilisation: measured (whiskers: quartiles), in proportion to full use, and of dense attention.

    Args:
      result: whose `data` has times by WAY_LENGTH and by PATTERN_SHARE.
    """
    figure, axes = style.panels(2, 2, 5.6)
    for axis, (title, times) in zip(axes.flat, result["data"].items(), strict=True):
        for pattern, line in PATTERNS.items():
            points = [t for n, t in times.items() if n.startswith(pattern) and t["share"] > 0]
            share, ms = np.array([t["share"] for t in points]), np.array([t["ms"] for t in points])
            spread = [ms - [t["low"] for t in points], [t["high"] for t in points] - ms]
            axis.errorbar(100 * share, ms, yerr=np.abs(spread), label=f"skipping, {pattern} queries", **line)
        proportional = {"color": style.GREY, "ls": ":", "label": "in proportion to the share of queries"}
        axis.plot(100 * share, ms[-1] * share, **proportional)
        for name, line in DENSE.items():
            axis.axhline(times["dense"][name]["ms"], lw=1.0, label=SPELLED[name], **line)
        axis.axhline(times["random_0"]["ms"], color=style.GREY, lw=0.8, label="skipping, no queries")
        way, length = title.rsplit("_", 1)
        axis.set(xlim=(0.3, 130), yscale="log", title=f"{way.replace('_', ' + ')}, {length} tokens")
        axis.set(xlabel="queries routed to attention (%)", ylabel="time (ms)")
        style.percent_ticks(axis, "x")
    style.under_all(figure, ncols=3)
    style.headline(figure, result, _made(result, "4 heads of 64, float32; whiskers: quartiles"))
    return figure


@style.drawer()
def memory(result: dict) -> Figure:
    """Memory against length, beside lines in proportion to the length and to its square.

    Args:
      result: whose `data` has megabytes by WAY_LENGTH and by implementation.
    """
    figure, axes = style.panels(1, 2, 3.2)
    for axis, way in zip(axes.flat, ("forward", "forward_backward"), strict=True):
        rows = {int(n.rsplit("_", 1)[1]): used for n, used in result["data"].items() if n.rsplit("_", 1)[0] == way}
        lengths = np.array(sorted(rows))
        for name, power, ls in (("naive", 2, "--"), ("skipping", 1, ":")):
            label = "in proportion to " + ("the length" if power == 1 else "its square")
            start = rows[lengths[0]][name]
            axis.plot(lengths, start * (lengths / lengths[0]) ** power, color=style.GREY, ls=ls, lw=0.9, label=label)
        for name, label, line in (  # the dense ones need the same: hollow marks of two sizes show both
            ("skipping", "skipping", style.SERIES[0]),
            ("naive", SPELLED["naive"], {"color": style.BLACK, "ls": "", "marker": "s", "mfc": "none", "ms": 9}),
            ("jax_nn", SPELLED["jax_nn"], {"color": style.RED, "ls": "", "marker": "^", "mfc": "none", "ms": 4}),
        ):
            axis.plot(lengths, [rows[T][name] for T in lengths], label=label, **line)
        axis.set(xscale="log", yscale="log", xlabel="sequence length (tokens)", ylabel="memory for intermediates (MB)")
        axis.minorticks_off()
        axis.set_xticks(lengths, map(str, lengths))
        axis.set(title=way.replace("_", " + "))
    style.under_all(figure, ncols=3)
    style.headline(figure, result, _made(result, "4 heads of 64, float32; from the compiler"))
    return figure


@style.drawer()
def stream(result: dict) -> Figure:
    """Time of a token against context (whiskers: quartiles).

    Args:
      result: whose `data` has times by batch_BATCH_context_CONTEXT and by model, and `memory`, the buffer's size.
    """
    rows = {n: t for n, t in result["data"].items() if n.startswith("batch")}
    batches = sorted({int(n.split("_")[1]) for n in rows})
    figure, axes = style.panels(1, len(batches), 3.0)
    labels = {"cram": f"CRAM: 1.6% attend, buffer of {result['data']['memory']}", "dense": "dense, full cache"}
    for axis, batch in zip(axes.flat, batches, strict=True):
        points = sorted((int(n.split("_")[3]), t) for n, t in rows.items() if int(n.split("_")[1]) == batch)
        contexts = [c for c, _ in points]
        for name, line in zip(labels, style.SERIES, strict=False):
            ms, low, high = (np.array([t[name][of] for _, t in points]) for of in ("ms", "low", "high"))
            axis.errorbar(contexts, ms, yerr=[ms - low, high - ms], label=labels[name], **line)
        axis.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="time of a token (ms)")
        axis.minorticks_off()
        axis.set_xticks(contexts, [f"{c:,}" for c in contexts])
        axis.set(title=f"batch of {batch}")
    style.under_all(figure)
    style.headline(figure, result, _made(result, "two layers, float32; whiskers: quartiles"))
    return figure


@style.drawer()
def gpu(result: dict) -> Figure:
    """Time against utilisation on a GPU: of a skipped read, of its kernel alone, and of cuDNN's dense attention.

    Args:
      result: whose `data` has times by times_LENGTH, way and IMPLEMENTATION_SHARE.
    """
    parts = {name: part for name, part in result["data"].items() if name.startswith("times_")}
    panels = [(int(name.split("_")[1]), way, part[way]) for name, part in parts.items() for way in part]
    figure, axes = style.panels(len(parts), len(panels) // len(parts), 2.7 * len(parts))
    kernel = {"color": style.ORANGE, "ls": "", "marker": "s", "label": "skipping, its kernel alone"}
    for axis, (length, way, times) in zip(axes.flat, panels, strict=True):
        for series, line in (("gpu", style.SERIES[0] | {"label": "skipping, all of it"}), ("kernel", kernel)):
            points = [(float(name.split("_")[1]) / 10, t["ms"]) for name, t in times.items() if series in name]
            axis.plot(*zip(*[point for point in sorted(points) if point[0]], strict=True), **line)
        axis.axhline(times["dense"]["ms"], color=style.BLACK, ls="--", lw=1.0, label="dense, cuDNN")
        axis.axhline(times["gpu_0"]["ms"], color=style.GREY, lw=0.8, label="skipping, no queries")
        axis.set(xlim=(1.3, 120), ylim=(0, None), xlabel="queries routed to attention (%)", ylabel="time (ms)")
        style.percent_ticks(axis, "x")
        axis.set(title=f"{way.replace('_', ' + ')}, {length} tokens")
    style.under_all(figure)
    style.headline(figure, result, _made(result, "16,384 tokens in all, 16 heads of 64, bfloat16"))
    return figure


BENCHMARKS = {"attention": attention, "memory": memory, "stream": stream, "gpu": gpu}  # by what is measured
