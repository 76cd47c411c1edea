"""Measuring what a trained network did: counting, curves, figures."""
