"""Tasks: where batches come from, and how a model's outputs are scored. A batch is a pure function of (seed, index)."""
