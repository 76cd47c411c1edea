"""One model over its training: the paper's Figure 2, and in a second figure what lies behind it."""

import functools
import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.figures import style

ACCURACY = {
    "retrieval_accuracy": ("all queries", {"color": style.BLUE, "ls": "-"}),
    "retrieval_accuracy_recurring": ("of recurring bindings", {"color": style.ORANGE, "ls": "--"}),
    "retrieval_accuracy_new": ("of new bindings", {"color": style.BLACK, "ls": ":"}),
}
FLOOR = "held_out/realised_new_share"
QUALITY = "probe/quality_query_recurring_busiest"


def only(result: dict) -> tuple[str, dict]:
    """The label and the content of a result's one entry.

    Raises:
      ValueError: where it has none or several.
    """
    entries = result["entries"]
    if len(entries) != 1:
        raise ValueError(f"one entry is drawn over its training, {result['name']} has {list(entries)}")
    return next(iter(entries.items()))


def band(
    axis, curves: list[dict], name: str, label: str, line: dict, scale: float = 100.0, steps: bool = False
) -> None:
    """`name` over steps, times `scale`: a line for the median of the seeds that have it, a band from the lowest to the
    highest. Nothing where no seed has it.

    Args:
      curves: by seed, columns of logged numbers, None where a step has none.
      steps: each number holds up to the next logged one, so that what changes at once is not drawn as a slope.
    """
    if name not in curves[0]:
        return
    values_NxT = scale * np.array([curve[name] for curve in curves], float)
    seen_T = np.any(np.isfinite(values_NxT), axis=0)
    at_T, values_NxT = np.array(curves[0]["step"])[seen_T], values_NxT[:, seen_T]
    drawn = "steps-post" if steps else "default"
    axis.plot(at_T, np.nanmedian(values_NxT, axis=0), label=label, drawstyle=drawn, **line)
    low, high = np.nanmin(values_NxT, axis=0), np.nanmax(values_NxT, axis=0)
    axis.fill_between(at_T, low, high, color=line["color"], alpha=0.2, lw=0, step="post" if steps else None)


def came(axis, found: dict, name: str, what: str, label: str | None, **how) -> None:
    """Marks when something came: a line at the median of the seeds, on a shade from the first to the last. Nothing
    where it came in no seed.

    Args:
      found: an entry of a result. name: of the step. what: the line's name above the panel. label: in the legend,
        which adds the steps; None keeps it out of there. how: more for `style.moment`.
    """
    steps = sorted(run[name] for run in found["runs"] if run.get(name) is not None)
    if not steps and len(found["runs"]) == 1 and name in found["mean"]:  # runs keep a few of their numbers only
        steps = [int(found["mean"][name])]
    if steps:
        when = f"step {steps[0]}" if steps[0] == steps[-1] else f"steps {steps[0]} to {steps[-1]}"
        style.moment(axis, float(np.median(steps)), what, label=label and f"{label}, {when}", **how)
        axis.axvspan(steps[0], steps[-1], zorder=0.1, color="0.92", lw=0)


def moments(axis, found: dict, named: bool = True) -> None:
    """Release of the router and transition, where there are some; `named` in the legend, too."""
    release, transition = ("router released", "transition") if named else (None, None)
    came(axis, found, "router_released_step", "release", release)
    came(axis, found, "transition_step", "transition", transition, ls="--", ha="left")


def _about(result: dict) -> str:
    """What was trained, and how several seeds are shown."""
    label, found = only(result)
    run = result["config"]["run"]
    model, several = style.spelled(label), style.seeds(len(found["runs"]))
    said = f"{model} on SRCD, sequences of {run['length']} events, {run['batch']} a step; {several}"
    return said[0].upper() + said[1:]


@style.drawer()
def draw(result: dict) -> Figure:
    """Share of tokens that attend, beside the least possible and a dense transformer; and queries answered right.

    Args:
      result: with one entry that has `curves`. Where the model does not route there is no panel of attention.
    """
    _, found = only(result)
    mean = found["mean"]
    routes, tokens = "attention_tokens_end" in mean, result["config"]["run"]["final_tokens"]
    figure, axes = style.panels(1, 1 + routes, 3.7)
    if routes:
        _attention(axes[0, 0], found)
    axis = axes[0, -1]
    for name, (label, line) in ACCURACY.items():
        if name in mean:  # a short run may have asked for no new binding at its end
            label = f"{label}: {style.percent(mean[name])} at the end"
        band(axis, found["curves"], f"held_out/{name}", label, line)
    axis.set(ylabel="held-out queries answered right (%)", ylim=(-2, 103))
    for axis in axes.flat:
        over_steps(axis, found["curves"])
        moments(axis, found, named=axis is axes[0, 0])
        style.below(axis)
    style.headline(figure, result, _headline(mean, tokens), _about(result))
    return figure


def over_steps(axis, curves: list[dict]) -> None:
    """The x axis of a panel over training."""
    axis.set(xlabel="training step", xlim=(0, 1.01 * curves[0]["step"][-1]))
    axis.xaxis.set_major_locator(MaxNLocator(6))


def _headline(mean: dict, tokens: int) -> str:
    """What the last evaluation found. A short run may have asked for nothing at its end."""
    said = []
    if "attention_tokens_end" in mean:
        attend, floor = style.percent(mean["attention_tokens_end"]), style.percent(mean["realised_new_share"])
        said.append(f"{attend} attend (floor: {floor})")
    if "retrieval_accuracy" in mean:
        said.append(f"{style.percent(mean['retrieval_accuracy'])} of queries are answered right")
    return f"At the end, on {tokens:,} held-out tokens, {' and '.join(said) or 'nothing is asked'}"


def _attention(axis, found: dict) -> None:
    curves, mean = found["curves"], found["mean"]
    label, line = "tokens that attend in any layer", {"color": style.BLUE, "ls": "-"}
    if "attention_tokens_peak_after_release" in mean:
        peak = style.percent(mean["attention_tokens_peak_after_release"])
        label = f"tokens that attend in any layer: 100% up to the\nrelease by design, at most {peak} after it"
    band(axis, curves, "held_out/attention_tokens", label, line, steps=True)
    style.level(axis, 100, "dense transformer: 100%", color=style.BLACK, ls="--")
    # That of the tokens on which the curve was measured, where it was logged; else that of the last evaluation.
    logged = FLOOR in curves[0]
    floor = np.median([curve[FLOOR][-1] for curve in curves]) if logged else mean["realised_new_share"]
    line = {"label": "floor: queries of new bindings", "color": style.BLACK, "ls": ":"}
    if logged:
        band(axis, curves, FLOOR, line.pop("label"), line)
    if floor:
        style.level(axis, 100 * floor, "floor", over=False, **line | {"lw": 0 if logged else 1.3})
    last, end = curves[0]["step"][-1], 100 * mean["attention_tokens_end"]
    if 0 < end < 50:
        axis.annotate("", (0.94 * last, 1.1 * end), (0.94 * last, 97), arrowprops={"arrowstyle": "->", "lw": 1.0})
        fewer = axis.annotate(f"{100 / end:.0f} times fewer\nthan all", (0.92 * last, 10 * np.sqrt(end)))
        style.on_white(fewer, ha="right", va="center", color="k")
    axis.set_ylabel("held-out tokens that attend (%)")
    _shares(axis, curves, "held_out/attention_tokens", below=0.7)


def _shares(axis, curves: list[dict], name: str, below: float) -> None:
    """A logarithmic scale of percent from `below`, or what is less than twice that; it cannot show 0."""
    seen = [share for curve in curves for share in curve[name] if share]
    axis.set_ylim(min(below, 50 * min(seen, default=1)), 150)
    style.percent_ticks(axis)


@style.drawer("details")
def details(result: dict) -> Figure:
    """(token, layer) pairs that attend, where the model routes; quality of recall over training and its density at
    three moments, where the result has them; the time of a step.

    Args:
      result: with one entry that has `curves`, and perhaps `quality`.
    """
    _, found = only(result)
    drawn = [_pairs] * ("attention_utilisation_end" in found["mean"])
    drawn += [_quality, _densities] * ("quality" in found)
    drawn += [functools.partial(_clock, machines=result["made_by"]["machines"])]
    rows = -(-len(drawn) // 2)
    figure, axes = style.panels(rows, min(2, len(drawn)), 2.9 * rows)
    for axis, panel in zip(axes.flat, drawn, strict=True):
        panel(axis, found)
        if panel is not _densities:
            over_steps(axis, found["curves"])
            moments(axis, found, named=axis is axes[0, 0])
        style.below(axis)
    style.headline(figure, result, _about(result))
    return figure


def _pairs(axis, found: dict) -> None:
    end = style.percent(found["mean"]["attention_utilisation_end"])
    label, line = f"(token, layer) pairs: {end} at the end", {"color": style.BLUE, "ls": "-"}
    band(axis, found["curves"], "held_out/attention_utilisation", label, line, steps=True)
    axis.set_ylabel("held-out pairs that attend (%)")
    _shares(axis, found["curves"], "held_out/attention_utilisation", below=0.4)


def _clock(axis, found: dict, machines: list[str]) -> None:
    label = "\n".join(textwrap.wrap("on " + " and ".join(machines), 50))
    band(axis, found["curves"], "step_ms", label, {"color": style.BLUE, "ls": "-"}, scale=1.0)
    axis.set(ylabel="time of a training step (ms)", ylim=(0, 1.05 * axis.get_ylim()[1]))


def _quality(axis, found: dict) -> None:
    label = "queries of recurring bindings,\nin the layer that attends most"
    band(axis, found["curves"], QUALITY, label, {"color": style.BLUE, "ls": "-"}, scale=1.0)
    axis.set(ylabel="mean quality of recall, q", ylim=(0, 1.02))


def _densities(axis, found: dict) -> None:
    """Of q over the queries of all seeds together, at three moments."""
    lines = ({"color": style.ORANGE, "ls": "--"}, {"color": style.BLACK, "ls": ":"}, {"color": style.BLUE, "ls": "-"})
    for i, (what, line) in enumerate(zip(("early", "transition or half-way", "end"), lines, strict=True)):
        counts_Q = np.sum([seed["bins"][i] for seed in found["quality"]], axis=0)
        bins, steps = len(counts_Q), sorted(seed["step"][i] for seed in found["quality"])
        when = f"step {steps[0]}" if steps[0] == steps[-1] else f"steps {steps[0]} to {steps[-1]}"
        density = counts_Q / max(counts_Q.sum(), 1) * bins
        axis.stairs(density, np.linspace(0, 1, bins + 1), lw=1.4, label=f"{what}, {when}", **line)
    axis.set(xlabel="quality of recall for a query, q", ylabel="density over queries", xlim=(0, 1), ylim=(0, None))
