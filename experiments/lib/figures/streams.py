"""Deployment in fresh streams: attention, answers and exposures; and what a change of answers does."""

import itertools

import numpy as np
from matplotlib.figure import Figure

from lib.figures import style
from lib.figures.training import band

MARKS = {"ms": 3, "lw": 1.1}
LINES = {
    label: line | MARKS
    for label, line in {
        "memory learns": style.SERIES[0],
        "memory fixed": style.SERIES[1],
        "no consolidation": style.SERIES[2],
        "routed by chance": style.SERIES[3],
        "gradient adapter": style.SERIES[4],
        "seqboat": style.SERIES[5],
        "mamba2, carried": style.SERIES[6],
        "palimpsa, carried": style.SERIES[6] | {"ls": "-", "marker": "p", "mfc": "white"},
        "transformer": {"color": style.GREY, "ls": "-", "marker": "*"},
    }.items()
}
BLOCK = 10  # visits
LONG = 400  # visits from which on the fall is drawn over their logarithm
POINTS = 25  # most marks on a curve over visits
LEAST = 50  # queries of a point in the panel of exposures
RARE = 1e-3  # chances below are drawn on a linear scale
BINDINGS = ((1, 2), (2, 3), (3, 5), (5, 9), (9, 17), (17, 32))  # from, and up to but without, of each point


@style.drawer()
def draw(result: dict) -> Figure:
    """Median and range of all seeds over visits; and all seeds together over how often a pattern was asked for.

    What never attends has no place on the logarithmic axis of attention.

    Args:
      result: with entries whose curves have a row for each block of visits. The first is the model, whose least is
        that of all.
    """
    figure, axes = style.panels(2, 2, 5.6)
    attention, exposure, recurring, new = axes.flat
    for (label, found), series in zip(result["entries"].items(), itertools.cycle(style.SERIES)):
        curves, line = _middles(found, BLOCK), LINES.get(label, series | MARKS)
        thin = line | {"markevery": _few(curves)}
        called = style.spelled(label)
        if extra := found["mean"].get("consolidation_tokens"):
            called += f"\n(and {style.percent(extra)} to consolidate)"
        if any(share for curve in curves for share in curve["attention_tokens"]):
            band(attention, curves, "attention_tokens", called, thin)
        for axis, name in ((recurring, "retrieval_accuracy_recurring"), (new, "retrieval_accuracy_new")):
            band(axis, curves, name, called, line | {"markevery": _few(curves, log=False)})
        total = lambda name, found=found: np.sum([run[name] for run in found["exposures"]], axis=0)
        asked, attended = total("count"), total("episodic")
        if np.any(some := asked >= LEAST):
            exposure.plot(np.arange(len(asked))[some] + 1, attended[some] / asked[some], **line)
    first = next(iter(result["entries"].values()))
    learns = _middles(first, BLOCK)
    least = {"color": style.BLACK, "ls": "--", "lw": 0.9}
    band(attention, learns, "least", "first queries", least)
    band(attention, learns, "queries", "all queries", {"color": style.BLACK, "ls": ":", "lw": 1.2, "zorder": 5})
    attention.set(xlabel="visit of a fresh stream", ylabel="tokens that attend (%)")
    shares = [share for curve in learns for share in (*curve["attention_tokens"], *curve["least"]) if share]
    attention.set_ylim(70 * min(shares, default=0.01), 120)
    style.percent_ticks(attention)
    recurring.set(xlabel="visit of a fresh stream", ylabel="queries of patterns\nanswered right (%)")
    new.set(xlabel="visit of a fresh stream", ylabel="queries of new bindings\nanswered right (%)")
    exposure.set(xlabel="earlier queries of the pattern, plus 1", ylabel="chance that a query attends")
    if learns[0]["step"][-1] > LONG:
        attention.set_xscale("log")
    if exposure.lines:
        exposure.set(xscale="log", ylim=(0, 1.5))
        exposure.set_yscale("symlog", linthresh=RARE, linscale=0.3)  # so that 0 has a place, too
    style.under_all(figure, ncols=3)
    length = first.get("deployed", {}).get("run.length")
    style.headline(figure, result, _about(result["config"], len(learns), length))
    return figure


@style.drawer()
def change(result: dict) -> Figure:
    """Attention around the change, and right answers about changed patterns over visits and over bindings.

    Args:
      result: of `streams_change.py`.
    """
    figure, axes = style.panels(1, 3, 3.2)
    attention, answers, binding = axes.flat
    config = result["config"]
    at = config["deployment"]["change"]["visit"]
    for label, found in result["entries"].items():
        first, second = found["curves"][0]["first_visit"][:2]
        curves, line = _middles(found, second - first), LINES[label]
        thin = line | {"markevery": _few(curves)}
        if any(share for curve in curves for share in curve["over_least"]):
            band(attention, curves, "over_least", style.spelled(label), thin, scale=1.0)
        band(answers, curves, "retrieval_accuracy_changed", style.spelled(label), line)
        by_binding = result["data"]["by_binding"][label]
        asked, right = (np.array([sum(by_binding[name][a:b]) for a, b in BINDINGS]) for name in ("asked", "right"))
        some = asked > 0
        binding.plot(np.arange(len(BINDINGS))[some], 100 * right[some] / asked[some], **line)
    attention.set(xlabel="visit of a fresh stream", ylabel="tokens that attend,\nover first queries", ylim=(0, None))
    style.moment(attention, at, "change")
    answers.set(xlabel="visit of a fresh stream", ylabel="queries of changed patterns\nanswered right (%)")
    binding.set(xlabel="bindings of the pattern\nsince the change", ylabel=answers.get_ylabel())
    labels = [f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in BINDINGS]
    binding.set_xticks(range(len(BINDINGS)), labels, rotation=30)
    style.under_all(figure, ncols=5)
    seeds = len(next(iter(result["entries"].values()))["curves"])
    share = f"{config['deployment']['change']['share']:.0%} of the patterns get other answers"
    style.headline(figure, result, f"{share}; {_about(config, seeds)}")
    return figure


@style.drawer()
def memory(result: dict) -> Figure:
    """What memories know of their errors, and what fades when patterns occur no more.

    Args:
      result: of `streams_memory.py`.
    """
    figure, axes = style.panels(1, 3, 3.2)
    errors, answers, free = axes.flat
    config, binned = result["config"], result["data"]["calibration"]
    retire = config["deployment"]["retire"]
    curves = [curve | {"step": curve["visit"]} for curve in next(iter(result["entries"].values()))["curves"]]
    ends = np.array([min(binned["expected"] + binned["measured"]), max(binned["expected"] + binned["measured"])])
    errors.plot(ends, ends, color=style.BLACK, ls="--", lw=0.9, label="as expected")
    errors.fill_between(ends, 0.8 * ends, 1.2 * ends, color=style.GREY, alpha=0.3, lw=0, label="within 20%")
    errors.plot(
        binned["expected"], binned["measured"], **style.SERIES[0] | MARKS | {"ls": ""}, label="a tenth of recalls"
    )
    errors.set(xscale="log", yscale="log", xlabel="expected squared error", ylabel="measured squared error")
    names = {"others": "patterns that stay", "retired": "patterns that retire", "new": "one-off bindings"}
    for (kind, label), line in zip(names.items(), style.SERIES, strict=False):
        band(answers, curves, f"answered_{kind}", label, line | MARKS | {"markevery": 5})
    band(free, curves, "free_share", "free share", style.SERIES[3] | MARKS | {"markevery": 5})
    answers.set(
        xlabel="visit of a fresh stream", ylabel="queries that semantic memory\nwould answer (%)", ylim=(-3, 105)
    )
    free.set(xlabel="visit of a fresh stream", ylabel="semantic memory that is free (%)", ylim=(0, 105))
    for axis in (answers, free):
        style.moment(axis, retire["visit"], "retire")
    style.under_all(figure, ncols=4)
    share = f"{retire['share']:.0%} of the patterns occur no more from visit {retire['visit']} on"
    style.headline(figure, result, f"{share}; {_about(config, len(curves))}")
    return figure


def _middles(found: dict, block: int) -> list[dict]:
    """The curves of an entry, over the middle of each block of visits."""
    return [{**curve, "step": [visit + block / 2 for visit in curve["first_visit"]]} for curve in found["curves"]]


def _few(curves: list[dict], log: bool = True) -> list[int]:
    """Which points of a curve have a mark: some at equal distances, or at equal ratios on a logarithmic axis."""
    count, last = len(curves[0]["step"]), curves[0]["step"][-1]
    spread = (
        np.geomspace(1, count, POINTS) - 1 if log and last > LONG else np.linspace(0, count - 1, min(POINTS, count))
    )
    return sorted({round(place) for place in spread})


def _about(config: dict, seeds: int, length: int | None = None) -> str:
    trained = config["run"]["length"]
    said = f"{length} events (trained on {trained})" if length else f"{trained} events"
    return (
        f"visits of {said}, {config['data']['srcd']['patterns']} patterns a stream; "
        f"parameters fixed, no labels; {style.seeds(seeds)}"
    )
