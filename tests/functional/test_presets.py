"""Named settings of CRAM: those of the experiments, at any width, and they train."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from configs import mqar, srcd, text

from cram_jax.functional import cram, objective, presets
from cram_jax.training.settings import from_config

PRESETS = (presets.text, presets.irregular, presets.recall)


@pytest.mark.parametrize(
    ("preset", "D", "config", "but"),
    [
        (presets.irregular, 64, srcd.get_config("small"), {}),
        (presets.irregular, 64, srcd.get_config("paper"), {}),
        (presets.recall, 64, mqar.get_config("small"), {}),
        (presets.text, 96, text.get_config("small"), {"heads": 2}),
    ],
    ids=["srcd small", "srcd paper", "mqar", "text"],
)
def test_presets_are_what_the_experiments_use(preset, D, config, but):
    found = from_config(cram.CRAMConfig(), config.cram)
    cfg = preset(D, memory=config.cram.episodic.memory)
    assert dataclasses.replace(cfg, episodic=dataclasses.replace(cfg.episodic, **but)) == found
    # And the price that they name is the experiment's
    assert f"`top={config.price.top:g}`" in preset.__doc__


def test_defaults_are_those_of_events_at_width_64():
    assert presets.irregular(64) == cram.CRAMConfig()


@pytest.mark.parametrize("preset", PRESETS)
def test_sizes_grow_with_the_width(preset):
    params = []
    for D in (32, 64, 160, 1024):
        cfg = preset(D)
        assert cfg.episodic.heads * cfg.episodic.head_dim == cfg.working.width == D
        assert 2 * D <= cfg.F <= 3 * D and D <= cfg.semantic.rank <= 2 * D
        shapes = jax.eval_shape(cfg.init, jax.random.key(0))
        params.append(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / D**2)
        y = jax.eval_shape(
            lambda params, cfg=cfg, D=D: cram.apply(params, cfg.init_state(), jnp.ones((1, 8, D)), cfg=cfg)[0], shapes
        )
        assert y.shape == (1, 8, D)
    # Parameters grow with the square of the width; at small widths the networks that keep their size stand out.
    assert params == sorted(params, reverse=True) and 10 < params[-1] < 20


@pytest.mark.parametrize("D", [0, 16, 48])
def test_other_widths_are_refused(D):
    with pytest.raises(ValueError, match=rf"D must be a multiple of 32.*got {D}"):
        presets.text(D)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train_before_and_after_the_release(preset):
    # Given tokens of which each is to be said two places later
    cfg, optimizer = preset(32, memory=8), optax.adam(1e-2)
    params, held = jax.jit(cfg.init)(jax.random.key(0)), cfg.init_state()
    opt_state = optimizer.init(params)

    @jax.jit
    def train(params, held, opt_state, step):
        key, data = jax.random.split(jax.random.fold_in(jax.random.key(1), step))
        x_BxTxD = jax.random.normal(data, (4, 12, 32))

        def loss(params):
            y_BxTxD, aux = cram.apply(params, held, x_BxTxD, cfg=cfg, key=key, train=True)
            task = jnp.mean((y_BxTxD[:, 2:] - x_BxTxD[:, :-2]) ** 2)
            memory, _ = objective.memory_loss(aux.sums, 0.1 * held.released, objective.ObjectiveConfig())
            return task + memory, (task, aux.stats, jnp.mean(aux.routes.attended_BxT))

        (total, (task, stats, attended)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        change, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, change), cfg.update(held, stats), opt_state, (total, task, attended)

    # When it trains, is released and trains on
    seen = []
    for step in range(30):
        held = cfg.release(held, step >= 20)
        params, held, opt_state, report = train(params, held, opt_state, step)
        seen.append([float(one) for one in report])
    totals, tasks, attended = zip(*seen, strict=True)

    # Then the loss falls, every token attends until the release, and fewer do after it
    assert all(map(jnp.isfinite, totals))
    assert max(tasks[15:20]) < min(tasks[:5])
    assert min(attended[:20]) == 1 and max(attended[20:]) < 1
