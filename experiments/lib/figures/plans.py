"""What a training step takes on chips that are not here, over their number: weak scaling on paper."""

from matplotlib.figure import Figure

from lib.figures import style

TIMES = {
    "computed": "to compute",
    "read_and_written": "to read and write",
    "sent": "to send",
}
ASSUMED = (
    "Nothing was timed. Counted in the compiled program, loops as often as they run, at the full rates that the maker "
    "states. All chips divide all parameters. An all-reduce of n bytes sends 2n from each chip, an all-gather n. Of "
    "several branches the dearest counts. Not counted: what attention kernels compute, waiting, and distances."
)


@style.drawer()
def draw(result: dict) -> Figure:
    """A panel of bytes that a chip sends in a step, and one of least times for each kind of chip with several points.

    Args:
      result: whose `data` has plans by topology, as experiments/plan_run.py writes them.
    """
    kinds = {}
    for topology, found in sorted(result["data"].items(), key=lambda one: one[1]["chips"]):
        kinds.setdefault(topology.partition(":")[0], []).append(found)
    several = {kind: found for kind, found in kinds.items() if len(found) > 1}
    figure, axes = style.panels(1, 1 + len(several), 3.5)
    first, *others = axes.flat
    for (kind, plans), line in zip(kinds.items(), style.SERIES, strict=False):
        first.plot([one["chips"] for one in plans], [one["sends"] / 1e9 for one in plans], label=kind, **line)
    first.set(ylabel="sent by a chip in a step (GB)", title="what is sent")
    for axis, (kind, plans) in zip(others, several.items(), strict=True):
        for (name, said), line in zip(TIMES.items(), style.SERIES, strict=False):
            ms = [1e3 * one["least_seconds"][name] for one in plans]
            axis.plot([one["chips"] for one in plans], ms, label=said, **line)
        axis.set(ylabel="least time of a step (ms)", title=kind)
    top = 1.1 * max(axis.get_ylim()[1] for axis in others) if others else 1
    chips = sorted({one["chips"] for plans in kinds.values() for one in plans})
    for axis in axes.flat:
        axis.set(xscale="log", xlabel="chips", ylim=(0, top if axis is not first else 1.1 * first.get_ylim()[1]))
        axis.set_xticks(chips, [str(number) for number in chips])
        axis.minorticks_off()
        style.below(axis)
    one = next(iter(result["data"].values()))
    rows, length = one["rows"], one["tokens"] // (one["rows"] * one["chips"])
    sequences = f"{rows} sequence{'s' * (rows > 1)} of {length} tokens on each chip"
    about = f"{style.spelled(result['config']['model'])}, {one['parameters'] / 1e9:.2f} billion parameters; {sequences}"
    style.headline(figure, result, about, ASSUMED)
    return figure
