"""Deployment in fresh streams: attention, answers and exposures, with a memory that learns and with a fixed one."""

import numpy as np
from matplotlib.figure import Figure

from lib.figures import style
from lib.figures.training import band

ARMS = {"memory learns": style.SERIES[0] | {"ms": 3}, "memory fixed": style.SERIES[1] | {"ms": 3}}
BLOCK = 10  # visits
LEAST = 20  # queries of a point in the panel of exposures


@style.drawer()
def draw(result: dict) -> Figure:
    """Median and range of all seeds over visits; and all seeds together over how often a pattern was asked for.

    Exposures without a query that attended have no place on a logarithmic axis, and are left out.

    Args:
      result: with an entry for each arm. Its curves have a row for each block of visits.
    """
    figure, axes = style.panels(1, 3, 3.3)
    attention, answers, exposure = axes.flat
    middle = lambda curve: {**curve, "step": [visit + BLOCK / 2 for visit in curve["first_visit"]]}
    for arm, line in ARMS.items():
        found = result["entries"][arm]
        curves = [middle(curve) for curve in found["curves"]]
        band(attention, curves, "attention_tokens", arm, line)
        band(answers, curves, "retrieval_accuracy", f"{arm}: all queries", line)
        band(
            answers,
            curves,
            "retrieval_accuracy_new",
            f"{arm}: new bindings",
            line | {"ls": ":", "marker": "", "lw": 1.0},
        )
        total = lambda name, found=found: np.sum([run[name] for run in found["exposures"]], axis=0)
        asked, attended = total("count"), total("episodic")
        some = (asked >= LEAST) & (attended > 0)
        exposure.plot(np.array(found["exposures"][0]["k"])[some] + 1, attended[some] / asked[some], label=arm, **line)
    learns = [middle(curve) for curve in result["entries"]["memory learns"]["curves"]]
    band(attention, learns, "least", "least that answers every query", {"color": style.BLACK, "ls": "--", "lw": 1.0})
    band(attention, learns, "queries", "all queries", {"color": style.GREY, "ls": ":", "lw": 1.0})
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
        f"parameters fixed, no labels; {style.seeds(len(learns))}"
    )
    style.headline(figure, result, about)
    return figure
