"""The measurements of experiments/bench.py, a file each."""
