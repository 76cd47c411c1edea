"""SRCD in streams: many users, repositories or sensors, each with recurring bindings that are its own.

A stream lives through visits, one after the other. A visit is a sequence of SRCD whose patterns are those of the
stream. All streams take their key ids from one universe, so an id that recurs in one stream is new in another: neither
an id's name nor a trained weight tells which it is, only earlier visits of the stream do.

Everything is a pure function of (seed, stream, visit), so that any visit can be made again.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.dims import Array, Bool, Int
from cram_jax.functional.checks import check_at_least_one, check_fields
from cram_jax.tasks import srcd
from cram_jax.tasks.srcd import QUERY, SRCDBatch, SRCDConfig

Number = int | Int[Array, ""]

STREAMS_PER_ROW = 2**18  # a row of a training batch has the ids [row * this, (row + 1) * this)
FIRST_HELD_OUT = 2**30  # held-out streams have ids from here on: training stays below up to row 4095


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class StreamsConfig:
    """
    srcd: a visit: its length, shares, process and answers, and how many patterns a stream has. `table_seed` chooses the
        codes of keys only. `new_keys`, `new_key_ids` and `changed` stay at their defaults: fields below say more.
    universe: key ids that all streams share. A one-off binding takes any id that is no pattern of its stream.
    lifetimes: visits that training streams live. A row of the batch repeats this list, beginning at a place of its own.
    change_visit: from this visit on, `change_share` of a stream's patterns (its first ones) have another answer. None:
        answers stay.
    retire_visit: from this visit on, `retire_share` of a stream's patterns (its last ones) are neither bound nor asked
        for. None: all stay.
    """

    srcd: SRCDConfig = SRCDConfig()
    universe: int = 1000
    lifetimes: tuple[int, ...] = (25, 50, 100, 200)
    change_visit: int | None = None
    change_share: float = 0.3
    retire_visit: int | None = None
    retire_share: float = 0.3

    def __post_init__(self):
        check_fields(self)
        for name in ("new_keys", "new_key_ids", "changed"):
            given, default = getattr(self.srcd, name), getattr(SRCDConfig, name)
            if given != default:
                raise ValueError(
                    f"srcd.{name} must stay at its default, {default!r}, got {given!r}: set universe, change_visit and "
                    "change_share instead"
                )
        if self.srcd.patterns < 1:
            raise ValueError(f"srcd.patterns must be at least 1, got {self.srcd.patterns}")
        if self.universe <= self.srcd.patterns:
            raise ValueError(
                f"universe must be above srcd.patterns, so that ids are left for one-off bindings, got {self.universe} "
                f"with srcd.patterns={self.srcd.patterns}"
            )
        if not self.lifetimes or min(self.lifetimes) < 1:
            raise ValueError(f"lifetimes must be one or more numbers of visits, each at least 1, got {self.lifetimes}")
        for name in ("change", "retire"):
            if getattr(self, f"{name}_visit") is not None:
                check_at_least_one(self, f"{name}_visit")
            if not 0 <= getattr(self, f"{name}_share") <= 1:
                raise ValueError(f"{name}_share must be a share between 0 and 1, got {getattr(self, f'{name}_share')}")
        if self.retire_visit is not None and self.retired == self.srcd.patterns:
            raise ValueError(
                f"retire_share must leave a pattern, got {self.retire_share} with srcd.patterns={self.srcd.patterns}"
            )
        if self.changed and self.srcd.answers < 2:
            raise ValueError(
                f"change_visit needs another answer to change to: srcd.answers must be at least 2, got "
                f"{self.srcd.answers}"
            )

    @property
    def changed(self) -> int:
        """How many patterns of a stream change their answer; they are the first ones."""
        return 0 if self.change_visit is None else round(self.change_share * self.srcd.patterns)

    @property
    def retired(self) -> int:
        """How many patterns of a stream retire; they are the last ones."""
        return 0 if self.retire_visit is None else round(self.retire_share * self.srcd.patterns)

    @property
    def one_visit(self) -> SRCDConfig:
        """A visit as SRCD: as many ids as the universe has, and the patterns that change at some time."""
        return dataclasses.replace(self.srcd, new_key_ids=self.universe - self.srcd.patterns, changed=self.changed)


def visit(cfg: StreamsConfig, seed: Number, stream: Number, visit: Number) -> SRCDBatch:
    """A visit of a stream, counted from 0: one sequence, without the axis of the batch. Arguments may be traced.

    `pattern_BxT` counts the patterns of the stream, from 0 to P - 1. Bindings recur where a visit has used up the ids
    that are no patterns of its stream.
    """
    ids, answers, events = jax.random.split(jax.random.fold_in(jax.random.key(seed), stream), 3)
    table_P = srcd.drawn_answers(answers, cfg.srcd, cfg.changed * _reached(cfg.change_visit, visit))
    recurring = cfg.srcd.patterns - cfg.retired * _reached(cfg.retire_visit, visit)
    batch = srcd.sequence(jax.random.fold_in(events, visit), cfg.one_visit, table_P, recurring)
    id_X = jax.random.permutation(ids, cfg.universe)  # the first P are the ids of the stream's patterns
    return batch._replace(key_BxT=jnp.where(batch.key_BxT >= 0, id_X[batch.key_BxT], -1))


@functools.partial(jax.jit, static_argnums=0)
def visits(cfg: StreamsConfig, seed: Number, stream_B: Int[Array, "B"], visit_B: Int[Array, "B"]) -> SRCDBatch:
    """A batch: of each row's stream the visit that it is at."""
    return jax.vmap(functools.partial(visit, cfg, seed))(stream_B, visit_B)


def schedule(cfg: StreamsConfig, row_B: Int[Array, "B"], step: Number) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
    """(stream, visit) of these rows of the training batch at a step.

    A row has one stream after the other, each for consecutive steps; it repeats `lifetimes`. Rows begin at different
    places of that list, so that streams do not all end together. Every row begins with a fresh stream at step 0, whose
    life is therefore what is left of the lifetime at that place.

    No two rows share a stream and no stream comes back, for up to 4096 rows and STREAMS_PER_ROW streams in each.
    """
    end_X = np.cumsum(cfg.lifetimes)  # in steps of one round through the list
    start_X, round_length = end_X - np.array(cfg.lifetimes), int(end_X[-1])
    # The golden ratio spreads any number of rows evenly; without a common divisor all places are used.
    stride = next(s for s in range(round(0.618 * round_length), 0, -1) if math.gcd(s, round_length) == 1)
    offset_B = row_B * stride % round_length
    rounds_B, place_B = jnp.divmod(step + offset_B, round_length)
    lifetime_B = jnp.searchsorted(end_X, place_B, side="right")
    count_B = rounds_B * len(cfg.lifetimes) + lifetime_B  # grows by one from a row's stream to its next
    visit_B = jnp.minimum(place_B - jnp.asarray(start_X)[lifetime_B], step)  # the first stream begins at step 0
    return row_B * STREAMS_PER_ROW + count_B, visit_B


def asked_before(cfg: StreamsConfig, asked_BxP: Bool[Array, "B P"], visit_B: Int[Array, "B"]) -> Bool[Array, "B P"]:
    """Patterns that were asked for since they have their present answer, as a visit begins, from `asked` after the
    visit before: False for all at the first visit of a stream, and for those whose answer changes at this visit."""
    return asked_BxP & (visit_B > 0)[:, None] & ~jax.vmap(functools.partial(changes, cfg))(visit_B)


def changes(cfg: StreamsConfig, visit: Number) -> Bool[Array, "P"]:
    """Patterns whose answer changes at exactly this visit; the same ones in every stream."""
    now = False if cfg.change_visit is None else jnp.equal(visit, cfg.change_visit)
    return (jnp.arange(cfg.srcd.patterns) < cfg.changed) & now


def first_queries(batch: SRCDBatch, asked_BxP: Bool[Array, "B P"]) -> Bool[Array, "B T"]:
    """Queries of one-off bindings, and of patterns that no earlier visit asked for since their answer last changed.

    Their share is the least attention of a memory that learns from retrievals only, if every query is answered. A
    memory that also learns from the events that state bindings may need less.

    Args:
      asked_BxP: `asked_before` this visit.
    """
    known_BxT = jnp.take_along_axis(asked_BxP, jnp.maximum(batch.pattern_BxT, 0), axis=1)
    return (batch.kind_BxT == QUERY) & (batch.is_new_BxT | ~known_BxT)


def asked(batch: SRCDBatch, asked_BxP: Bool[Array, "B P"]) -> Bool[Array, "B P"]:
    """`asked_before` this visit, and the patterns that it asks for."""
    P = asked_BxP.shape[1]
    pattern_BxT = jnp.where((batch.kind_BxT == QUERY) & ~batch.is_new_BxT, batch.pattern_BxT, P)
    return jax.vmap(lambda asked_P, pattern_T: asked_P.at[pattern_T].set(True, mode="drop"))(asked_BxP, pattern_BxT)


def _reached(start: int | None, visit: Number):
    """1 from visit `start` on, 0 before it or if there is none."""
    return 0 if start is None else (jnp.asarray(visit) >= start).astype(jnp.int32)
