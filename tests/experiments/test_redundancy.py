"""Redundancy as a person measures it: on a transformer in training, which it does not disturb."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from lib import results

ROOT = Path(__file__).parents[2]
SMALLEST = [
    "--config.depth=2", "--config.run.steps=20", "--config.run.log_every=10", "--config.run.length=32",
    "--config.run.batch=8", "--config.run.held_out_tokens=256", "--config.run.final_tokens=512",
    "--config.transformer.D=16", "--config.transformer.F=16", "--config.transformer.heads=2",
    "--config.transformer.head_dim=8", "--config.redundancy.at=(0,10,20)", "--config.redundancy.tokens=1024",
]  # fmt: skip


def run(at, *more) -> subprocess.CompletedProcess:
    for i in range(4):
        (at / f"{i}.txt").write_text("alpha beta gamma delta " * 200)
    command = [sys.executable, "experiments/redundancy.py", *SMALLEST, f"--files={at}/*.txt", f"--results={at}/out"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [*command, f"--workdir={at}/run", *more], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )


def test_each_look_is_kept_and_a_stopped_run_goes_on(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    first = results.load("out", tmp_path)["data"]
    assert [look["step"] for look in first["looks"]] == [0, 10, 20]
    for look in first["looks"]:
        assert len(look["layers"]) == 2 and np.shape(look["heads"]) == (2, 2)
        np.testing.assert_allclose(look["mean"], np.mean([layer["mean"] for layer in look["layers"]]))
        assert look["layers"][0]["tokens"] == 512  # half of them fit the probe
    assert first["looks"][0]["bits_per_byte"] > first["looks"][2]["bits_per_byte"]
    assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000
    (tmp_path / "run" / "look_20.json").unlink()
    again = run(tmp_path)
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
    assert results.load("out", tmp_path)["data"]["looks"] == first["looks"]
    wrong = run(tmp_path, "--config.redundancy.at=(0,30)")
    assert wrong.returncode != 0 and "must go up to config.run.steps=20" in wrong.stderr + wrong.stdout


def test_what_is_looked_at_is_what_the_model_computes():
    code = """
import sys
sys.argv = ["experiments/text.py"]
import jax, numpy as np, redundancy
from cram_jax.functional.attention import AttentionConfig
from cram_jax.models.stack import Stack
stack = Stack(AttentionConfig(D=16, F=16, heads=2, head_dim=8, rotary=True), 2)
params, x = stack.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (2, 20, 16))
y, seen = redundancy.look(stack, params, x)
np.testing.assert_allclose(y, stack.apply(params, (), x)[0], atol=1e-5)
assert len(seen) == 2 and seen[0][2].shape == (2, 20, 2, 8)
"""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}/experiments"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
