"""Code that the experiments share."""

import os

# Before jax is imported. BLAS's own threads wait in busy loops, and so take the cores from XLA's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
