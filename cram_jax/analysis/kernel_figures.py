"""Figures of the kernels' benchmark, from its committed JSON."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

STYLES = {"random": ("k", "o"), "clustered": ("0.5", "s")}


def attention(result: dict, path: Path) -> None:
    """Time against utilisation: measured, in proportion to full use, and of dense attention."""
    runs = result["result"]
    figure, axes = plt.subplots(1, len(runs), figsize=(4.2 * len(runs), 3.8), squeeze=False, layout="constrained")
    for axis, (title, times) in zip(axes[0], runs.items(), strict=True):
        for pattern, (colour, marker) in STYLES.items():
            points = [t for n, t in times.items() if n.startswith(pattern) and t["share"] > 0]
            share, ms = np.array([t["share"] for t in points]), np.array([t["ms"] for t in points])
            spread = [ms - [t["low"] for t in points], [t["high"] for t in points] - ms]
            axis.errorbar(
                100 * share, ms, yerr=np.abs(spread), color=colour, marker=marker, label=f"skipping, {pattern}"
            )
        axis.plot(100 * share, ms[-1] * share, color="0.7", linestyle=":", label="in proportion to full use")
        for name, line in (("naive", "--"), ("jax_nn", "-.")):
            axis.axhline(times["dense"][name]["ms"], color="k", linestyle=line, linewidth=0.8, label=f"dense, {name}")
        axis.axhline(times["random_0"]["ms"], color="0.7", linewidth=0.8, label="nothing routed")
        way, length = title.rsplit("_", 1)
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="queries routed (%)",
            ylabel="time (ms)",
            title=f"{way.replace('_', ' + ')}, {length} tokens",
        )
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=8, ncols=6, loc="outside lower center")
    figure.suptitle(f"4 heads of 64, float32, {result['cpu']}, jax {result['jax']}", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def memory(result: dict, path: Path) -> None:
    """Working memory against length, with lines in proportion to T and to T squared."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
    for axis, way in zip(axes, ("forward", "forward_backward"), strict=True):
        rows = {int(n.rsplit("_", 1)[1]): used for n, used in result["result"].items() if n.rsplit("_", 1)[0] == way}
        lengths = np.array(sorted(rows))
        for name, label, style in (
            ("skipping", "skipping", "ko-"),
            ("naive", "dense, naive", "ks--"),
            ("jax_nn", "dense, jax_nn", "k^-."),
        ):
            # The dense ones need the same: hollow marks of two sizes show both.
            hollow = {} if name == "skipping" else {"mfc": "none", "ms": 11 if name == "naive" else 5}
            axis.plot(lengths, [rows[T][name] for T in lengths], style, label=label, **hollow)
        for name, power, label in (("naive", 2, "in proportion to T and its square"), ("skipping", 1, None)):
            start = rows[lengths[0]][name]
            axis.plot(lengths, start * (lengths / lengths[0]) ** power, color="0.6", linestyle=":", label=label)
        axis.set(xscale="log", yscale="log", xlabel="tokens T", ylabel="working memory (MB)")
        axis.minorticks_off()
        axis.set_xticks(lengths, map(str, lengths))
        axis.set(title=way.replace("_", " + "))
        axis.legend(fontsize=8)
    figure.suptitle(
        f"4 heads of 64, float32, compiled for {result['device'].split()[0]}, jax {result['jax']}", fontsize=9
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def stream(result: dict, path: Path) -> None:
    """Time a token against context."""
    rows = {n: t for n, t in result["result"].items() if n.startswith("batch")}
    batches = sorted({int(n.split("_")[1]) for n in rows})
    figure, axes = plt.subplots(1, len(batches), figsize=(4.2 * len(batches), 3.6), squeeze=False, layout="constrained")
    for axis, batch in zip(axes[0], batches, strict=True):
        points = sorted((int(n.split("_")[3]), t) for n, t in rows.items() if int(n.split("_")[1]) == batch)
        for name, marker in (("cram", "o"), ("dense", "s")):
            label = f"CRAM, 1.6% attend, M {result['result']['memory']}" if name == "cram" else "dense, full cache"
            colour = "k" if name == "cram" else "0.5"
            axis.plot(
                [c for c, _ in points], [t[name]["ms"] for _, t in points], color=colour, marker=marker, label=label
            )
        axis.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="time (ms a token)")
        axis.minorticks_off()
        axis.set_xticks([c for c, _ in points], [str(c) for c, _ in points])
        axis.set(title=f"batch {batch}")
        axis.legend(fontsize=8)
    figure.suptitle(f"{result['cpu']}, jax {result['jax']}", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def gpu(result: dict, path: Path) -> None:
    """Time against utilisation on a GPU: of a skipped read, of its kernel alone, and of cuDNN's dense attention."""
    parts = {name: part for name, part in result["result"].items() if name.startswith("times_")}
    panels = [(int(name.split("_")[1]), way, part[way]) for name, part in parts.items() for way in part]
    figure, axes = plt.subplots(len(parts), len(panels) // len(parts), figsize=(8.4, 6.4), layout="constrained")
    for axis, (length, way, times) in zip(axes.ravel(), panels, strict=True):
        for series, style, label in (("gpu", "ko-", "skipping, all of it"), ("kernel", "ks", "its kernel alone")):
            points = [(float(name.split("_")[1]) / 10, t["ms"]) for name, t in times.items() if series in name]
            shares, ms = zip(*[point for point in sorted(points) if point[0]], strict=True)
            axis.plot(shares, ms, style, mfc="k" if series == "gpu" else "none", label=label)
        axis.axhline(times["gpu_0"]["ms"], color="0.7", linewidth=0.8, label="nothing routed")
        axis.axhline(times["dense"]["ms"], color="k", linestyle="--", linewidth=0.8, label="dense, cuDNN")
        axis.set(xscale="log", ylim=(0, None), xlabel="queries routed (%)", ylabel="time (ms)")
        axis.set(title=f"{way.replace('_', ' + ')}, {length} tokens")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside lower center")
    figure.suptitle(
        f"16384 tokens in all, 16 heads of 64, bfloat16, {result['device'].split(' x')[0]}, jax {result['jax']}",
        fontsize=9,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


FIGURES = {"attention": attention, "memory": memory, "stream": stream, "gpu": gpu}  # by the part that is measured
