"""Ablations of the memory of a stream: one thing is changed each, in training or in deployment alone.

python experiments/streams_change.py --config=experiments/configs/streams.py:tiny --runs=... --what=ablations
python experiments/streams.py --config=experiments/configs/streams.py:tiny --runs=... --what=speeds

Sizes fit the variant `tiny`.
"""

from configs.streams import ENTRIES
from lib import readers
from lib.stream_runs import Entry

SEMANTIC, LEARNING, ROUTING = (f"posterior_cram.{part}" for part in ("semantic", "learning", "routing"))
# Blocks and features of each. The model has 8 of 32. As many features in one block cost more, but no address is near a
# border.
SIZES = {
    f"{blocks} x {features}": {f"{SEMANTIC}.blocks": blocks, f"{SEMANTIC}.features": features}
    for blocks, features in ((8, 8), (8, 16), (8, 64), (1, 256))
}
# A value that is written at once is recalled from then on. A contradiction would say that it must not be.
AT_ONCE = {f"{LEARNING}.shown": 1.0, "posterior_cram.contradictions": 0}


def _deployed(changed: dict, trained: dict | None = None, reader=readers.learning) -> Entry:
    """The model as it was trained, with these settings in deployment only."""
    return Entry(trained or {}, reader, changed)


def _trained(changed: dict) -> Entry:
    return Entry(changed, readers.learning)


# By what is changed. "all need memory" leaves out the first stage of the router. For "memory fixed" nothing is
# familiar, so the second stage decides nothing. "at once" consolidates after each event instead of after each visit.
GROUPS = {
    "unchanged": {"memory learns": ENTRIES["memory learns"]},
    "forgetting": {
        "keep all": _deployed({f"{SEMANTIC}.keep": 1.0}),
        "keep 0.99 a visit": _deployed({f"{SEMANTIC}.keep": 0.99}),
        "keep 0.9 a visit": _deployed({f"{SEMANTIC}.keep": 0.9}),
    },
    "rehearsal": {"no rehearsal": _deployed({f"{LEARNING}.rehearsal": 0.0})},
    "contradictions": {"contradictions ignored": _deployed({"posterior_cram.contradictions": 0})},
    "weight of a first write": {
        "first 0.05": _deployed({f"{LEARNING}.first": 0.05}),
        "first 1": _deployed({f"{LEARNING}.first": 1.0}),
    },
    "lambda": {
        "lambda 0.003": _deployed({f"{SEMANTIC}.ridge": 0.003}),
        "lambda 0.3": _deployed({f"{SEMANTIC}.ridge": 0.3}),
    },
    "threshold of u": {
        "known below 0.2": _deployed({f"{ROUTING}.known_below": 0.2}),
        "known below 0.5": _deployed({f"{ROUTING}.known_below": 0.5}),
    },
    "two stages": {
        "all need memory": _trained({f"{ROUTING}.need_bias": 1e3}),
        "memory fixed": ENTRIES["memory fixed"],
    },
    "blocks x features": {label: _trained(settings) for label, settings in SIZES.items()},
    "address": {"two heads": _trained({"posterior_cram.episodic.heads": 2})},
    "lifetimes in training": {"all of 8 visits": _trained({"data.lifetimes": (8,)})},
    "what is shown is written": {
        "shown 0.05": _deployed({f"{LEARNING}.shown": 0.05}),
        "shown 0.2": _deployed({f"{LEARNING}.shown": 0.2}),
        "at once": _deployed(AT_ONCE, reader=readers.immediate),
        **{f"at once, {label}": _deployed(AT_ONCE, SIZES[label], readers.immediate) for label in ("8 x 8", "8 x 16")},
    },
}
# For Eq 14: every write weighs the same: more than lambda, as much, or less. So a pattern is learned in one exposure,
# in a few, or in many.
SPEEDS = {
    f"writes weigh {weight}": _deployed(
        {
            f"{LEARNING}.first": weight,
            f"{LEARNING}.growth": 0.0,
            f"{LEARNING}.rehearsal": 0.0,
            f"{SEMANTIC}.keep": 0.99,
            "deployment.visits": 300,
        }
    )
    for weight in (0.2, 0.03, 0.005)
}
ABLATIONS = {label: entry for entries in GROUPS.values() for label, entry in entries.items()}
