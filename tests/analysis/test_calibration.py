"""Expected and measured errors of recall, where the truth is known, and in a layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posterior_cases import CFG, B, T, lively, tokens, visited, widened

from cram_jax.analysis import calibration
from cram_jax.functional import addressed, blocks, episodic, posterior, posterior_cram, stream_memory, two_stage
from cram_jax.functional.common import rms_norm
from cram_jax.functional.posterior import PosteriorConfig
from cram_jax.functional.routing import SEMANTIC


def test_the_error_of_what_was_written_and_what_was_not_is_the_expected_one(x64):
    # Given the addresses of 40 patterns a stream, a value for each, and writes without noise of a weight of their own;
    # features enough for different addresses to have little in common, yet more than the memory has room for
    cfg, streams, count, E, D = PosteriorConfig(features=64, ridge=0.05, bandwidth=3.0), 100, 20, 12, 8
    keys = jax.random.split(jax.random.key(3), 3)
    address = jax.random.normal(keys[0], (streams, 2 * count, E))
    address = address / jnp.linalg.norm(address, axis=-1, keepdims=True)
    phi = posterior.features(posterior.frequencies(jax.random.key(9), E, cfg), address)
    value = jax.random.normal(keys[1], (streams, 2 * count, D))
    weight = 10 ** jax.random.uniform(keys[2], (streams, count), minval=-2.0, maxval=0.0)
    memory = posterior.update(
        posterior.init(D, cfg, (streams,)), posterior.writes(phi[:, :count], value[:, :count], weight)
    )
    # When recalls at those addresses, and at as many new ones, are compared with the values, whose mean square is D
    u = posterior.uncertainty(memory, phi)
    recalled_S = jnp.sum(memory.up_SxFxD**2, axis=(-1, -2)) / cfg.features
    at_new = lambda a: jnp.broadcast_to(a[:, None], u.shape)
    expected = posterior.expected_error(posterior.novelty(u, at_new(memory.free_share)), D + at_new(recalled_S))
    measured = jnp.sum((posterior.recall(memory, phi) - value) ** 2, -1)
    found = calibration.in_bins(expected.ravel(), measured.ravel())
    # Then the errors are those expected where little or nothing was written. Where much was, recalls are better than
    # expected, because these values have no noise at all, but not by more than another root of novelty
    assert list(found.count) == [400] * 10 and np.all(np.diff(found.expected) > 0)
    ratio = found.measured / found.expected
    np.testing.assert_allclose(ratio[3:], 1, atol=0.2)
    assert np.all(np.diff(ratio[:4]) > 0) and ratio[0] > (found.expected[0] / found.expected[-1]) ** (1 / 3)


def test_a_layer_is_measured_where_it_would_retrieve(x64):
    # Given a layer whose memory has learned in three visits
    params, cfg = widened(lively()), CFG
    state = visited(params, widened(cfg.release(cfg.init_state(B))), (1, 2, 3))
    x_BxTxD, gap_BxT = map(widened, tokens(4))
    key = jax.random.key(0)
    _, aux = posterior_cram.apply(params, state, x_BxTxD, cfg=cfg.audited(), gap_BxT=gap_BxT, key=key)
    expected, measured = calibration.errors(state, aux.routes)
    # When recall, uncertainty and retrieval of each token are computed one by one
    own, z_BxTxD = params.episodic, rms_norm(params.norm_D, x_BxTxD)
    at = blocks.place(own.frequencies_ExR, addressed.joined(addressed.addresses(own, z_BxTxD)), cfg.semantic.blocks)
    writes = episodic.decide_writes(own.write, z_BxTxD, jnp.ones((B, T)), None, cfg=cfg.episodic)
    plan = addressed.plan_reads(jnp.ones((B, T), bool), writes.kept_BxT, None, cfg.episodic.memory)
    r_BxTxD, _ = addressed.read(own, plan, z_BxTxD, writes.read_weight_BxT, cfg=cfg.episodic)
    finds_BxT = plan.scatter(plan.end_BxC > plan.start_BxC, T)
    some = np.asarray(finds_BxT & two_stage.need(params.router, z_BxTxD, gap_BxT, None, cfg.routing).hard)
    answer, up_BxGxFxD = blocks.ask(state.memory, at), state.memory.up_SxFxD
    error_BxT = jnp.sum((answer.recalled - r_BxTxD) ** 2, -1)
    new_BxT = answer.u / answer.free
    square = state.retrievals.square / state.retrievals.weight
    recalled_B = jnp.sum(up_BxGxFxD**2, axis=(1, 2, 3)) / (up_BxGxFxD.shape[1] * up_BxGxFxD.shape[2])
    least_BxT = new_BxT**1.5 * (square + recalled_B[:, None])
    expected_BxT = least_BxT + stream_memory.noise(state)
    # Then it is the same
    assert 5 < some.sum() < B * T
    np.testing.assert_allclose(measured, error_BxT[some], rtol=1e-6)
    np.testing.assert_allclose(expected, expected_BxT[some], rtol=1e-6)
    # and what the batch adds to the noise is the error of answers that are nearly certain, less what is expected there
    sure = np.asarray(finds_BxT & (aux.routes.choice_BxT == SEMANTIC) & (new_BxT < 0.1))
    beyond_BxT = error_BxT - least_BxT
    assert aux.stats.misses.count == sure.sum() > 0
    np.testing.assert_allclose(aux.stats.misses.square, beyond_BxT[sure].sum(), rtol=1e-6)
    moved = cfg.update(state, aux.stats)._replace(memory=state.memory)
    rate, before = 1 - state.retrievals.decay, state.misses
    seen = before.count + rate * (1 - before.count)
    mean = (before.square + rate * (beyond_BxT[sure].mean() - before.square)) / seen
    np.testing.assert_allclose(stream_memory.noise(moved), max(mean, 0), rtol=1e-5)


def test_what_cannot_be_measured_is_named():
    with pytest.raises(ValueError, match=r"at least 10 tokens, got shapes \(9,\) and \(9,\); give more tokens"):
        calibration.in_bins(np.ones(9), np.ones(9))
    routes = posterior_cram.apply(lively(), CFG.init_state(B), tokens(1)[0], cfg=CFG)[1].routes
    with pytest.raises(ValueError, match="state must be released"):
        calibration.errors(CFG.init_state(B), routes)
