"""The price of attention follows the task loss."""

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.training import controller
from cram_jax.training.controller import PriceConfig

CFG = PriceConfig(start=100, plateau=0.4, top=2.0, ramp=200, tolerance=0.1, smoothing=10.0)


def follow(losses, cfg=CFG):
    """The states after each loss, from step 0 on."""

    def one(state, item):
        state = controller.update(state, item[0], item[1], cfg)
        return state, state

    losses = jnp.asarray(losses, jnp.float32)
    return jax.lax.scan(one, controller.init_price(), (jnp.arange(len(losses)), losses))[1]


def test_a_flat_loss_is_released_at_the_start_and_priced_up_to_the_top():
    states = follow(np.full(500, 0.3))
    assert np.all(~states.released[:100]) and np.all(states.released[100:])
    assert np.all(states.released_step[100:] == 100) and np.all(states.released_step[:100] == -1)
    np.testing.assert_array_equal(states.price[:100], 0)
    # 2.0 in 200 steps: 0.01 a step, then it stays
    np.testing.assert_allclose(states.price[150], 0.5, atol=0.02)
    np.testing.assert_allclose(states.price[320:], 2.0, rtol=1e-6)


def test_a_falling_loss_is_waited_for():
    # exp(-step / 30) falls by far more than the plateau's 40% over the slow mean's 40 steps
    falling = np.exp(-np.arange(250) / 30)
    states = follow(np.concatenate([falling, np.full(150, falling[-1])]))
    assert not states.released[249] and states.released[-1]


def test_a_breach_backs_off_and_recovers():
    # Given a price on its way up, when the loss jumps by three tolerances for 60 steps
    losses = np.full(600, 0.3)
    losses[220:280] += 0.3
    states = follow(losses)
    # Then the price falls while the smoothed loss is in breach, never below 0, and rises again after
    assert states.price[279] < states.price[222]
    assert np.all(np.asarray(states.price) >= 0)
    np.testing.assert_allclose(states.price[-1], 2.0, rtol=1e-6)


def test_the_release_is_never_taken_back():
    states = follow(np.concatenate([np.full(150, 0.3), np.linspace(5, 0, 200)]))
    assert np.all(np.diff(np.asarray(states.released).astype(int)) >= 0)


def test_what_is_tolerated_at_first_is_not_for_ever():
    # Given a loss that stands 0.06 above its best soon after the release, where 0.1 is tolerated
    losses = np.full(1500, 0.3)
    losses[150:] += 0.06
    states = follow(losses)
    # Then the price rises through the ramp, and gives way once 0.1 sqrt(200 / steps since) is below 0.06: 556 steps
    assert states.price[650] == 2.0
    assert states.price[680] < 2.0 and states.price[-1] == 0
