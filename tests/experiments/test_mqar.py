"""Settings of the MQAR experiment: its models have states of equal size. test_compare.py trains one of them."""

import jax
import mqar
import pytest
from configs import mqar as mqar_config
from lib import runs

from cram_jax.analysis.accounting import state_bytes


def model(name: str, variant: str = "small", **settings):
    """The stack a config describes, and its run."""
    config = mqar_config.get_config(variant)
    config.model = name
    config[name].update(settings)
    learner, run = mqar.build(config)
    return learner.model, run


def test_states_are_as_large_as_the_config_says():
    carried = lambda name, **settings: state_bytes(model(name, **settings)[0].init_cache(1))
    numbers = 2 * 2 * 4 * 8  # layers, heads, keys, values
    for name in ("gated_linear", "mamba2", "gated_delta"):
        assert carried(name) == 4 * numbers
    # An importance doubles it, and half the keys make it equal again
    assert carried("palimpsa") == carried("metamamba2") == 8 * numbers
    assert carried("palimpsa", key_dim=2) == carried("metamamba2", state=2) == 4 * numbers
    # A transformer carries keys and values of 32 tokens, and where it stands
    assert carried("transformer") == 2 * (4 * 2 * 32 * 64 + 4)


@pytest.mark.parametrize("variant", mqar_config.VARIANTS)
def test_every_model_can_be_built(variant):
    for name in runs.LAYERS.keys() & mqar_config.get_config(variant).keys():
        stack, run = model(name, variant)
        params = jax.eval_shape(stack.init, jax.random.key(0))
        x_BxTxD = jax.ShapeDtypeStruct((run.batch, run.length, stack.D), "float32")
        y_BxTxD, _ = jax.eval_shape(lambda p, x, s=stack: s.apply(p, s.init_state(), x), params, x_BxTxD)
        assert y_BxTxD.shape == x_BxTxD.shape


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="unknown variant 'large'"):
        mqar_config.get_config("large")
