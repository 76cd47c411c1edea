"""The state of many streams: a visit has one result however it is computed; streams are taken out, saved and merged."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posterior_cases import CFG, lively, streamed, tokens, visited, widened
from safetensors.numpy import load_file, save_file

from cram_jax.functional import posterior_cram
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.routing import EPISODIC, SEMANTIC, WORKING
from cram_jax.models.stack import Stack
from cram_jax.training.checkpoints import from_host, to_host

ROOT = Path(__file__).parents[2]
ROWS, STREAMS = 8, 5
# Places with and without memories, two layers each
STACK = Stack((AttentionConfig(D=CFG.D), CFG), 2)
G, F, D = CFG.semantic.blocks, CFG.semantic.features, CFG.D


def near(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), a, b)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def lived(seed: int, streams: int = STREAMS) -> tuple:
    """States of streams that have learned something, each something else."""
    learned = STACK.learned(STACK.init_state(streams))
    phi, r = (jax.random.normal(jax.random.key(seed + i), (2, streams, G, 30, width)) for i, width in enumerate((F, D)))
    sums = type(learned[1])(jnp.swapaxes(phi, -1, -2) @ phi / F, jnp.swapaxes(phi, -1, -2) @ r / F)
    return STACK.merge(STACK.release(STACK.init_state(streams)), ((), sums))


@pytest.mark.parametrize("streams", [None, ROWS])
def test_a_batch_micro_batches_and_tokens_leave_one_state(x64, streams):
    # Given a state of two visits, one memory for all or one for each row, and a batch in which every route is taken
    params = widened(lively())
    state = visited(params, widened(CFG.release(CFG.init_state(streams))), (1, 2))
    batch = tuple(map(widened, tokens(3, ROWS)))

    @jax.jit
    def taught(state, x_BxTxD, gap_BxT):
        return posterior_cram.apply(params, state, x_BxTxD, cfg=CFG, gap_BxT=gap_BxT)[1]

    aux = taught(state, *batch)
    assert {WORKING, EPISODIC, SEMANTIC} == set(np.unique(aux.routes.choice_BxT))
    want = CFG.update(state, aux.stats)
    assert np.any(want.memory.sums.A_SxFxF != state.memory.sums.A_SxFxF)
    # When the batch is read in two halves, or token by token
    halves = [jnp.arange(ROWS // 2), jnp.arange(ROWS // 2, ROWS)]
    part = lambda rows: tuple(a[rows] for a in batch)
    if streams is None:
        stats = [taught(state, *part(rows)).stats for rows in halves]
        near(CFG.update(state, jax.tree.map(jnp.add, *stats)), want)
    else:  # rows that are served apart, the second half from a state that holds the first
        served = state
        for rows in halves:
            of_rows = CFG.streams_at(served, rows)
            served = CFG.put_streams(served, rows, CFG.update(of_rows, taught(of_rows, *part(rows)).stats))
        near(served.memory, want.memory)
    _, (_, each) = jax.jit(lambda state, *batch: streamed(params, state, *batch))(state, *batch)
    # Then the state is the same
    near(CFG.update(state, jax.tree.map(lambda a: a.sum(0), each.stats)), want)


def test_streams_are_taken_out_and_put_back_and_no_other_changes():
    # Given two streams of five, out of order, and what they learned elsewhere
    states, id_B = lived(0), jnp.array([3, 1])
    out = STACK.streams_at(states, id_B)
    at = lambda states, stream: jax.tree.map(lambda leaf: leaf[:, stream], states[1].memory)
    for row, stream in enumerate((3, 1)):
        same(at(out, row), at(states, stream))
    new = STACK.reset(lived(9, 2), jnp.array([False, True]))
    new = (new[0], new[1]._replace(retrievals=new[1].retrievals._replace(square=jnp.full(2, 7.0))))
    # When they are put back
    after = jax.jit(STACK.put_streams)(states, id_B, new)
    # Then those two are the new ones, the others and the layers without memories as before
    for stream, (of, place) in enumerate([(states, 0), (new, 1), (states, 2), (new, 0), (states, 4)]):
        same(at(after, stream), at(of, place))
    same(STACK.streams_at(after, id_B), new)
    assert (
        after[0] == ()
        and np.any(STACK.learned(after)[1].A_SxFxF[:, 3])
        and not np.any(STACK.learned(after)[1].A_SxFxF[:, 1])
    )


def test_a_visit_changes_donated_states_in_place():
    # Given the states of many streams, of which two are visited
    many, id_B = 64, jnp.array([5, 50])
    states = jax.tree.map(jnp.copy, lived(0, many))  # `lived` may share arrays that are alike

    def visit(states, id_B, learned):
        return STACK.put_streams(states, id_B, STACK.merge(STACK.streams_at(states, id_B), learned))

    arrays = states, id_B, STACK.learned(lived(1, 2))
    run = jax.jit(visit, donate_argnums=0).lower(*arrays).compile()
    # Then it needs room for the two, not for all, and big arrays stay where they are
    memory, size = states[1].memory, lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert run.memory_analysis().temp_size_in_bytes < 0.2 * size(memory)
    place = lambda memory: [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(memory) if leaf.ndim > 2]
    before, want = place(memory), jax.jit(visit)(*arrays)
    after = run(*arrays)
    assert place(after[1].memory) == before
    near(after, want)


def test_only_sums_are_saved_and_the_rest_is_solved_again(tmp_path):
    # Given a stream's memory
    states, path = lived(0), tmp_path / "stream.safetensors"
    mine = STACK.streams_at(states, jnp.array([2]))
    # When what it learned goes through a file into an empty memory
    save_file(to_host(STACK.learned(mine)), path)
    empty = STACK.for_streams(states, 1)
    back = STACK.merge(empty, from_host(load_file(path), STACK.learned(empty)))
    # Then it is the memory that it was, and took half of its bytes: G (F F + F D) numbers for each of two layers
    np.testing.assert_array_equal(back[1].memory.sums.A_SxFxF, mine[1].memory.sums.A_SxFxF)
    # float32: the same factorisation, but perhaps in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), back, mine)
    assert path.stat().st_size == pytest.approx(2 * 4 * G * (F * F + F * D), abs=400)  # a header


def test_two_streams_become_one(x64):
    # Given two visits, of one stream, or one each of two streams; nothing is forgotten in between
    states = widened(lived(0, 2))
    first, second = (STACK.streams_at(states, jnp.array([stream])) for stream in (0, 1))
    both = STACK.merge(first, STACK.learned(second))
    near(both[1].memory.sums, jax.tree.map(lambda a: a.sum(1, keepdims=True), states[1].memory.sums))
    M = both[1].memory.root_SxFxF
    A = both[1].memory.sums.A_SxFxF + CFG.semantic.ridge * jnp.eye(F)
    np.testing.assert_allclose(jnp.swapaxes(M, -1, -2) @ M @ A, jnp.broadcast_to(jnp.eye(F), A.shape), atol=1e-9)
    same(both[1].retrievals, first[1].retrievals)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 5], r"id_B must be from 0 to 4 for a state of 5 streams, got \[0 5\]"),
        ([-1, 1], r"id_B must be from 0 to 4 for a state of 5 streams, got \[-1  1\]"),
        ([2, 2], r"id_B must have each id once, got \[2 2\]; a stream has one visit at a time"),
        ([0, 1, 2], r"of_B must have a memory for each of 3 ids, got \(2,\)"),
    ],
)
def test_wrong_ids_are_named(ids, message):
    states, id_B = STACK.init_state(STREAMS), jnp.array(ids)
    with pytest.raises(ValueError, match=message):
        STACK.put_streams(states, id_B, STACK.init_state(2))


def test_what_cannot_be_taken_out_or_merged_is_named():
    shared = STACK.init_state()
    for refused in (STACK.streams_at, lambda states, ids: STACK.put_streams(states, ids, shared)):
        with pytest.raises(ValueError, match=r"one memory for all streams; make it with init_state\(streams=N\)"):
            refused(shared, jnp.array([0]))
    with pytest.raises(ValueError, match=r"must have the shapes of the state's own sums, \(\(2, 5, 4, 32, 32\)"):
        STACK.merge(STACK.init_state(5), STACK.learned(STACK.init_state(1)))
    # An id that is too large is loud under jit, where values are not checked
    out = jax.jit(STACK.streams_at)(STACK.init_state(2), jnp.array([1, 2]))
    assert np.all(np.isfinite(out[1].memory.up_SxFxD[:, 0])) and np.all(np.isnan(out[1].memory.up_SxFxD[:, 1]))
