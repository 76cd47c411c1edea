"""The redundancy experiment measures a transformer during training, and does not change the training."""

import jax
import numpy as np
import redundancy
from commands import refused, run
from lib import results

from cram_jax.functional.attention import AttentionConfig
from cram_jax.models.stack import Stack

SMALLEST = {
    "depth": 2, "run.steps": 20, "run.log_every": 10, "run.length": 32, "run.batch": 8, "run.held_out_tokens": 256,
    "run.final_tokens": 512, "transformer.D": 16, "transformer.F": 16, "transformer.heads": 2,
    "transformer.head_dim": 8, "redundancy.at": "(0,10,20)", "redundancy.tokens": 1024,
}  # fmt: skip


def test_each_look_is_kept_and_a_stopped_run_goes_on(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text("alpha beta gamma delta " * 200)
    at = tmp_path / "run"
    flags = ("redundancy", f"--files={tmp_path}/*.txt", f"--workdir={at}")
    assert "R squared" in run(*flags, **SMALLEST)
    first = results.load("run", tmp_path)["data"]
    assert [look["step"] for look in first["looks"]] == [0, 10, 20]
    for look in first["looks"]:
        assert len(look["layers"]) == 2 and np.shape(look["heads"]) == (2, 2)
        np.testing.assert_allclose(look["mean"], np.mean([layer["mean"] for layer in look["layers"]]))
        assert look["layers"][0]["tokens"] == 512  # half of them fit the probe
    assert first["looks"][0]["bits_per_byte"] > first["looks"][2]["bits_per_byte"]
    assert (at / "figure.png").stat().st_size > 10_000
    (at / "look_20.json").unlink()
    run(*flags, **SMALLEST)
    assert results.load("run", tmp_path)["data"]["looks"] == first["looks"]
    said = refused(*flags, **SMALLEST | {"redundancy.at": "(0,30)"})
    assert "must go up to config.run.steps=20" in said


def test_what_is_looked_at_is_what_the_model_computes():
    layer = AttentionConfig(D=16, F=16, heads=2, head_dim=8, rotary=True)
    for stack in (Stack((layer,), 2), Stack((layer, layer))):
        params, x_BxTxD = stack.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (2, 20, 16))
        y_BxTxD, seen = jax.jit(lambda params, x: redundancy.look(stack, params, x))(params, x_BxTxD)  # noqa: B023
        expected_BxTxD, _ = jax.jit(stack.apply)(params, stack.init_state(), x_BxTxD)
        np.testing.assert_allclose(y_BxTxD, expected_BxTxD, atol=1e-5)
        assert len(seen) == 2 and seen[0][2].shape == (2, 20, 2, 8)
