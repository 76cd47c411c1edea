"""The measurements of experiments/bench.py, one file for each."""
