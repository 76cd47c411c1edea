"""What makes Jamba Jamba and SeqBoat SeqBoat: the ratio of layers, and tokens that are really passed over."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.analysis import accounting
from cram_jax.functional import jamba, seqboat
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.jamba import JambaConfig
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.seqboat import ATTEND, PASS, SeqBoatConfig
from cram_jax.functional.working_memory import WorkingConfig

B, T, D = 2, 48, 8
JAMBA = JambaConfig(
    mamba=Mamba2Config(D=D, heads=2, head_dim=4, state=3),
    attention=AttentionConfig(D=D, F=16, heads=2, head_dim=4, context=T),
)
SEQBOAT = SeqBoatConfig(
    AttentionConfig(D=D, F=16, heads=2, head_dim=4), working=WorkingConfig(body="gated_scan", width=8)
)


def tokens(seed=0):
    return jax.random.normal(jax.random.key(seed), (B, T, D))


def test_jamba_has_seven_recurrent_layers_to_one_of_attention():
    params = jamba.init(jax.random.key(0), JAMBA)
    assert params.mamba.norm_D.shape == (7, D) and params.attention.norm_D.shape == (D,)
    # Its attention costs what one layer's does, and all it carries that grows with the context is one layer's
    ours = accounting.executed(JAMBA, 1, (), (B, T), False)["attention_flops"][0]
    assert ours == accounting.executed(JAMBA.attention, 1, (), (B, T), False)["attention_flops"][0]
    recurrent = accounting.executed(JAMBA.mamba, 7, (), (B, T), False)["total_flops"][0]
    dense = accounting.executed(JAMBA.attention, 1, (), (B, T), False)["total_flops"][0]
    np.testing.assert_allclose(
        accounting.executed(JAMBA, 1, (), (B, T), False)["total_flops"][0], recurrent + dense, rtol=1e-6
    )


def test_jambas_attention_stands_where_it_is_asked_to():
    # An attention layer of zeros passes its input on: then the order of what is left does not depend on its place
    params = jamba.init(jax.random.key(0), JAMBA)
    silent = params._replace(attention=jax.tree.map(jnp.zeros_like, params.attention))
    run = lambda params, before: jamba.apply(
        params, (), tokens(), cfg=JambaConfig(JAMBA.mamba, JAMBA.attention, 7, before)
    )[0]
    np.testing.assert_array_equal(run(silent, 0), run(silent, 7))
    assert jnp.max(jnp.abs(run(params, 0) - run(params, 7))) > 1e-2


def test_wrong_settings_of_jamba_are_named():
    with pytest.raises(ValueError, match=r"mamba.D and attention.D must agree, got 64 and 32"):
        JambaConfig(attention=AttentionConfig(D=32))
    with pytest.raises(ValueError, match=r"before must be from 0 to recurrent=7, got 8"):
        JambaConfig(before=8)


def choosing(params, bias):
    """Parameters whose choice follows the sign of one coordinate of the recurrent memory's output, and a push."""
    choice_Dx2 = jnp.zeros((D, 2)).at[0, ATTEND].set(1.0).at[0, PASS].set(-1.0) * bias
    return params._replace(choice_Dx2=choice_Dx2)


def test_seqboat_drops_tokens():
    params = choosing(seqboat.init(jax.random.key(0), SEQBOAT), 1.0)
    x_BxTxD = tokens()
    y_BxTxD, aux = seqboat.apply(params, (), x_BxTxD, cfg=SEQBOAT)
    attended_BxT = np.asarray(aux.routes.attended_BxT)
    assert 0.2 < attended_BxT.mean() < 0.8
    # What attention computes reaches tokens that chose it, and no others
    other = params._replace(attention=params.attention._replace(o_HxKxD=params.attention.o_HxKxD + 1))
    changed_BxT = np.any(np.asarray(seqboat.apply(other, (), x_BxTxD, cfg=SEQBOAT)[0] != y_BxTxD), axis=-1)
    np.testing.assert_array_equal(changed_BxT, attended_BxT)


def test_seqboats_work_follows_its_choices():
    x_BxTxD, params = tokens(), seqboat.init(jax.random.key(0), SEQBOAT)
    cost = {}
    for name, bias in (("some", 1.0), ("none", 0.0)):  # at 0 both are as likely, and nobody attends
        _, aux = seqboat.apply(choosing(params, bias), (), x_BxTxD, cfg=SEQBOAT)
        routes = jax.tree.map(lambda leaf: leaf[None], aux.routes)
        cost[name] = float(accounting.executed(SEQBOAT, 1, routes, (B, T), False)["attention_flops"][0])
    assert cost["none"] == 0 < cost["some"]


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_seqboat_on_short_lists_equals_the_whole_ones_and_a_stream(share, monkeypatch):
    # Long enough for a rung shorter than the whole, which holds those of the first share and not those of the second
    params, long = choosing(seqboat.init(jax.random.key(0), SEQBOAT), 1.0), 320
    chosen_BxT = jax.random.uniform(jax.random.key(4), (B, long)) < share
    x_BxTxD = jax.random.normal(jax.random.key(3), (B, long, D)).at[..., 0].set(jnp.where(chosen_BxT, 9.0, -9.0))
    loss = lambda p: jnp.sum(jnp.sin(seqboat.apply(p, (), x_BxTxD, cfg=SEQBOAT)[0]))
    both = lambda p: (seqboat.apply(p, (), x_BxTxD, cfg=SEQBOAT), jax.grad(loss)(p) if share < 0.1 else ())
    (y, aux), slope = both(params)
    most = int(jnp.max(jnp.sum(aux.routes.attended_BxT, axis=1)))
    assert 0 < most <= 40 if share < 0.1 else most > 64
    monkeypatch.setattr(seqboat, "BUCKET_SIZES", ((1, 1),))
    jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, atol=2e-5), ((y, aux), slope), both(params))
    step = lambda cache, x_BxD: seqboat.step(params, (), cache, x_BxD, cfg=SEQBOAT)[1::-1]
    _, streamed = jax.lax.scan(step, seqboat.init_cache(SEQBOAT, B), x_BxTxD.swapaxes(0, 1))
    np.testing.assert_allclose(streamed.swapaxes(0, 1), y, atol=2e-5)


def test_seqboats_rule_has_a_gradient():
    params = choosing(seqboat.init(jax.random.key(0), SEQBOAT), 1.0)
    loss = lambda p: jnp.sum(seqboat.apply(p, (), tokens(), cfg=SEQBOAT)[0] ** 2)
    gradient = jax.grad(loss)(params)
    assert np.any(gradient.choice_Dx2 != 0) and gradient.log_temperature != 0


def test_seqboat_remembers_so_many_of_those_that_attended():
    # Given memories of different size, the outputs part where more have attended than the smaller one holds
    params = choosing(seqboat.init(jax.random.key(0), SEQBOAT), 1.0)
    small = dataclasses.replace(SEQBOAT, memory=3)
    y, aux = seqboat.apply(params, (), tokens(), cfg=SEQBOAT)
    y_small, _ = seqboat.apply(params, (), tokens(), cfg=small)
    beyond = np.cumsum(aux.routes.attended_BxT, axis=1) > 3
    differs = np.any(np.abs(np.asarray(y - y_small)) > 1e-6, axis=-1)
    np.testing.assert_array_equal(differs, beyond & np.asarray(aux.routes.attended_BxT))
