"""Computes a result from other results, or from a finished run. Trains nothing.

python experiments/derive.py --name=exposure

| name | what is computed | from |
|---|---|---|
| exposure | Eq 14: the curve by which the chance to attend falls with exposure | results recurrence, ablations, table_1 |
| theorems | Theorems 1 to 3 beside what was measured | results static, recurrence |
| plasticity | importance, learning rate and memory of a trained Palimpsa | --run, of experiments/mqar.py |

Result and figure are left in a folder of that name below --results.
"""

from pathlib import Path

import mqar
from lib import exposure, launch, plasticity, results, summary, theorems, trained
from lib.figures import catalogue

NAMES = {"exposure": exposure, "theorems": theorems, "plasticity": plasticity}


def main(args) -> None:
    launch.quiet()
    of = [trained.load(Path(args.run), mqar.build, make=plasticity.MAKE)] if args.name == "plasticity" else []
    result = NAMES[args.name].derive(*of)
    target = Path(args.results) / args.name
    results.write(target, result)
    summary.show(result["question"], NAMES[args.name].table(result["data"]))
    for draw in catalogue.drawers(args.name, result):
        print(f"figure: {draw(result, target)}")


if __name__ == "__main__":
    launch.run(
        main,
        takes="10 seconds",
        name=launch.Flag("exposure", "The result to compute.", tuple(NAMES)),
        run=launch.Flag("runs/palimpsa", "Finished run of experiments/mqar.py, for plasticity."),
        results=launch.Flag("runs", "Folder for the folders of the results."),
    )
