"""Numbers of a wrong kind are refused by name: they would be used, and give wrong results."""

import jax.numpy as jnp
import pytest

import kernels

B, T, H, K = 2, 8, 2, 4
MARKS = jnp.ones((B, T), bool)
X = jnp.ones((B, T, H, K))
WHOLE = jnp.ones((B, T, H, K), jnp.int32)
NUMBERS = jnp.ones((B, T), jnp.int32)


SCANNED = {"q_BxTxGxK": X, "k_BxTxGxK": X, "v_BxTxHxV": X}
DECAY = {"log_decay_BxTxH": -X[..., 0]}
SYNAPSES = {"beta_BxTxHxV": X, "dt_BxTxH": X[..., 0], "rate_H": X[0, 0, :, 0], "prior_H": X[0, 0, :, 0]}
CACHE = {"q_BxHxK": X[:, 0], "k_NxSxK": X.reshape(B * H, T, K), "v_NxSxV": X.reshape(B * H, T, K)}


def attend(**given):
    arrays = {"q_BxTxHxK": X, "k_BxTxGxK": X, "v_BxTxGxV": X} | given
    return kernels.skip_attention(*arrays.values(), kernels.make_plan(MARKS))


def ssd(**given):
    return kernels.ssd_scan(**SCANNED | DECAY | given)


def palimpsa(**given):
    return kernels.palimpsa_scan(**SCANNED | SYNAPSES | given)


def cached(**given):
    return kernels.read_cache(**CACHE | {"end_B": jnp.ones(B, jnp.int32)} | given)


@pytest.mark.parametrize(
    ("call", "given", "message"),
    [
        (kernels.make_plan, {"routed_BxT": NUMBERS}, "routed_BxT must be marks, True or False .*, got int32"),
        (kernels.make_plan, {"routed_BxT": MARKS, "kept_BxT": 2 * NUMBERS}, "kept_BxT must be marks.*, got int32"),
        (kernels.make_plan, {"routed_BxT": MARKS, "kept_BxT": 0.4 * MARKS}, "kept_BxT must be marks.*, got float32"),
        (kernels.make_plan, {"routed_BxT": MARKS, "score_BxT": NUMBERS}, "score_BxT must be floating point, got int32"),
        (kernels.make_plan, {"routed_BxT": MARKS, "segment_BxT": 1.0 * MARKS}, "segment_BxT must be integers, got"),
        (attend, {"q_BxTxHxK": WHOLE}, "q_BxTxHxK must be floating point, got int32"),
        (attend, {"k_BxTxGxK": WHOLE}, "k_BxTxGxK must be floating point, got int32"),
        (attend, {"v_BxTxGxV": WHOLE}, "v_BxTxGxV must be floating point, got int32"),
        (ssd, {"q_BxTxGxK": WHOLE}, "q_BxTxGxK must be floating point, got int32"),
        (ssd, {"v_BxTxHxV": WHOLE}, "v_BxTxHxV must be floating point, got int32"),
        (ssd, {"log_decay_BxTxH": -WHOLE[..., 0]}, "log_decay_BxTxH must be floating point, got int32"),
        (ssd, {"segment_BxT": 1.0 * NUMBERS}, "segment_BxT must be integers, got float32"),
        (palimpsa, {"k_BxTxGxK": WHOLE}, "k_BxTxGxK must be floating point, got int32"),
        (palimpsa, {"beta_BxTxHxV": WHOLE}, "beta_BxTxHxV must be floating point, got int32"),
        (palimpsa, {"rate_H": jnp.ones(H, int)}, "rate_H must be floating point, got int32"),
        (palimpsa, {"segment_BxT": MARKS}, "segment_BxT must be integers, got bool"),
        (cached, {"q_BxHxK": WHOLE[:, 0]}, "q_BxHxK must be floating point, got int32"),
        (cached, {"end_B": jnp.ones(B)}, "end_B must be integers, got float32"),
    ],
)
def test_a_wrong_kind_is_named(call, given, message, unchecked):
    with pytest.raises(TypeError, match=message):
        call(**given)
