"""Retrieval and attention of everything that a comparison lists, side by side."""

import fnmatch
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.figures import style

PANELS = {
    "retrieval_accuracy": "all queries\nanswered right (%)",
    "retrieval_accuracy_new": "queries of new bindings\nanswered right (%)",
    "attention_tokens_end": "tokens that attend (%)",
}
STREAMS = {  # of ablations on streams
    "attention_tokens_end": "tokens that attend,\nlast 5 visits (%)",
    "retrieval_accuracy": "all queries right,\nlowest 5 visits (%)",
    "retrieval_accuracy_new": "new bindings right,\nlowest 5 visits (%)",
    "changed_right_after_2": "changed patterns right\nafter 2 bindings (%)",
}
# What an ablation changes, by the settings it has: the first that holds one of them.
GROUPS = {
    "consolidation": ("objective.distillation", "objective.semantic_reward", "cram.semantic.*", "optimizer.*"),
    "price and release": ("price.*",),
    "router inputs": ("cram.routing.features", "cram.routing.decide"),
    "audits": ("cram.routing.audit_*",),
    "buffer": ("cram.episodic.*", "objective.write_price"),
    "working memory": ("cram.working.*", "cram.routing.working_always"),
    "task": ("data.*",),
}
Rows = dict[str, dict[str, dict]]  # by group, by what a row is called: an entry of a result


@style.drawer()
def draw(result: dict) -> Figure:
    """A row an entry, all in one group.

    Args:
      result: with `entries`, whose runs have the numbers of PANELS that there are. Where no entry routes there is no
        panel of attention.
    """
    return _figure(result, {"": {style.spelled(label): found for label, found in result["entries"].items()}})


@style.drawer()
def ablations(result: dict) -> Figure:
    """Entries by what they change, beside a line for the entry that changes nothing.

    Args:
      result: as for `draw`. One entry has no settings of its own.
    """
    (label, unchanged), *_ = [item for item in result["entries"].items() if not item[1]["settings"]]
    changed = {name: found for name, found in result["entries"].items() if found is not unchanged}
    rows = _grouped(changed, lambda _, found: group(found["settings"]), lambda name: name)
    rows = {what: rows[what] for what in (*GROUPS, "other settings") if what in rows}
    return _figure(result, {"unchanged": {style.spelled(label): unchanged}} | rows, unchanged)


@style.drawer()
def streams_ablations(result: dict) -> Figure:
    """As `ablations`, for models that are deployed in streams: groups are those of `data`."""
    groups = {
        group: {style.spelled(label): result["entries"][label] for label in labels}
        for group, labels in result["data"]["groups"].items()
    }
    (unchanged,) = groups["unchanged"].values()
    return _figure(result, groups, unchanged, STREAMS)


@style.drawer()
def by_model(result: dict) -> Figure:
    """Entries whose labels are "model, setting", by model."""
    called = lambda label: label.split(", ", 1)[-1]
    return _figure(result, _grouped(result["entries"], lambda label, _: label.split(", ")[0], called))


@style.drawer()
def by_condition(result: dict) -> Figure:
    """Entries whose labels are "what, condition", by condition."""
    called = lambda label: label.rsplit(", ", 1)[0]
    return _figure(result, _grouped(result["entries"], lambda label, _: label.rsplit(", ", 1)[-1], called))


def group(settings: dict) -> str:
    """What of GROUPS these settings change."""
    matches = lambda patterns: any(fnmatch.fnmatch(name, pattern) for name in settings for pattern in patterns)
    return next((what for what, patterns in GROUPS.items() if matches(patterns)), "other settings")


def _grouped(entries: dict, what: Callable[[str, dict], str], called: Callable[[str], str]) -> Rows:
    rows: Rows = {}
    for label, found in entries.items():
        rows.setdefault(style.spelled(what(label, found)), {})[style.spelled(called(label))] = found
    return rows


def _figure(result: dict, groups: Rows, unchanged: dict | None = None, panels: dict[str, str] = PANELS) -> Figure:
    """A mark for each seed, and one for their mean. Without a router there is no panel of attention."""
    entries = [found for rows in groups.values() for found in rows.values()]
    if not any(found["mean"].get("attention_tokens_end") is not None for found in entries):
        panels = {name: label for name, label in panels.items() if name != "attention_tokens_end"}
    count = len(entries) + sum(1 for what in groups if what)
    figure, axes = style.panels(1, len(panels), 0.155 * count + 1.75, sharey=True)
    ticks = {}
    for what, rows in groups.items():
        if what:
            ticks[len(ticks)] = what
        for label, found in rows.items():
            for axis, name in zip(axes.flat, panels, strict=True):
                _row(axis, len(ticks), found, name)
            ticks[len(ticks)] = label
    axes[0, 0].set_yticks(list(ticks), list(ticks.values()))
    for text in axes[0, 0].get_yticklabels():
        text.set_weight("bold" if text.get_text() in groups else "normal")
    axes[0, 0].set_ylim(count - 0.4, -0.6)
    for axis, (name, label) in zip(axes.flat, panels.items(), strict=True):
        axis.set_xlabel(label)
        if unchanged:
            _line(axis, unchanged, name)
        _limits(axis, name)
        axis.tick_params(axis="y", length=0)
    style.under_all(figure, _legend(entries, unchanged), ncols=2)
    about = [f"SRCD, sequences of {result['config']['run']['length']} events"] if result["config"] else []
    style.headline(figure, result, *about)
    return figure


def _row(axis, y: float, found: dict, name: str) -> None:
    seeds = [100 * run[name] for run in found["runs"] if run.get(name) is not None]
    if name == "attention_tokens_end" and found["mean"].get(name) is None:
        said = "all attend" if found["mean"].get("attention_flops") else "none attend"
        how = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center"}
        style.on_white(axis.annotate(said, (0.98, y), **how))
        return
    if not seeds:
        return
    if len(seeds) > 1:
        axis.plot(seeds, [y] * len(seeds), "|", color=style.BLACK, ms=7, mew=0.9, zorder=3, clip_on=False)
    axis.plot(np.mean(seeds), y, "o", color=style.BLUE, ms=4, zorder=2, clip_on=False)
    floor = found["mean"].get("realised_new_share", found["mean"].get("least_end"))
    if name == "attention_tokens_end" and floor:
        axis.plot(100 * floor, y, "x", color=style.RED, ms=4, mew=1.1, zorder=4)


def _line(axis, unchanged: dict, name: str) -> None:
    seeds = [100 * run[name] for run in unchanged["runs"]]
    axis.axvspan(min(seeds), max(seeds), color=style.SKY, alpha=0.3, lw=0, zorder=0.5)
    axis.axvline(np.mean(seeds), color=style.BLUE, lw=1.0, ls="--", zorder=0.6)


def _limits(axis, name: str) -> None:
    """No share is more than 100%; shares of attention that lie far apart are shown on a logarithmic scale."""
    low, high = axis.get_xlim()
    if name == "attention_tokens_end":
        drawn = np.concatenate([line.get_xdata() for line in axis.lines])
        if high > 5 * max(low, 0.1):
            axis.set_xlim(max(min(drawn) / 2, style.PERCENT[0]), max(drawn) * 1.3)
            style.percent_ticks(axis, "x")
    elif high > 100 - 0.1 * (high - low):
        axis.set_xlim(min(low, 99.5), 100 + 0.02 * (100 - min(low, 99.5)))


def _legend(entries: list[dict], unchanged: dict | None) -> list[Line2D]:
    mark = lambda label, **how: Line2D([], [], ls=how.pop("ls", ""), label=label, **how)
    several = max(len(found["runs"]) for found in entries)
    handles = [mark("a seed", marker="|", color=style.BLACK, ms=7)] * (several > 1)
    handles += [mark("mean of the seeds" if several > 1 else "one seed", marker="o", color=style.BLUE, ms=4)]
    routed = [found["mean"] for found in entries if found["mean"].get("attention_tokens_end")]
    if any("least_end" in mean for mean in routed):
        said = "first queries: of new bindings, and of patterns not asked for before"
        handles += [mark(said, marker="x", color=style.RED, ms=4)]
    elif any(mean.get("realised_new_share") for mean in routed):
        without = any(found["mean"].get("realised_new_share") == 0 for found in entries)
        said = "floor: queries of new bindings" + " (0 is not drawn)" * without
        handles += [mark(said, marker="x", color=style.RED, ms=4)]
    if unchanged:
        handles += [mark("unchanged (band: its seeds)", color=style.BLUE, ls="--", lw=1.0)]
    return handles
