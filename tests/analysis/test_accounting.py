"""Operations counted from plans, against counts made by hand."""

import jax.numpy as jnp
import numpy as np

from cram_jax.analysis import accounting
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig, CRAMRoutes
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.palimpsa import PalimpsaConfig

CFG = CRAMConfig(D=8, F=16, episodic=EpisodicConfig(heads=2, head_dim=4, memory=2))
ATTENDED = np.array([[0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
KEPT = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], bool)


def routes(attended=ATTENDED, kept=KEPT) -> CRAMRoutes:
    none = jnp.zeros(attended.shape)
    return CRAMRoutes(none.astype(int), jnp.asarray(attended), none.astype(bool), jnp.asarray(kept), none, none, none)


def test_work_is_what_the_plan_holds():
    # Position 1 sees nothing; 3 sees two keys; 4 sees the last two of three. The second sequence reads nothing.
    done = accounting.work(routes(), CFG)
    assert [float(x) for x in done] == [12, 2, 3, 4]


def test_attention_is_paid_for_rows_slots_and_pairs_only():
    none = routes(np.zeros_like(ATTENDED))
    attention, idle = accounting.flops(CFG, accounting.work(none, CFG))
    assert attention == 0
    attention, total = accounting.flops(CFG, accounting.work(routes(), CFG))
    # A row or a slot: two projections between 8 and 2 x 4 numbers. A pair: two products of 4 in 2 heads.
    assert attention == (2 + 3) * 2 * 8 * 8 * 2 + 4 * 2 * 2 * 8 == total - idle
    training, _ = accounting.flops(CFG, accounting.work(routes(), CFG), train=True)
    assert 3 * attention < training < 6 * attention


def test_a_transformer_pays_for_all_pairs():
    cfg = AttentionConfig(D=8, F=16, heads=2, head_dim=4)
    attention, total = accounting.flops(cfg, accounting.dense_work(3, 10))
    pairs, projections = 3 * 55 * 2 * 2 * (4 + 4), 3 * 10 * 2 * (2 * 8 * 2 * (4 + 4))
    assert attention == pairs + projections
    assert total - attention == 3 * 10 * 4 * 8 * 16


def test_a_recurrent_layer_pays_for_projections_and_state():
    # Of 8 numbers: 8 (z), 8 + 2 x 3 (x, B, C) and 2 (dt), and 8 back to 8; a convolution of 4 over 14 channels; 8 x 3
    # numbers of state, decayed (1), written (2) and read (2)
    cfg = Mamba2Config(D=8, heads=2, head_dim=4, state=3)
    assert accounting.recurrent_flops(cfg) == 2 * 8 * (24 + 8) + 2 * 4 * 14 + 5 * 24
    # An importance: down from 8 to 2 and up to 8, and twice the state
    meta = Mamba2Config(D=8, heads=2, head_dim=4, state=3, rank=2)
    assert accounting.recurrent_flops(meta) == accounting.recurrent_flops(cfg) + 2 * 2 * (8 + 8) + 5 * 24
    # Queries, keys (6 each) and values (8), dt and write (2 each), gate (8), 8 back to 8, and a network of 3 x 8 x 5
    block = PalimpsaConfig(D=8, F=5, heads=2, key_dim=3, value_dim=4, rank=0)
    assert accounting.recurrent_flops(block) == 2 * 8 * (20 + 4 + 8 + 8) + 2 * 3 * 8 * 5 + 2 * 4 * 20 + 5 * 24
