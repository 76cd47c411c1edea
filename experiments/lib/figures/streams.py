"""Deployment in fresh streams: attention, answers and exposures, with a memory that learns and with a fixed one."""

import numpy as np
from matplotlib.figure import Figure

from lib.figures import style

ARMS = {"memory learns": style.SERIES[0], "memory fixed": style.SERIES[1]}


@style.drawer()
def draw(result: dict) -> Figure:
    """Median and range of all seeds over visits, and over how often a pattern was asked for.

    Args:
      result: with an entry for each arm; its curves have a row for each block of visits.
    """
    figure, axes = style.panels(1, 3, 3.3)
    attention, answers, exposure = axes.flat
    for arm, line in ARMS.items():
        if (found := result["entries"].get(arm)) is None:
            continue
        curves = found["curves"]
        middle = np.array(curves[0]["first_visit"]) + 5
        _band(attention, middle, [curve["attention_tokens"] for curve in curves], arm, line)
        _band(answers, middle, [curve["retrieval_accuracy"] for curve in curves], f"{arm}: all queries", line)
        new = line | {"ls": ":", "marker": "", "lw": 1.0}
        _band(answers, middle, [curve["retrieval_accuracy_new"] for curve in curves], f"{arm}: new bindings", new)
        total = lambda name, found=found: np.array(
            [[run[f"{name}_{k}"] for k in range(33)] for run in found["runs"]], float
        ).sum(0)
        asked, attended = total("asked_by_exposure"), total("attended_by_exposure")
        some = asked >= 20
        how = {name: line[name] for name in ("color", "ls", "marker")}
        exposure.plot(np.arange(33)[some] + 1, (attended[some] + 0.1) / asked[some], label=arm, **how)
    least = result["entries"]["memory learns"]["curves"]
    middle = np.array(least[0]["first_visit"]) + 5
    median = lambda name: 100 * np.median([curve[name] for curve in least], axis=0)
    attention.plot(middle, median("least"), color=style.BLACK, ls="--", lw=1.0, label="least that answers every query")
    attention.plot(middle, median("queries"), color=style.GREY, ls=":", lw=1.0, label="all queries")
    attention.set(xlabel="visit of a fresh stream", ylabel="tokens that attend (%)", ylim=(0, None))
    answers.set(xlabel="visit of a fresh stream", ylabel="queries answered right (%)")
    exposure.set(
        xscale="log",
        yscale="log",
        xlabel="earlier queries\nof the pattern, plus 1",
        ylabel="chance that a query attends",
    )
    for axis in axes.flat:
        style.below(axis)
    config = result["config"]
    about = (
        f"visits of {config['run']['length']} events, {config['data']['srcd']['patterns']} patterns a stream; "
        f"parameters fixed, no labels; {style.seeds(len(least))}"
    )
    style.headline(figure, result, about)
    return figure


def _band(axis, x, curves: list, label: str, line: dict) -> None:
    values = 100 * np.array(curves, float)
    how = {name: line[name] for name in line if name != "marker"} | {"marker": line.get("marker") or "", "ms": 3}
    axis.plot(x, np.median(values, axis=0), label=label, **how)
    axis.fill_between(x, values.min(0), values.max(0), color=line["color"], alpha=0.2, lw=0)
