"""The smallest MQAR run, for several files of tests."""

import os

SMALLEST = [
    "--config.model=mamba2", "--config.mamba2.D=32", "--config.mamba2.heads=2", "--config.mamba2.groups=2",
    "--config.data.vocabulary=8", "--config.data.pairs=2", "--config.run.length=8", "--config.run.steps=100",
    "--config.run.log_every=100", "--config.run.checkpoint_every=100", "--config.run.held_out_tokens=4096",
    "--config.run.final_tokens=4096", "--config.optimizer.learning_rate=1e-2", "--config.optimizer.warmup=10",
]  # fmt: skip


def environment() -> dict[str, str]:
    """Of a command."""
    return {**os.environ, "JAX_PLATFORMS": "cpu"}
