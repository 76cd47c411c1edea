"""Sequence models whose demand for attention falls as they learn."""
