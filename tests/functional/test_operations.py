"""Operations counted from plans, against counts made by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from cram_cases import INPUTS
from layer_cases import LAYERS

from cram_jax import kernels
from cram_jax.functional import operations, working
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig, CRAMRoutes
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.layer import Routes
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.palimpsa import PalimpsaConfig
from cram_jax.functional.routing import RoutingConfig
from cram_jax.functional.working import WorkingConfig

CFG = CRAMConfig(
    D=8,
    F=16,
    episodic=EpisodicConfig(heads=2, head_dim=4, memory=2),
    routing=RoutingConfig(features=INPUTS),
)
ATTENDED = np.array([[0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
KEPT = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], bool)
SHAPE = ATTENDED.shape
# A row or a slot: two projections between 8 and 2 x 4 numbers. A pair: two products of 4 in 2 heads.
ROW, PAIR = 2 * 8 * 8 * 2, 2 * 2 * 4 * 2


def routes(attended=ATTENDED, kept=KEPT) -> CRAMRoutes:
    none = jnp.zeros(attended.shape)
    return CRAMRoutes(none.astype(int), jnp.asarray(attended), none.astype(bool), jnp.asarray(kept), none, none, none)


def test_work_is_what_the_plan_holds():
    plan = kernels.make_plan(jnp.asarray(ATTENDED), kept_BxT=jnp.asarray(KEPT), memory=2)
    # Position 1 sees nothing; 3 sees two keys; 4 sees the last two of three. The second sequence reads nothing.
    assert [float(x) for x in operations.plan_work(plan, SHAPE)] == [12, 2, 3, 4]


def test_attention_is_paid_for_rows_slots_and_pairs_only():
    nobody, idle = CFG.operations(SHAPE, routes(np.zeros_like(ATTENDED)), False)
    assert nobody == 0
    attention, total = CFG.operations(SHAPE, routes(), False)
    assert attention == (2 + 3) * ROW + 4 * PAIR == total - idle


def test_training_repeats_the_plan_and_distils_its_rows():
    # Three products for one, and in buckets the forward pass once more; weights are computed once more, too
    attention, total = CFG.operations(SHAPE, routes(), True)
    assert attention == 4 * (2 + 3) * ROW + 4.5 * 4 * PAIR
    _, idle = CFG.operations(SHAPE, routes(np.zeros_like(ATTENDED)), False)
    distilled = 3 * 2 * (2 * 128 * (8 + 8))  # of 2 rows, by a memory of 128 hidden units
    assert total - attention == 3 * idle + distilled


@pytest.mark.parametrize("body", working.BODIES)
def test_a_token_that_nothing_is_saved_of_pays_for_memories_heads_and_networks(body):
    cfg = dataclasses.replace(CFG, working=WorkingConfig(body=body, width=32))
    _, idle = cfg.operations(SHAPE, routes(np.zeros_like(ATTENDED)), False)
    # Semantic memory, familiarity, router (8 + 4 features), write gate (8 + 1), feed-forward, codes of the next token
    networks = 128 * (8 + 8) + 64 * (8 + 1) + 128 * (12 + 3) + 32 * (9 + 1) + 16 * (8 + 8) + 8 * 16
    assert idle == 12 * (2 * networks + working.operations(8, cfg.working))


@pytest.mark.parametrize(
    ("body", "multiply_adds", "state"),
    [
        ("ct_ode", 8 * 32 + 2 * 32 * 32 + 32 * 8, 0),  # W2 and W_o, and W1 in all steps but the first
        ("gated_scan", 3 * 8 * 32 + 32 * 8, 0),  # decay, input and gate, and the output
        # 2 heads: decay, write; query and key of 16; values, gate and output; 32 x 16 numbers
        ("ssd", 8 * (2 + 2 + 2 * 32) + 3 * 8 * 32, 5 * 32 * 16),
        ("palimpsa", 8 * (2 + 2 + 2 * 32) + 3 * 8 * 32 + 8 * (8 + 32), 10 * 32 * 16),
    ],
)
def test_a_working_memory_pays_for_its_products_and_state(body, multiply_adds, state):
    assert working.operations(8, WorkingConfig(body=body, width=32, steps=3)) == 2 * multiply_adds + state


def test_a_transformer_pays_for_all_pairs():
    attention, total = AttentionConfig(D=8, F=16, heads=2, head_dim=4).operations((3, 10), (), False)
    assert attention == 3 * 10 * 2 * ROW + 3 * 55 * PAIR
    assert total - attention == 3 * 10 * 4 * 8 * 16


def test_seqboat_pays_for_the_tokens_that_chose():
    cfg = LAYERS["seqboat"]
    attended = jnp.asarray(ATTENDED)
    attention, total = cfg.operations(SHAPE, Routes(attended, attended, attended), False)
    # The second token to attend sees two, the third three; their own among them
    assert attention == (3 + 3) * ROW + (1 + 2 + 3) * PAIR
    assert total - attention == 12 * (working.operations(8, cfg.working) + 4 * 8 + 4 * 8 * 16)


def test_a_recurrent_layer_pays_for_projections_and_state():
    token = lambda cfg: cfg.operations((1, 1), (), False).total
    # Of 8 numbers: 8 (z), 8 + 2 x 3 (x, B, C) and 2 (dt), and 8 back to 8; a convolution of 4 over 14 channels; 8 x 3
    # numbers of state, decayed (1), written (2) and read (2)
    cfg = Mamba2Config(D=8, heads=2, head_dim=4, state=3)
    assert token(cfg) == 2 * 8 * (24 + 8) + 2 * 4 * 14 + 5 * 24
    # An importance: down from 8 to 2 and up to 8, and twice the state
    meta = Mamba2Config(D=8, heads=2, head_dim=4, state=3, rank=2)
    assert token(meta) == token(cfg) + 2 * 2 * (8 + 8) + 5 * 24
    # Queries, keys (6 each) and values (8), dt and write (2 each), gate (8), 8 back to 8, and a network of 3 x 8 x 5
    block = PalimpsaConfig(D=8, F=5, heads=2, key_dim=3, value_dim=4, rank=0)
    assert token(block) == 2 * 8 * (20 + 4 + 8 + 8) + 2 * 3 * 8 * 5 + 2 * 4 * 20 + 5 * 24
    # All tokens alike, and three times as much in training
    assert block.operations((3, 10), (), True) == (0, 90 * token(block))
