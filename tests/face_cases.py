"""Families of layers with three faces, and what their tests share."""

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from cram_jax.functional import attention, consolidation, cram, mamba2, objective, palimpsa
from cram_jax.layers import linen as linen_faces
from cram_jax.layers import nnx as nnx_faces

B, T, D = 2, 12, 8
NOISE = 5  # seed of the stream "route"


class Family(NamedTuple):
    functional: ModuleType
    cfg: Any
    nnx: type[nnx.Module]
    linen: type[nn.Module]


FAMILIES = {
    "cram": Family(
        cram,
        cram.CRAMConfig(
            D=D,
            F=8,
            working=cram.WorkingConfig(body="gated_scan", width=8),  # the body that carries a state along the stream
            episodic=cram.EpisodicConfig(heads=2, head_dim=4, memory=3, width=4),
            semantic=cram.SemanticConfig(rank=8),
            routing=cram.RoutingConfig(
                width=8, audit_rate=0.3, evaluation_audit_rate=0.3
            ),  # so that 24 tokens show some
        ),
        nnx_faces.CRAM,
        linen_faces.CRAM,
    ),
    "attention": Family(
        attention,
        attention.AttentionConfig(D=D, F=8, heads=2, head_dim=4, rotary=True, context=T),
        nnx_faces.Attention,
        linen_faces.Attention,
    ),
    "metamamba2": Family(
        mamba2,
        mamba2.Mamba2Config(D=D, heads=2, head_dim=4, state=3, rank=2),
        nnx_faces.Mamba2,
        linen_faces.Mamba2,
    ),
    "palimpsa": Family(
        palimpsa,
        palimpsa.PalimpsaConfig(D=D, F=8, heads=2, key_dim=3, value_dim=4, rank=2),
        nnx_faces.Palimpsa,
        linen_faces.Palimpsa,
    ),
}


def parameters(family: Family, key=0):
    """Parameters off their initial zeros, so that tokens take every route."""
    params = family.functional.init(jax.random.key(key), family.cfg)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(key + 1), len(leaves))
    return tree.unflatten([p + 0.5 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)])


def initial_state(family: Family):
    """A released state that has seen retrievals, where the layer has one."""
    state = family.functional.init_state(family.cfg)
    if not state:
        return state
    stats = consolidation.ConsolidationStats(jnp.ones(D), jnp.asarray(40.0), jnp.asarray(10.0))
    return consolidation.release(consolidation.update(state, stats))


def is_variable(node) -> bool:
    return isinstance(node, nnx.Variable)


def nnx_layer(family: Family, params, state) -> nnx.Module:
    layer = family.nnx(family.cfg, rngs=nnx.Rngs(0))
    jax.tree.map(nnx.Variable.set_value, (layer.params, layer.state), (params, state), is_leaf=is_variable)
    return layer


def nnx_values(variables):
    return jax.tree.map(lambda variable: variable[...], variables, is_leaf=is_variable)


def linen_variables(params, state):
    return {"params": {"layer": params}} | ({"consolidation": {"state": state}} if state else {})


def linen_key(layer: nn.Module, variables):
    """What "route" gives the layer; Flax folds the module's path into it."""
    rngs = {"route": jax.random.key(NOISE)}
    return nn.apply(lambda layer: layer.make_rng("route"), layer)(variables, rngs=rngs)


def loss_of(y_BxTxD, aux):
    """A task's loss and, where the layer has memories, all of Eq 8."""
    task = jnp.mean(y_BxTxD**2)
    return task + objective.memory_loss(aux.sums, jnp.asarray(0.3), objective.ObjectiveConfig())[0] if aux else task


def assert_near(got, want):
    """Choices are equal; numbers differ at most as one program differs from another that XLA fused otherwise.

    That is a few units in the last place (6e-8) of sums of about 100 terms of size 1: 1e-5 is 20 times as much.
    """

    def check(got, want):
        assert got.dtype == want.dtype
        if jnp.issubdtype(want.dtype, jnp.floating):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(got, want)

    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(check, got, want)
