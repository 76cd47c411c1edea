"""The layers of `cram_jax.functional` as Flax modules: `nnx` and `linen`, for use in a network of one's own."""
