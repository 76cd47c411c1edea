"""Every layer's faces, its block and its mixer, and what their tests share."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cram_cases import INPUTS
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict

from cram_jax.functional import (
    addressed,
    attention,
    blocks,
    consolidation,
    cram,
    layer,
    mamba2,
    objective,
    palimpsa,
    posterior,
    posterior_cram,
    seqboat,
    two_stage,
)
from cram_jax.functional.common import rms_norm
from cram_jax.functional.layer import Layer
from cram_jax.functional.stream_memory import Misses, StreamStats
from cram_jax.layers import linen as linen_faces
from cram_jax.layers import nnx as nnx_faces

B, T, D = 2, 12, 8
NOISE = 5  # seed of the stream "route"
# Of a training step. Gradients reach 1300 here; a rate of 0.1 would make parameters of 130, which amplify rounding.
RATE, PRICE = 1e-3, 0.3

WORKING = cram.WorkingConfig(body="gated_scan", width=8)  # a body that carries a state along the stream
EPISODIC = cram.EpisodicConfig(heads=2, head_dim=4, memory=3, width=4)
ATTENTION = attention.AttentionConfig(D=D, F=8, heads=2, head_dim=4, rotary=True, context=T)
LAYERS = {
    "CRAM": cram.CRAMConfig(
        D=D,
        F=8,
        working=WORKING,
        episodic=EPISODIC,
        semantic=cram.SemanticConfig(rank=8),
        # So many audits that 24 tokens show some.
        routing=cram.RoutingConfig(features=INPUTS, width=8, audit_rate=0.3, evaluation_audit_rate=0.3),
    ),
    "PosteriorCRAM": posterior_cram.PosteriorCRAMConfig(
        D=D,
        F=8,
        working=WORKING,
        episodic=EPISODIC,
        # A ridge so large that solving amplifies little of what two programs round differently
        semantic=posterior.PosteriorConfig(blocks=4, features=16, ridge=0.2),
        routing=two_stage.TwoStageConfig(width=8, need_bias=0.0, audit_rate=0.3, evaluation_audit_rate=0.3),
    ),
    "Attention": ATTENTION,
    "Mamba2": mamba2.Mamba2Config(D=D, heads=2, head_dim=4, state=3, rank=2),
    "Palimpsa": palimpsa.PalimpsaConfig(D=D, F=8, heads=2, key_dim=3, value_dim=4, rank=2),
    "SeqBoat": seqboat.SeqBoatConfig(ATTENTION, memory=3, working=WORKING),
}


class Face(NamedTuple):
    """A class of both modules, and the functions that it must equal."""

    cfg: Layer
    nnx: type[nnx.Module]
    linen: type[nn.Module]
    apply: Callable
    step: Callable
    own: Callable  # the layer's parameters that the face holds


FACES = {name: Face(cfg, getattr(nnx_faces, name), getattr(linen_faces, name), layer.apply, layer.step, lambda p: p)
         for name, cfg in LAYERS.items()}  # fmt: skip
FACES |= {
    f"{name}Mixer": Face(
        cfg,
        getattr(nnx_faces, f"{name}Mixer"),
        getattr(linen_faces, f"{name}Mixer"),
        layer.apply_mixer,
        layer.step_mixer,
        cfg.mixer_params,
    )
    for name, cfg in LAYERS.items()
}


def batch(seed: int = 1):
    """(tokens, gaps, segments); each row holds two sequences."""
    x, gap = jax.random.split(jax.random.key(seed))
    segment_BxT = jnp.broadcast_to(jnp.arange(T) // 7, (B, T))
    return jax.random.normal(x, (B, T, D)), 1 + jax.random.exponential(gap, (B, T)), segment_BxT


@cache
def parameters(face: Face):
    """Parameters off their initial zeros, so that tokens take every route."""
    draw = np.random.default_rng(1)
    moved = lambda leaf: leaf + np.asarray(0.5 * draw.standard_normal(leaf.shape), np.float32)
    params = jax.tree.map(moved, face.own(jax.jit(face.cfg.init)(jax.random.key(0))))
    trusts = lambda params: params._replace(router=params.router._replace(trust=np.float32(0.1)))
    return trusts(params) if _is_posterior(face) else params


def _is_posterior(face: Face) -> bool:
    return isinstance(face.cfg, posterior_cram.PosteriorCRAMConfig)


@cache
def state(face: Face):
    """A released state that has seen retrievals, where the layer has one."""
    if not face.cfg.consolidates:
        return face.cfg.init_state()
    stats = consolidation.ConsolidationStats(jnp.ones(D), jnp.asarray(40.0), jnp.asarray(10.0))
    if not _is_posterior(face):
        return face.cfg.release(face.cfg.update(face.cfg.init_state(), stats))
    # The memory knows the addresses of the first half of the batch
    params, x_NxD = parameters(face), batch()[0][:, : T // 2].reshape(-1, D)
    address = addressed.joined(addressed.addresses(params.episodic, rms_norm(params.norm_D, x_NxD)))
    at = blocks.place(params.episodic.frequencies_ExR, address, face.cfg.semantic.blocks)
    missed = Misses(jnp.asarray(4.0), jnp.asarray(2.0))
    written = blocks.writes(at, jnp.roll(x_NxD, 1, axis=1), jnp.ones(len(x_NxD)), face.cfg.semantic.blocks)
    return face.cfg.update(face.cfg.release(face.cfg.init_state()), StreamStats(stats, missed, written))


def values(variables):
    """The arrays of a tree of NNX variables."""
    return jax.tree.map(lambda v: v[...], variables, is_leaf=lambda v: isinstance(v, nnx.Variable))


def put(variables, arrays) -> None:
    """Writes a tree of arrays into a tree of NNX variables."""
    is_variable = lambda v: isinstance(v, nnx.Variable)
    jax.tree.map(nnx.Variable.set_value, variables, arrays, is_leaf=is_variable)


@cache
def _template(face: Face, route: int | None):
    streams = {} if route is None else {"route": route}
    module = face.nnx(face.cfg, rngs=nnx.Rngs(params=0, **streams))
    put(module.weights, parameters(face))
    put(module.state, state(face))
    return nnx.split(module)


def nnx_module(face: Face, route: int | None = NOISE):
    """The face in NNX with `parameters` and `state`, and with that seed of noise."""
    return nnx.merge(*_template(face, route), copy=True)


def linen_variables(face: Face, params=None, held=None) -> dict:
    """The variables of the face in Linen, by default with `parameters` and `state`."""
    params, held = parameters(face) if params is None else params, state(face) if held is None else held
    variables = {"params": linen_faces.named(params)}
    return variables | ({"consolidation": linen_faces.named(held)} if held else {})


def linen_call(module: nn.Module, variables, *arrays, **more):
    """(tokens, the collection "memory")."""
    y_BxTxD, seen = module.apply(variables, *arrays, mutable=["memory"], **more)
    return y_BxTxD, seen["memory"]


def linen_key(module: nn.Module, variables, stream: str = "route", seed: int = NOISE):
    """The key that a stream gives a module that is called by itself."""
    return nn.apply(lambda module: module.make_rng(stream), module)(variables, rngs={stream: jax.random.key(seed)})


def paths(tree) -> set[str]:
    """Paths of a tree's leaves in nested dictionaries: "router/bias_F"."""
    return {"/".join(map(str, path)) for path in flatten_dict(tree)}


class Step(NamedTuple):
    """What a training step shows."""

    loss: jax.Array
    y_BxTxD: jax.Array
    memory: tuple  # (stats, sums)
    gradient: tuple
    params: tuple
    state: tuple


@partial(jax.jit, static_argnums=0)
def function_step(face: Face, params, held, key) -> Step:
    """A training step with Eq 8 on `batch()`, by the functions alone."""
    x_BxTxD, gap_BxT, segment_BxT = batch()

    def loss(params):
        more = dict(cfg=face.cfg, gap_BxT=gap_BxT, key=key, train=True, segment_BxT=segment_BxT)
        y_BxTxD, aux = face.apply(params, held, x_BxTxD, **more)
        memory = objective.memory_loss(aux.sums, PRICE, objective.ObjectiveConfig())[0] if aux.sums else 0.0
        return jnp.mean(y_BxTxD**2) + memory, (y_BxTxD, (aux.stats, aux.sums))

    (total, (y_BxTxD, memory)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    after = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
    return Step(total, y_BxTxD, memory, gradient, after, face.cfg.update(held, memory[0]))


def same(got, want) -> None:
    """Raises unless the trees are equal to the last bit."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def near(got, want) -> None:
    """Raises unless choices are equal, and numbers differ at most as two programs that XLA fused differently.

    That is a few units in the last place (6e-8) of sums of about 100 terms, each as large as the array's largest
    number: 1e-5 is 20 times as much.
    """

    def check(got, want):
        assert got.dtype == want.dtype
        if jnp.issubdtype(want.dtype, jnp.floating):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(want).max(initial=0.0)))
        else:
            np.testing.assert_array_equal(got, want)

    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(check, got, want)
