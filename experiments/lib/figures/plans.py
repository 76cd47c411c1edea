"""What a training step takes on chips that are not here, over their number: weak scaling on paper."""

from matplotlib.figure import Figure

from lib.figures import style

TIMES = {
    "computed": "to compute",
    "read_and_written": "to read and write",
    "sent": "to send",
}
STEP = "a step, from full\noverlap to none"
ASSUMED = (
    "Nothing was timed. Counted in the compiled program, loops as often as they run, at the full rates that the maker "
    "states. All chips divide all parameters. An all-reduce of n bytes sends 2n from each chip, an all-gather n. Of "
    "several branches the dearest counts. Not counted: what attention kernels compute, waiting, and hops between chips."
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
    several = {kind: plans for kind, plans in kinds.items() if len(plans) > 1}
    figure, axes = style.panels(1, 1 + len(several), 3.9)
    first, *others = axes.flat
    for (kind, plans), line in zip(kinds.items(), style.SERIES, strict=False):
        alone = {"mfc": "none", "ms": 8, "ls": ""} if len(plans) == 1 else {}  # does not hide the others' points
        gigabytes = [one["sends"] / 1e9 for one in plans]
        first.plot([one["chips"] for one in plans], gigabytes, label=f"TPU {kind}", **line | alone)
    first.set(ylabel="sent by a chip (GB a step)", title="what is sent")
    for axis, (kind, plans) in zip(others, several.items(), strict=True):
        chips, ms_of = [one["chips"] for one in plans], {}
        for (name, said), line in zip(TIMES.items(), style.SERIES, strict=False):
            ms_of[name] = [1e3 * one["least_seconds"][name] for one in plans]
            axis.plot(chips, ms_of[name], label=said, **line)
        each = list(zip(*ms_of.values(), strict=True))
        axis.fill_between(chips, list(map(max, each)), list(map(sum, each)), color="0.9", lw=0, label=STEP)
        axis.set(ylabel="least time of a step (ms)", title=f"TPU {kind}")
    top = max((axis.get_ylim()[1] for axis in others), default=1)
    chips = sorted({one["chips"] for plans in kinds.values() for one in plans})
    for axis in axes.flat:
        axis.set(xscale="log", xlabel="chips", ylim=(0, 1.15 * axis.get_ylim()[1] if axis is first else top))
        axis.set_xticks(chips, [str(number) for number in chips])
        axis.minorticks_off()
    for axis in axes.flat[:2]:  # the others show what the second does
        style.below(axis)
    one = next(iter(result["data"].values()))
    rows, length = one["rows"], one["tokens"] // (one["rows"] * one["chips"])
    sequences = f"{rows} sequence{'s' * (rows > 1)} of {length} tokens on each chip"
    about = f"{style.spelled(result['config']['model'])}, {one['parameters'] / 1e9:.2f} billion parameters; {sequences}"
    style.headline(figure, result, about, ASSUMED)
    return figure
