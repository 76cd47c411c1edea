"""Runs the notebooks again and keeps their outputs: `make notebooks`.

python experiments/notebooks.py [--name=figure_2]

A test (tests/test_notebooks.py) tells which notebooks show other numbers than the committed results hold.
"""

import time

from lib import launch, notebooks


def main(args) -> None:
    for name in args.name or notebooks.names():
        start = time.perf_counter()
        notebooks.execute(name)
        print(f"notebooks/{name}.ipynb: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    launch.run(
        main,
        takes="5 minutes, two CPU cores",
        name=launch.Flag([], "Only this one; all by default. May be repeated.", tuple(notebooks.names())),
    )
