"""The settings of the smallest MQAR run, for several files of tests."""

SMALLEST = {
    "mamba2.D": 32, "mamba2.heads": 2, "mamba2.groups": 2, "data.vocabulary": 8, "run.length": 8, "run.steps": 100,
    "run.log_every": 100, "run.checkpoint_every": 100, "run.held_out_tokens": 4096, "run.final_tokens": 4096,
    "optimizer.learning_rate": 1e-2, "optimizer.warmup": 10,
}  # fmt: skip
