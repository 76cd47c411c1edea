"""Tests that counts of bytes carried from token to token equal counts made by hand."""

import jax.numpy as jnp
import pytest

from cram_jax.analysis.accounting import state_bytes
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.palimpsa import PalimpsaConfig
from cram_jax.functional.working import WorkingConfig
from cram_jax.models.stack import Stack

ATTENTION = AttentionConfig(D=8, F=16, heads=2, head_dim=4, context=10)
MAMBA2 = Mamba2Config(D=8, heads=2, head_dim=4, state=3)


@pytest.mark.parametrize(
    ("layer", "numbers"),
    [
        (ATTENTION, 1 + 2 * 10 * 2 * 4),  # the position; keys and values of 10 tokens in 2 heads
        (MAMBA2, 8 * 3),  # and not the convolution's inputs
        (Mamba2Config(D=8, heads=2, head_dim=4, state=3, rank=2), 2 * 8 * 3),  # with an importance for each
        (PalimpsaConfig(D=8, heads=2, key_dim=3, value_dim=5), 2 * 2 * 3 * 5),
        # The position; 16 numbers of working memory; a buffer of 64 events in 2 heads of 32, and how many it holds
        (CRAMConfig(D=8, working=WorkingConfig(body="gated_scan", width=16)), 1 + 16 + 2 * 64 * 2 * 32 + 1),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_layer_carries_its_state_keys_and_values(layer, numbers):
    assert state_bytes(Stack((layer,), 3).init_cache(1)) == 3 * 4 * numbers


def test_layers_of_a_pattern_add_up_and_half_precision_counts_half():
    alone = [state_bytes(Stack((layer,)).init_cache(2)) for layer in (MAMBA2, ATTENTION)]
    assert state_bytes(Stack((MAMBA2, ATTENTION), 2).init_cache(2)) == 2 * sum(alone)
    half = AttentionConfig(D=8, F=16, heads=2, head_dim=4, context=10, compute_dtype="bfloat16")
    assert state_bytes(Stack((half,)).init_cache(2)) == 4 + 2 * 2 * 10 * 2 * 4 * jnp.bfloat16.dtype.itemsize
