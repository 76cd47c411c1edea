"""The comparison of language models: equal parameters, a rate chosen on training text, a table and a figure."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from configs import language as language_config
from lib import results

from cram_jax.tasks.text_task import TextTask
from cram_jax.training import experiment

ROOT = Path(__file__).parents[2]
SMALLEST = [
    "--config.mamba2.D=16", "--config.mamba2.heads=2", "--config.mamba2.head_dim=8", "--config.mamba2.state=4",
    "--config.run.steps=40", "--config.run.log_every=20", "--config.run.checkpoint_every=40", "--config.run.length=32",
    "--config.run.batch=8", "--config.run.held_out_tokens=1024", "--config.run.final_tokens=4096",
    "--config.optimizer.warmup=5", "--rates=1e-2,1e-6",
]  # fmt: skip


def test_models_have_as_many_parameters():
    base = language_config.get_config("small")
    sizes = {}
    for model in base.depths:
        config = language_config.get_config("small")
        config.model, config.depth = model, base.depths[model]
        learner, _ = experiment.build(config, TextTask(()))
        sizes[model] = sum(x.size for x in jax.tree.leaves(jax.eval_shape(learner.model.init, jax.random.key(0))))
    assert max(sizes.values()) < 1.06 * min(sizes.values()), sizes


def test_a_rate_is_chosen_and_the_result_says_nothing_of_the_machines_paths(tmp_path):
    folder, random = tmp_path / "text", np.random.default_rng(0)
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.txt").write_text(" ".join(random.choice(["alpha", "beta", "gamma"], 400)))
    code = (  # of all models one, as if there were no others
        "import language as l; compare = l.grid.compare;"
        "l.grid.compare = lambda train, base, entries, *rest, **how: "
        "compare(train, base, {'mamba2': entries['mamba2']}, *rest, **how);"
        "l.experiment.launch(l.main)"
    )
    command = [sys.executable, "-c", code, "--config=experiments/configs/language.py:small", *SMALLEST]
    command += [f"--runs={tmp_path}/runs", f"--results={tmp_path}/out", f"--files={folder}"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}/experiments"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = results.load("out", tmp_path)
    found = result["entries"]["mamba2"]
    assert str(tmp_path) not in results.text(result)
    # Then the rate that learns is taken: its bits have fallen from the 8 of a guess
    tried = found["chosen"]["training_bits_per_byte"]
    assert found["chosen"]["learning_rate"] == 1e-2 and found["mean"]["bits_per_byte"] < 6 < tried["1e-06"][0]
    (run,), (curve,) = found["runs"], found["curves"]
    assert curve["step"] == [0, 20, 40] and run["parameters"] > 1000
    assert (tmp_path / "out" / "figure.png").stat().st_size > 5000
    assert "n-grams with n = 1, 2, 3" in done.stdout
