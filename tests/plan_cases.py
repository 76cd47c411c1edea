"""Arguments of `make_plan` at random, and what they mean by brute force."""

from typing import NamedTuple

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from cram_jax import kernels

B = 2


class Case(NamedTuple):
    """Arguments of `make_plan`; the arrays as numpy."""

    routed_BxT: np.ndarray
    kept_BxT: np.ndarray | None
    score_BxT: np.ndarray | None
    window: int | None
    memory: int | None
    capacity: int | None
    kept_capacity: int | None
    segment_BxT: np.ndarray | None

    def plan(self) -> kernels.SkipPlan:
        arrays = {
            name: None if x is None else jnp.asarray(x) for name, x in self._asdict().items() if name.endswith("BxT")
        }
        return kernels.make_plan(**self._asdict() | arrays)


@st.composite
def cases(draw, lengths=(1, 9)) -> Case:
    T = draw(st.sampled_from(lengths))  # a shape costs a compilation; contents are free
    marks = st.lists(st.booleans(), min_size=B * T, max_size=B * T).map(lambda x: np.reshape(x, (B, T)))
    score = st.sampled_from([-np.inf, -2.0, -1.0, 0.0, 1.0, 2.0])
    scores = st.lists(score, min_size=B * T, max_size=B * T).map(lambda x: np.reshape(x, (B, T)))
    return Case(
        routed_BxT=draw(marks),
        kept_BxT=draw(st.none() | marks),
        score_BxT=draw(st.none() | scores.map(np.float32)),
        window=draw(st.none() | st.integers(1, T + 1)),
        memory=draw(st.none() | st.integers(1, T + 1)),
        capacity=draw(st.sampled_from([None, 3, 20])),
        kept_capacity=draw(st.sampled_from([None, 3, 20])),
        segment_BxT=draw(st.none() | marks.map(lambda new_BxT: np.cumsum(new_BxT, axis=1, dtype=np.int32))),
    )


class Truth(NamedTuple):
    """What a case means, one query and key at a time: which query sees which key, and what was dropped."""

    visible_BxTxT: np.ndarray
    attends_BxT: np.ndarray
    seen_BxT: np.ndarray


@st.composite
def long_cases(draw, T: int) -> Case:
    """Several tiles and blocks, with more than one list length only where capacities are given."""
    counts = st.sampled_from([0, 1, 15, 16, 17, 31, 32, 33, 40, T // 2, T])  # a tile or block and one more or less
    seeds = st.integers(0, 2**32 - 1)

    def marks():
        count, order = draw(counts), np.random.default_rng(draw(seeds)).permuted(np.tile(np.arange(T), (B, 1)), axis=1)
        return order < count

    room = draw(st.sampled_from([None, 40]))
    segments = st.none() | seeds.map(lambda seed: np.random.default_rng(seed).random((B, T)) < 0.05)
    new_BxT = draw(segments)
    return Case(
        routed_BxT=marks(),
        kept_BxT=marks() if draw(st.booleans()) else None,
        score_BxT=None,
        window=draw(st.none() | st.integers(1, T)),
        memory=draw(st.none() | st.integers(1, T)),
        capacity=room,
        kept_capacity=room,
        segment_BxT=None if new_BxT is None else np.cumsum(new_BxT, axis=1, dtype=np.int32),
    )


def brute_force(case: Case) -> Truth:
    T = case.routed_BxT.shape[1]
    kept_BxT = np.ones((B, T), bool) if case.kept_BxT is None else case.kept_BxT
    visible_BxTxT, attends_BxT, seen_BxT = np.zeros((B, T, T), bool), np.zeros((B, T), bool), np.zeros((B, T), bool)
    for b in range(B):
        score = (lambda t: 0) if case.score_BxT is None else case.score_BxT[b].__getitem__
        routed = sorted(np.flatnonzero(case.routed_BxT[b]), key=lambda t: (-score(t), t))
        attends_BxT[b, routed[: case.capacity]] = True
        kept = np.flatnonzero(kept_BxT[b])
        seen_BxT[b, kept[-(case.kept_capacity or T) :]] = True
        for t in np.flatnonzero(attends_BxT[b]):
            past = [j for j in range(t + 1) if seen_BxT[b, j]]
            for j in past[-(case.memory or T) :]:
                near = case.window is None or t - j < case.window
                same = case.segment_BxT is None or case.segment_BxT[b, t] == case.segment_BxT[b, j]
                visible_BxTxT[b, t, j] = near and same
    return Truth(visible_BxTxT, attends_BxT, seen_BxT)


@jax.jit
def masked_attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxV, visible_BxTxT):
    """Dense attention under a mask, (B T H V); 0 where nothing is visible. Differentiable."""
    group = q_BxTxHxK.shape[2] // k_BxTxGxK.shape[2]
    k_BxTxHxK, v_BxTxHxV = (jnp.repeat(x, group, axis=2) for x in (k_BxTxGxK, v_BxTxGxV))
    logits = jnp.einsum("bthk,bshk->bhts", q_BxTxHxK, k_BxTxHxK) * q_BxTxHxK.shape[-1] ** -0.5
    weight = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)) * visible_BxTxT[:, None]
    total = weight.sum(-1, keepdims=True)
    return jnp.einsum("bhts,bshv->bthv", weight / jnp.where(total > 0, total, 1), v_BxTxHxV)
