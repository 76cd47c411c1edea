"""Runs the notebooks and saves them with their outputs: `make notebooks`.

python experiments/notebooks.py [--name=figure_2]

tests/test_notebooks.py fails for notebooks that do not show the numbers of the committed results.
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
        name=launch.Flag([], "Only this notebook; all by default. May be repeated.", tuple(notebooks.names())),
    )
