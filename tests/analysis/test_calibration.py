"""Expected and measured errors of recall, where the truth is known, and in a layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posterior_cases import CFG, B, T, lively, tokens, visited, widened

from cram_jax.analysis import calibration
from cram_jax.functional import addressed, episodic, posterior
from cram_jax.functional.common import rms_norm
from cram_jax.functional.posterior import PosteriorConfig


@pytest.mark.parametrize("noisier", [1.0, 3.0])
def test_a_memory_of_what_the_prior_draws_is_calibrated(x64, noisier):
    # Given values W phi with W ~ N(0, 4), and noise of the variance that goes with it, 4 lambda / w, or nine times that
    cfg, streams, count, E = PosteriorConfig(features=64, ridge=0.05), 300, 40, 12
    keys = jax.random.split(jax.random.key(3), 4)
    address = jax.random.normal(keys[0], (streams, 3 * count, E))
    address = address / jnp.linalg.norm(address, axis=-1, keepdims=True)
    asked = posterior.features(posterior.frequencies(jax.random.key(9), E, cfg), address)
    true = 2 * asked @ jax.random.normal(keys[1], (streams, cfg.features, 1))
    weight = 10 ** jax.random.uniform(keys[2], (streams, count), minval=-2.0, maxval=1.0)
    noise = 2 * noisier * jax.random.normal(keys[3], (streams, count, 1)) * (cfg.ridge / weight)[..., None] ** 0.5
    sums = posterior.writes(asked[:, :count], true[:, :count] + noise, weight)
    memory = posterior.update(posterior.init(1, cfg, (streams,)), sums)
    # When the recalls at written and at new addresses are compared with what is true, whose mean square is 4
    u, error = posterior.uncertainty(memory, asked), jnp.sum((posterior.recall(memory, asked) - true) ** 2, -1)
    found = calibration.in_bins(u.ravel(), error.ravel(), square=4.0)
    # Then the errors are those expected: 3600 draws a bin, a deviation of 2.4%. Or larger, the more so the more was
    # written, because noise was taken for values
    assert list(found.count) == [3600] * 10 and np.all(np.diff(found.u) > 0)
    ratio = found.measured / found.expected
    if noisier == 1:
        np.testing.assert_allclose(ratio, 1, rtol=0.12)
    else:
        assert ratio[0] > 2 and np.all(ratio[:5] > 1.2)


def test_a_layer_is_measured_where_it_would_retrieve(x64):
    # Given a layer whose memory has learned in three visits
    params, cfg = widened(lively()), CFG
    state = visited(params, widened(cfg.release(cfg.init_state(B))), (1, 2, 3))
    x_BxTxD, gap_BxT = map(widened, tokens(4))
    found = calibration.measure(cfg, params, state, x_BxTxD, gap_BxT, bins=4)
    # When recall, uncertainty and retrieval of each token are computed one by one
    own, z_BxTxD = params.episodic, rms_norm(params.norm_D, x_BxTxD)
    phi = posterior.features(own.frequencies_ExR, addressed.joined(addressed.addresses(own, z_BxTxD)))
    writes = episodic.decide_writes(own.write, z_BxTxD, jnp.ones((B, T)), None, cfg=cfg.episodic)
    plan = addressed.plan_reads(jnp.ones((B, T), bool), writes.kept_BxT, None, cfg.episodic.memory)
    r_BxTxD, _ = addressed.read(own, plan, z_BxTxD, writes.read_weight_BxT, cfg=cfg.episodic)
    some = np.asarray(plan.scatter(plan.end_BxC > plan.start_BxC, T))
    error = np.sum((posterior.recall(state.memory, phi) - r_BxTxD) ** 2, -1)[some]
    square = float(state.retrievals.square / state.retrievals.weight)
    want = calibration.in_bins(posterior.uncertainty(state.memory, phi)[some], error, square, bins=4)
    # Then it is the same
    assert sum(found.count) == some.sum() > B * T / 2
    for name in want._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(want, name), rtol=1e-6, err_msg=name)


def test_what_cannot_be_measured_is_named():
    with pytest.raises(ValueError, match=r"at least 10 tokens, got shapes \(9,\) and \(9,\); give more tokens"):
        calibration.in_bins(np.ones(9), np.ones(9), 1.0)
    with pytest.raises(ValueError, match="state must be released"):
        calibration.measure(CFG, (), CFG.init_state(B), jnp.zeros((B, T, CFG.D)))
