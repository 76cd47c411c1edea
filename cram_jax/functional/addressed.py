"""Episodic memory whose keys and queries are one address, so that a semantic memory can be asked at either.

An address is a unit vector for each head. A query attends by the similarity of addresses (Eq 3), and semantic memory
is asked at the same address (`posterior.py`). Training gives an event that binds a key nearly the address of the
queries for that key. So the event shows, without any retrieval, when semantic memory would answer them wrongly: its own
value is not what the memory recalls. Such an event is a **contradiction**.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Bool, Float, Int, Key, Marks, Segments, Tokens
from cram_jax.functional import blocks, episodic, posterior
from cram_jax.functional.blocks import Answer, Place
from cram_jax.functional.common import FeedForward, init_feed_forward, normal, silent
from cram_jax.functional.episodic import BUCKET_SIZES, EpisodicConfig
from cram_jax.functional.posterior import Posterior, PosteriorConfig, PosteriorSums
from cram_jax.kernels.meshes import varying_like

SHARPNESS = 15.0  # initial inverse temperature of attention between unit addresses
NEVER = jnp.iinfo(jnp.int32).max  # position in the unused places of a cache's list
KNOWN, APART = 0.25, 0.07  # thresholds of `compare`


class AddressedParams(NamedTuple):
    """Attributes:
    address_DxHxK: from a token to its address. sharpness_H: inverse temperature of attention.
    v_DxHxV, o_HxVxD: values and the output projection, without the coordinate of the write gate.
    write: the write gate, from a token to a logit (`episodic.Writes`).
    frequencies_ExR: of the semantic memory's features; fixed.
    """

    address_DxHxK: Float[Array, "D H K"]
    sharpness_H: Float[Array, "H"]
    v_DxHxV: Float[Array, "D H V"]
    o_HxVxD: Float[Array, "H V D"]
    write: FeedForward
    frequencies_ExR: Float[Array, "E R"]


class Contradictions(NamedTuple):
    """The first G kept events of a sequence that ask for nothing, and contradict what semantic memory would recall.

    Attributes:
      address_BxGxE: their addresses.
      position_BxG: where they stand; T, or NEVER in a cache, in unused places.
    """

    address_BxGxE: Float[Array, "B G E"]
    position_BxG: Int[Array, "B G"]


def init(key: Key, D: int, cfg: EpisodicConfig, memory: PosteriorConfig) -> AddressedParams:
    """Unit-variance projections; almost all events are kept."""
    H, K = cfg.heads, cfg.head_dim
    a, v, o, w, f = jax.random.split(key, 5)
    return AddressedParams(
        normal(a, (D, H, K), D),
        jnp.full(H, SHARPNESS),
        normal(v, (D, H, K - 1), D),
        normal(o, (H, K - 1, D), H * K),
        silent(init_feed_forward(w, D + 1, cfg.width, 1)),
        posterior.frequencies(f, H * K, memory),
    )


def addresses(params: AddressedParams, x: Float[Array, "... D"]) -> Float[Array, "... H K"]:
    """A unit vector for each head."""
    a = jnp.einsum("...d,dhk->...hk", x, params.address_DxHxK)
    return a * jax.lax.rsqrt(jnp.sum(a**2, axis=-1, keepdims=True) + 1e-12)


def joined(a: Float[Array, "... H K"]) -> Float[Array, "... E"]:
    """All heads' addresses as one unit vector of E = H K numbers."""
    *front, H, K = a.shape
    return a.reshape(*front, H * K) * H**-0.5


class Comparison(NamedTuple):
    """Whether semantic memory has something for an event, and whether that is the event's own value.

    Attributes: agrees, contradicts. Neither where the recall is near 0, as it is where nothing was written.
    """

    agrees: Bool[Array, "..."]
    contradicts: Bool[Array, "..."]


def compare(recalled: Float[Array, "... D"], value: Float[Array, "... D"]) -> Comparison:
    """Compares what semantic memory recalls for an event with the event's own value.

    A recall counts only if its square is above a quarter of the value's. The two differ if their squared distance is
    above 0.07 of the sum of their squares. For unrelated vectors it is the whole sum, but two values of one key have
    much in common, whatever their answers.
    """
    square = lambda x: jnp.sum(x**2, axis=-1)
    known = square(recalled) > KNOWN * square(value)
    apart = square(recalled - value) > APART * (square(recalled) + square(value))
    return Comparison(known & ~apart, known & apart)


def listed(looks_BxT: Marks) -> kernels.SkipPlan:
    """The tokens that look something up, as a plan without keys. Each of them counts, so a bucket holds them all."""
    plan = kernels.make_plan(looks_BxT, kept_BxT=jnp.zeros_like(looks_BxT))
    return plan._replace(end_BxC=(plan.rows_BxC < looks_BxT.shape[1]).astype(jnp.int32))


def plan_reads(attends_BxT: Marks, kept_BxT: Marks, segment_BxT: Segments | None, memory: int) -> kernels.SkipPlan:
    """The tokens that attend, and for each the last `memory` events kept before it, its own left out.

    With one address for keys and queries, a token that is kept would attend to itself.
    """
    plan = kernels.make_plan(attends_BxT, kept_BxT=kept_BxT, segment_BxT=segment_BxT)
    own_BxC = plan.gather_queries(kept_BxT.astype(jnp.float32)) > 0
    end_BxC = plan.end_BxC - own_BxC
    return plan._replace(start_BxC=jnp.maximum(plan.start_BxC, end_BxC - memory), end_BxC=end_BxC)


def read(
    params: AddressedParams,
    plan: kernels.SkipPlan,
    x_BxTxD: Tokens,
    read_weight_BxT: Float[Array, "B T"],
    *,
    cfg: EpisodicConfig,
) -> tuple[Tokens, Float[Array, "B T"]]:
    """(r^E of the plan's rows (Eq 3), the reads that the write gate learns from); 0 elsewhere. See `episodic.read`."""
    return episodic.attend(_projected, params, plan, x_BxTxD, read_weight_BxT, cfg=cfg)


def _projected(_, params, plan, x_BxTxD, weight_BxS):
    return query(params, addresses(params, plan.gather_queries(x_BxTxD))), *keys_values(
        params, plan.gather_keys(x_BxTxD), weight_BxS
    )


def query(params: AddressedParams, address: Float[Array, "... H K"]) -> Float[Array, "... H K"]:
    """The address, scaled so that q.k / sqrt(K) is sharpness times the cosine."""
    return address * (params.sharpness_H * address.shape[-1] ** 0.5)[:, None]


def keys_values(params: AddressedParams, x: Float[Array, "... D"], read_weight: Float[Array, "..."]):
    """Keys, which are the events' addresses, and their values."""
    return addresses(params, x), episodic.values(params.v_DxHxV, x, read_weight)


def told(
    params: AddressedParams,
    memory: Posterior,
    tells_BxT: Marks,
    x_BxTxD: Tokens,
    count: int,
    weights: tuple[float, float],
    used: Bool[Array, ""],
) -> tuple[Contradictions, PosteriorSums]:
    """Compares each event's own value with the recall at its address.

    Args:
      tells_BxT: the events to compare: kept, and not asking for anything themselves.
      weights: with which an event writes its own value, if that agrees with the recall and if it does not.
      used: False while nothing is in the memory yet; then nothing is computed, and there is nothing to compare.

    Returns:
      The first `count` contradictions, and what the events write, for each sequence.
    """
    T = x_BxTxD.shape[1]
    last_BxT = jnp.broadcast_to(jnp.arange(T) == T - 1, tells_BxT.shape)  # one row, which sees all that is kept
    plan = kernels.make_plan(last_BxT, kept_BxT=tells_BxT)
    f = partial(_told, weights)
    compare_all = lambda: kernels.in_smallest(f, plan, params, memory, x_BxTxD, sizes=BUCKET_SIZES)
    marks_BxT, sums = _if_used(used, compare_all)
    position_BxG = jnp.sort(jnp.where(marks_BxT, jnp.arange(T), T), axis=1)[:, :count].astype(jnp.int32)
    x_BxGxD = plan._replace(slots_BxS=position_BxG).gather_keys(x_BxTxD)
    return Contradictions(joined(addresses(params, x_BxGxD)), position_BxG), sums


def _if_used(used: Bool[Array, ""], compute):
    """What `compute()` returns, or zeros of that shape without computing it."""
    blank = lambda like: varying_like(jnp.zeros(like.shape, like.dtype), like)
    nothing = lambda: jax.tree.map(blank, jax.eval_shape(compute))
    return jax.lax.cond(used, compute, nothing)


def _told(weights: tuple[float, float], plan, params, memory, x_BxTxD) -> tuple[Marks, PosteriorSums]:
    at, value_BxSxD, found = event(params, memory, plan.gather_keys(x_BxTxD))
    kept_BxS = plan.slots_BxS < x_BxTxD.shape[1]
    marks_BxT = plan.scatter_keys(found.contradicts, x_BxTxD.shape[1])
    weight_BxS = jnp.where(kept_BxS, jnp.where(found.agrees, *weights), 0)
    return marks_BxT, blocks.writes(at, value_BxSxD, weight_BxS, memory.ridge.shape[-1])


def no_contradictions(batch: int, count: int, E: int) -> Contradictions:
    """An empty list with `count` places for each sequence."""
    return Contradictions(jnp.zeros((batch, count, E)), jnp.full((batch, count), NEVER, jnp.int32))


def noted(against: Contradictions, address_BxE, wrong_B: Bool[Array, "B"], position: Int[Array, ""]) -> Contradictions:
    """The list with one more contradiction for the marked sequences, if there is room."""
    count_B = jnp.sum(against.position_BxG < NEVER, axis=1)
    here_BxG = (jnp.arange(against.position_BxG.shape[1]) == count_B[:, None]) & wrong_B[:, None]
    return Contradictions(
        jnp.where(here_BxG[..., None], address_BxE[:, None], against.address_BxGxE),
        jnp.where(here_BxG, position, against.position_BxG),
    )


def event(
    params: AddressedParams, memory: Posterior, x: Float[Array, "... D"]
) -> tuple[Place, Float[Array, "... D"], Comparison]:
    """(where its address stands, its own value, how this compares with the recall) of an event, were it kept."""
    at = _place(params, x, memory.ridge.shape[-1])
    # What a query would retrieve if it attended to this event alone
    value = jnp.einsum("...d,dhv,hvo->...o", x, params.v_DxHxV, params.o_HxVxD)
    return at, value, compare(blocks.recall(memory, at), value)


def _place(params: AddressedParams, x: Float[Array, "... D"], count: int) -> Place:
    return blocks.place(params.frequencies_ExR, joined(addresses(params, x)), count)


class Lookup(NamedTuple):
    """What semantic memory says at a token's address; 0 for tokens that do not look anything up.

    Attributes:
      answer: of the address's block.
      doubt_BxT: 1 at the address of an earlier contradiction, near 0 far from all: the squared kernel of the two.
    """

    answer: Answer
    doubt_BxT: Float[Array, "*shape"]


def look_up(
    params: AddressedParams,
    memory: Posterior,
    plan: kernels.SkipPlan,
    x_BxTxD: Tokens,
    first_BxT: Int[Array, "B T"],
    against: Contradictions,
    bandwidth: float,
    used: Bool[Array, ""],
) -> Lookup:
    """Recall and uncertainty for the plan's rows. No gradient.

    Args:
      first_BxT: position at which each token's segment starts.
      against: contradictions; they raise the doubt of later tokens of their segment.
      used: False while nothing is in the memory yet; then nothing is computed: u and free are 1, and the recall 0.
    """
    f = partial(_look_up, bandwidth)
    ask_all = lambda: kernels.in_smallest(f, plan, params, memory, x_BxTxD, first_BxT, against, sizes=BUCKET_SIZES)
    looked_BxT = plan.scatter(jnp.ones(plan.rows_BxC.shape, x_BxTxD.dtype), x_BxTxD.shape[1])
    found = _if_used(used, ask_all)
    blank = found.answer._replace(u=looked_BxT, free=looked_BxT)
    return found._replace(answer=jax.tree.map(lambda some, none: jnp.where(used, some, none), found.answer, blank))


def _look_up(bandwidth: float, plan, params, memory, x_BxTxD, first_BxT, against) -> Lookup:
    T = x_BxTxD.shape[1]
    a_BxCxE = joined(addresses(params, plan.gather_queries(x_BxTxD)))
    first_BxC = jax.vmap(lambda first, rows: first.at[rows].get(mode="fill", fill_value=0))(first_BxT, plan.rows_BxC)
    found = ask(params, memory, a_BxCxE, plan.rows_BxC, first_BxC, against, bandwidth)
    return jax.tree.map(lambda a: plan.scatter(a, T), found)


def ask(
    params, memory: Posterior, a_BxCxE, position_BxC, first_BxC, against: Contradictions, bandwidth: float
) -> Lookup:
    """What semantic memory says at addresses."""
    answer = blocks.ask(memory, blocks.place(params.frequencies_ExR, a_BxCxE, memory.ridge.shape[-1]))
    # The kernel that phi . phi' approximates: |a - a'|^2 = 2 - 2 a.a'
    near_BxCxG = jnp.exp(-(bandwidth**2) * (1 - jnp.einsum("bce,bge->bcg", a_BxCxE, against.address_BxGxE)))
    at_BxCxG = against.position_BxG[:, None, :]
    seen_BxCxG = (at_BxCxG <= position_BxC[..., None]) & (at_BxCxG >= first_BxC[..., None])
    doubt_BxC = jnp.max(near_BxCxG**2, axis=-1, initial=0, where=seen_BxCxG)
    return Lookup(answer, doubt_BxC)


def written(
    params: AddressedParams,
    plan: kernels.SkipPlan,
    x_BxTxD: Tokens,
    value_BxTxD: Tokens,
    weight_BxT: Float[Array, "B T"],
    count: int,
    used: Bool[Array, ""],
) -> PosteriorSums:
    """The sums, for each sequence and each of `count` blocks, of what the plan's rows write; 0 while it is not used."""
    f = partial(_written, count)
    write = lambda: kernels.in_smallest(f, plan, params, x_BxTxD, value_BxTxD, weight_BxT, sizes=BUCKET_SIZES)
    return _if_used(used, write)


def _written(count: int, plan, params, x_BxTxD, value_BxTxD, weight_BxT) -> PosteriorSums:
    at = _place(params, plan.gather_queries(x_BxTxD), count)
    return blocks.writes(at, plan.gather_queries(value_BxTxD), plan.gather_queries(weight_BxT), count)
