"""The smallest CRAM on SRCD, for several files of tests: they run in one process, which compiles it once."""

SMALLEST = {
    "depth": 1, "cram.D": 16, "cram.F": 16, "cram.episodic.memory": 8, "run.length": 32, "run.batch": 4,
    "run.held_out_tokens": 256, "run.final_tokens": 2048, "optimizer.steps": 200, "price.start": 5, "price.ramp": 20,
    "price.plateau": 1.0,
}  # fmt: skip
