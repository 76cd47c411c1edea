"""Data: pure samplers and readers, each a function of (seed, step)."""
