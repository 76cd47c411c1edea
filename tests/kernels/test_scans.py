"""Both scans are what a loop over tokens and synapses says, on every backend."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scan_cases import B, G, H, K, V, arguments, assert_close, compiled, scan

from cram_jax import kernels
from cram_jax.kernels import PalimpsaState
from cram_jax.kernels.backends import FAMILIES

SCANS = ("ssd", "palimpsa")
EVERY = [(name, backend) for name in SCANS for backend in FAMILIES[name].everywhere()]
EXAMPLES = hypothesis.settings(max_examples=12, deadline=None, derandomize=True)


def loop(q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, state, segment_BxT=None, scale=None, **gates):
    """(o, state), one synapse of one head at a time, as the equations stand."""
    a = {name: np.asarray(x) for name, x in gates.items()}
    q, k, v = (np.asarray(x) for x in (q_BxTxGxK, k_BxTxGxK, v_BxTxHxV))
    T, o = q.shape[1], np.zeros(v.shape)
    M, J = (np.array(x) for x in state) if isinstance(state, tuple) else (np.array(state), None)
    for b, t, h in np.ndindex(B, T, H):
        starts = segment_BxT is not None and t > 0 and segment_BxT[b, t] != segment_BxT[b, t - 1]
        log_decay = a["log_decay_BxTxH"][b, t, h] if J is None else -a["dt_BxTxH"][b, t, h] * a["rate_H"][h]
        decay, group = 0.0 if starts else np.exp(log_decay), h * G // H
        for i, j in np.ndindex(V, K):
            M[b, h, i, j] = decay * M[b, h, i, j] + v[b, t, h, i] * k[b, t, group, j]
            read = M[b, h, i, j]
            if J is not None:
                J[b, h, i, j] = decay * J[b, h, i, j] + a["beta_BxTxHxV"][b, t, h, i] * k[b, t, group, j] ** 2
                read = read / (J[b, h, i, j] + a["prior_H"][h])
            o[b, t, h, i] += (K**-0.5 if scale is None else scale) * read * q[b, t, group, j]
    return o, M if J is None else PalimpsaState(M, J)


segments = st.none() | st.integers(1, 4).map(lambda n: np.cumsum(np.arange(B * 9).reshape(B, 9) % n == 0, axis=1))


@pytest.mark.parametrize(("name", "backend"), EVERY)
@EXAMPLES
@hypothesis.given(
    st.sampled_from((1, 2, 7, 9)), st.sampled_from((None, 1, 2, 4, 9, 12)), segments, st.sampled_from((None, 0.7))
)
def test_equals_the_loop_whatever_length_chunk_segments_and_scale(name, backend, T, chunk, segment_BxT, scale):
    with jax.enable_x64(True):
        given = arguments(name, T)
        segment_BxT = None if segment_BxT is None else segment_BxT[:, :T]
        want = loop(**given, segment_BxT=segment_BxT, scale=scale)
        packed = None if segment_BxT is None else jnp.asarray(segment_BxT)
        got = compiled(name)(**given, chunk=chunk, segment_BxT=packed, scale=scale, backend=backend)
        assert_close(got, want, 1e-12)  # float64 rounds at 1e-16, and 9 tokens add up to some 30 products


@pytest.mark.parametrize("name", SCANS)
def test_no_tokens_and_no_sequences_leave_the_state(name):
    given = arguments(name, T=0, dtype=np.float32)
    of_batch = lambda path: "BxT" in path[0].key or path[0].key == "state"
    nobody = jax.tree_util.tree_map_with_path(
        lambda path, x: x[:0] if of_batch(path) else x, arguments(name, T=3, dtype=np.float32)
    )
    for these in (given, nobody):  # outside of jit, so that values are checked, too
        o_BxTxHxV, state = scan(name)(**these)
        assert o_BxTxHxV.shape == these["v_BxTxHxV"].shape
        jax.tree.map(np.testing.assert_array_equal, state, these["state"])


@pytest.mark.parametrize("name", SCANS)
def test_chunks_of_the_default_length_follow_each_other(name, x64):
    given = arguments(name, T=150)  # five chunks, the last one not full
    want = jax.jit(lambda given: scan(name)(**given, backend="reference"))(given)
    assert_close(jax.jit(lambda given: scan(name)(**given, backend="xla"))(given), want, 1e-12)


def loss(name: str, given: dict, **options):
    """A number that every output has a part in."""
    o, state = scan(name)(**given, **options)
    return jnp.sum(jnp.sin(o)) + sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(state))


@pytest.mark.parametrize("name", SCANS)
def test_gradients_are_those_of_finite_differences(name, x64):
    given = arguments(name, T=7)
    segment_BxT = jnp.asarray(np.arange(7) // 3)[None].repeat(B, 0)
    direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), given)
    f = jax.jit(lambda given: loss(name, given, chunk=2, segment_BxT=segment_BxT, backend="xla"))
    gradient = jax.jit(jax.grad(f))(given)
    moved = lambda argument, step: jax.tree.map(lambda x, d: x + step * d, given[argument], direction[argument])
    for argument in given:  # each argument by itself
        near, far = (
            f(given | {argument: moved(argument, step)}) - f(given | {argument: moved(argument, -step)})
            for step in (1e-3, 2e-3)
        )
        slope = sum(map(jnp.vdot, jax.tree.leaves(gradient[argument]), jax.tree.leaves(direction[argument])))
        # Central differences of fourth order, 1e-3 apart: an error of about 1e-12, and rounding of 1e-13
        np.testing.assert_allclose(slope, (8 * near - far) / 12e-3, rtol=1e-8, err_msg=argument)


# By exponent of the decay. Norms of gradients are compared token by token. Float32 rounds to 6e-8, sums
# here have hundreds of terms, and the gradient of a decay near 1 is a small difference of two of them.
@pytest.mark.parametrize("exponent", [1e-7, 12.0, 40.0])
@pytest.mark.parametrize("name", SCANS)
def test_gradients_are_right_where_all_or_nothing_is_forgotten(name, exponent, x64):
    T = 40
    given = arguments(name, T)
    spread = 1 + 0.1 * jax.random.uniform(jax.random.key(0), (B, T, H), jnp.float64)
    if name == "ssd":
        given["log_decay_BxTxH"] = -exponent * spread
    else:
        given |= {"dt_BxTxH": exponent * spread, "rate_H": jnp.ones(H)}
    want = jax.jit(jax.grad(lambda given: loss(name, given, backend="reference")))(given)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), given)
    got = jax.jit(jax.grad(lambda given: loss(name, given, chunk=16, backend="xla")))(single)
    for argument in given:
        for g, w in zip(*map(jax.tree.leaves, (got[argument], want[argument])), strict=True):
            axes = tuple(range(2, w.ndim)) if "BxT" in argument else None
            error, size = (np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=axes)) for x in (g - w, w))
            assert np.all(error <= 1e-4 * size), (argument, np.max(error / size))


def products(jaxpr):
    """Every product of matrices in a program, whatever it is nested in."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize(("name", "backend"), EVERY)
def test_products_are_float32_on_accelerators_too(name, backend):
    given = arguments(name, T=9, dtype=np.float32)
    program = jax.make_jaxpr(jax.grad(lambda given: loss(name, given, chunk=4, backend=backend)))(given)
    found = list(products(program.jaxpr))
    assert len(found) >= 2
    highest = jax.lax.Precision.HIGHEST
    assert all(equation.params["precision"] == (highest, highest) for equation in found)


@pytest.mark.parametrize(("name", "backend"), EVERY)
def test_bfloat16_is_rounded_once_on_the_way_out(name, backend):
    given = arguments(name, T=20, dtype=jnp.bfloat16)
    o, state = compiled(name)(**given, backend=backend)
    exact, _ = compiled(name)(**jax.tree.map(lambda x: x.astype(jnp.float32), given), backend="reference")
    assert o.dtype == jnp.bfloat16 and all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))
    # Eight bits: an error of 2**-9 of each entry at most, evenly spread below that
    assert np.linalg.norm(o.astype(jnp.float32) - exact) <= 2**-9 * np.linalg.norm(exact)


@pytest.mark.parametrize(("name", "backend"), EVERY)
class TestEveryScan:
    def test_pieces_with_a_carried_state_equal_the_whole(self, name, backend, x64):
        given = arguments(name, T=11)
        whole, end = compiled(name)(**given, chunk=4, backend=backend)
        pieces, state = [], given["state"]
        for piece in (slice(0, 3), slice(3, 4), slice(4, 11)):
            now = {n: x[:, piece] if "BxT" in n else x for n, x in given.items()} | {"state": state}
            o, state = compiled(name)(**now, chunk=4, backend=backend)
            pieces.append(o)
        assert_close((jnp.concatenate(pieces, axis=1), state), (whole, end), 1e-13)

    def test_packed_segments_equal_separate_runs(self, name, backend, x64):
        given = arguments(name, T=10)
        empty = jax.tree.map(jnp.zeros_like, given["state"])
        segment_BxT = jnp.asarray(np.array([0] * 3 + [1] + [2] * 6))[None].repeat(B, 0)
        packed, end = compiled(name)(**given, chunk=4, segment_BxT=segment_BxT, backend=backend)
        for piece, state in ((slice(0, 3), given["state"]), (slice(3, 4), empty), (slice(4, 10), empty)):
            now = {n: x[:, piece] if "BxT" in n else x for n, x in given.items()} | {"state": state}
            o, last = compiled(name)(**now, chunk=4, backend=backend)
            assert_close(o, packed[:, piece], 1e-13)
        assert_close(last, end, 1e-13)

    def test_the_future_has_exactly_no_influence(self, name, backend):
        given = arguments(name, T=9, dtype=np.float32)
        early = lambda given: jnp.sum(scan(name)(**given, chunk=4, backend=backend)[0][:, :5] ** 2)
        for argument, gradient in jax.jit(jax.grad(early))(given).items():
            if "BxT" in argument:
                assert np.any(gradient[:, :5] != 0) and np.all(gradient[:, 5:] == 0), argument

    def test_what_is_not_finite_spoils_its_own_segment_from_there_on_and_nothing_else(self, name, backend):
        # Given three segments, a second one with a number that is not finite in one head of one argument
        given = arguments(name, T=10, dtype=np.float32)
        segment_BxT = jnp.asarray(np.array([0] * 3 + [1] * 4 + [2] * 3))[None].repeat(B, 0)
        shared = {"chunk": 4, "segment_BxT": segment_BxT, "backend": backend}
        clean, end = compiled(name)(**given, **shared)
        of_others = lambda given, spoilt: jnp.sum(jnp.where(spoilt, 0, scan(name)(**given, **shared)[0]) ** 2)
        gradient = jax.jit(jax.grad(of_others))

        for argument in [n for n in given if "BxT" in n]:
            heads_of_group = H // G if "G" in argument else 1
            bad = given | {argument: given[argument].at[1, 4, 0].set(jnp.nan)}
            spoilt = np.zeros((B, 10, H, 1), bool)
            spoilt[1, 4 : 5 if argument[0] == "q" else 7, :heads_of_group] = True
            # When the scan runs, the tokens of that head that see it are NaN and all others what they were
            o, end_of_bad = compiled(name)(**bad, **shared)
            np.testing.assert_array_equal(o, np.where(spoilt, np.nan, clean), err_msg=argument)
            jax.tree.map(np.testing.assert_array_equal, end_of_bad, end)
            # And the other segments have the gradients that they have without it
            want, got = (gradient(x, spoilt) for x in (given, bad))
            for of_argument in [n for n in given if "BxT" in n]:
                g, w = (np.delete(x[of_argument], slice(3, 7), axis=1) for x in (got, want))
                np.testing.assert_array_equal(g, w, err_msg=f"{of_argument} beside {argument}")

        # And a state that is not finite spoils the first segment of its own head
        state = jax.tree.map(lambda x: x.at[1, 2, 0, 0].set(jnp.inf), given["state"])
        spoilt = np.zeros((B, 10, H, 1), bool)
        spoilt[1, :3, 2] = True
        o, _ = compiled(name)(**given | {"state": state}, **shared)
        np.testing.assert_array_equal(o, np.where(spoilt, np.nan, clean))

    def test_tokens_without_content_change_nothing(self, name, backend, x64):
        given = arguments(name, T=6)
        silent = {"v_BxTxHxV", "beta_BxTxHxV", "dt_BxTxH", "log_decay_BxTxH"}
        longer = {
            n: jnp.concatenate([x, jnp.zeros_like(x) if n in silent else x], axis=1) if "BxT" in n else x
            for n, x in given.items()
        }
        o, end = compiled(name)(**given, chunk=4, backend=backend)
        o_longer, end_longer = compiled(name)(**longer, chunk=4, backend=backend)
        assert_close((o_longer[:, :6], end_longer), (o, end), 1e-14)

    def test_zero_keys_write_nothing_and_have_finite_gradients(self, name, backend, x64):
        given = arguments(name, T=6)
        given["k_BxTxGxK"] = jnp.zeros_like(given["k_BxTxGxK"])
        _, end = compiled(name)(**given, chunk=4, backend=backend)
        dt_BxTxH = given["dt_BxTxH"] * given["rate_H"] if name == "palimpsa" else -given["log_decay_BxTxH"]
        kept = jnp.exp(-jnp.sum(dt_BxTxH, axis=1))[..., None, None]
        assert_close(end, jax.tree.map(lambda x: kept * x, given["state"]), 1e-14)
        gradient = jax.jit(jax.grad(lambda given: loss(name, given, backend=backend)))(given)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))

    def test_vmap_jit_and_remat_change_nothing(self, name, backend, x64):
        given = arguments(name, T=6)
        f = jax.value_and_grad(lambda given: loss(name, given, chunk=4, backend=backend))
        two = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), given)
        f = jax.jit(f)
        one_by_one = [f(jax.tree.map(lambda x: x[0], two)), f(jax.tree.map(lambda x: x[1], two))]
        want = jax.tree.map(lambda *x: jnp.stack(x), *one_by_one)
        assert_close(jax.jit(jax.vmap(f))(two), want, 1e-13)
        remat = jax.value_and_grad(jax.checkpoint(lambda given: loss(name, given, chunk=4, backend=backend)))
        assert_close(jax.jit(remat)(given), one_by_one[0], 1e-13)


WRONG = {
    "heads": ({"q_BxTxGxK": np.ones((B, 4, 3, K)), "k_BxTxGxK": np.ones((B, 4, 3, K))}, r"divisor of the 4 heads"),
    "keys": ({"k_BxTxGxK": np.ones((B, 4, G, K + 1))}, r"must have one shape"),
    "chunk": ({"chunk": 0}, r"chunk must be at least 1 .* got 0"),
    "backend": ({"backend": "cuda"}, r"backend must be one of .*got 'cuda'"),
    "gpu": ({"backend": "gpu"}, r'no GPU kernel .* backend="xla"'),
    "segments": ({"segment_BxT": np.zeros((B, 5), int)}, r"segment_BxT must have shape \(2, 4\)"),
}
WRONG_IN_PALIMPSA = {
    "beta": ({"beta_BxTxHxV": -np.ones((B, 4, H, V))}, r"beta_BxTxHxV must be at least 0, got -1"),
    "prior": ({"prior_H": np.zeros(H)}, r"prior_H must be above 0, got 0"),
    "not a number": ({"dt_BxTxH": np.full((B, 4, H), np.nan)}, r"dt_BxTxH must be at least 0, got nan"),
    "state": ({"state": PalimpsaState(np.ones((B, H, V, K)), np.ones((B, H, K, V)))}, r"state.importance_BxHxVxK"),
}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [(name, *wrong) for name in SCANS for wrong in WRONG.values()]
    + [("palimpsa", *wrong) for wrong in WRONG_IN_PALIMPSA.values()],
)
def test_wrong_arguments_are_named(name, change, message, unchecked):
    change = {n: x if isinstance(x, int | str) else jax.tree.map(jnp.asarray, x) for n, x in change.items()}
    with pytest.raises(ValueError, match=message):
        scan(name)(**arguments(name, T=4, dtype=np.float32) | change)


def test_they_are_exported():
    assert {"ssd_scan", "palimpsa_scan", "shared_importance_scan", "PalimpsaState"} <= set(kernels.__all__)
