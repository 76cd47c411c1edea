"""Code that the experiments share."""

import os

# Before jax is imported. BLAS's own threads fight with XLA's for the cores: they wait in busy loops, and where the
# machine has other work, a factorisation takes three times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
