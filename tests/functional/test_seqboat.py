"""What makes SeqBoat SeqBoat: tokens that are really passed over."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.functional import seqboat
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.seqboat import ATTEND, PASS, SeqBoatConfig
from cram_jax.functional.working import WorkingConfig

B, T, D = 2, 48, 8
SEQBOAT = SeqBoatConfig(
    AttentionConfig(D=D, F=16, heads=2, head_dim=4), working=WorkingConfig(body="gated_scan", width=8)
)


def tokens(seed=0):
    return jax.random.normal(jax.random.key(seed), (B, T, D))


@jax.jit
def run(params, x_BxTxD):
    return seqboat.apply(params, (), x_BxTxD, cfg=SEQBOAT)


def choosing(params, bias):
    """Parameters whose choice follows the sign of one coordinate of the recurrent memory's output, and a push."""
    choice_Dx2 = jnp.zeros((D, 2)).at[0, ATTEND].set(1.0).at[0, PASS].set(-1.0) * bias
    return params._replace(choice_Dx2=choice_Dx2)


def test_seqboat_drops_tokens():
    params = choosing(seqboat.init(jax.random.key(0), SEQBOAT), 1.0)
    x_BxTxD = tokens()
    y_BxTxD, aux = run(params, x_BxTxD)
    attended_BxT = np.asarray(aux.routes.attended_BxT)
    assert 0.2 < attended_BxT.mean() < 0.8
    # What attention computes reaches tokens that chose it, and no others
    other = params._replace(attention=params.attention._replace(o_HxKxD=params.attention.o_HxKxD + 1))
    changed_BxT = np.any(np.asarray(run(other, x_BxTxD)[0] != y_BxTxD), axis=-1)
    np.testing.assert_array_equal(changed_BxT, attended_BxT)


def test_seqboats_work_follows_its_choices():
    x_BxTxD, params = tokens(), seqboat.init(jax.random.key(0), SEQBOAT)
    cost = {}
    for name, bias in (("some", 1.0), ("none", 0.0)):  # at 0 both are as likely, and nobody attends
        _, aux = run(choosing(params, bias), x_BxTxD)
        cost[name] = float(SEQBOAT.operations((B, T), aux.routes, False).attention)
    assert cost["none"] == 0 < cost["some"]


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_seqboat_on_short_lists_equals_the_whole_ones_and_a_stream(share, monkeypatch):
    # Long enough for a bucket smaller than the whole, which holds those of the first share and not those of the second
    params, long = choosing(seqboat.init(jax.random.key(0), SEQBOAT), 1.0), 320
    chosen_BxT = jax.random.uniform(jax.random.key(4), (B, long)) < share
    x_BxTxD = jax.random.normal(jax.random.key(3), (B, long, D)).at[..., 0].set(jnp.where(chosen_BxT, 9.0, -9.0))

    def loss(params):
        y_BxTxD, aux = seqboat.apply(params, (), x_BxTxD, cfg=SEQBOAT)
        return jnp.sum(jnp.sin(y_BxTxD)), (y_BxTxD, aux)

    both = lambda: jax.jit(jax.grad(loss, has_aux=True) if share < 0.1 else loss)(params)
    slope, (y, aux) = both()
    most = int(jnp.max(jnp.sum(aux.routes.attended_BxT, axis=1)))
    assert 0 < most <= 40 if share < 0.1 else most > 64
    monkeypatch.setattr(seqboat, "BUCKET_SIZES", ((1, 1),))
    jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-5, atol=2e-5), (slope, (y, aux)), both())
    step = lambda cache, x_BxD: seqboat.step(params, (), cache, x_BxD, cfg=SEQBOAT)[1::-1]
    _, streamed = jax.lax.scan(step, seqboat.init_cache(SEQBOAT, B), x_BxTxD.swapaxes(0, 1))
    np.testing.assert_allclose(streamed.swapaxes(0, 1), y, atol=2e-5)


def test_seqboats_rule_has_a_gradient():
    params = choosing(seqboat.init(jax.random.key(0), SEQBOAT), 1.0)
    loss = lambda p: jnp.sum(seqboat.apply(p, (), tokens(), cfg=SEQBOAT)[0] ** 2)
    gradient = jax.jit(jax.grad(loss))(params)
    assert np.any(gradient.choice_Dx2 != 0) and gradient.log_temperature != 0


def test_seqboat_remembers_so_many_of_those_that_attended():
    # Given memories of different size, the outputs part where more have attended than the smaller one holds
    params = choosing(seqboat.init(jax.random.key(0), SEQBOAT), 1.0)
    small = dataclasses.replace(SEQBOAT, memory=3)
    y, aux = run(params, tokens())
    y_small, _ = jax.jit(lambda p, x: seqboat.apply(p, (), x, cfg=small))(params, tokens())
    beyond = np.cumsum(aux.routes.attended_BxT, axis=1) > 3
    differs = np.any(np.abs(np.asarray(y - y_small)) > 1e-6, axis=-1)
    np.testing.assert_array_equal(differs, beyond & np.asarray(aux.routes.attended_BxT))
