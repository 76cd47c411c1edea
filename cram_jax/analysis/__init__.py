"""Measurements on trained networks, and baselines: counts, fits and detectors."""
