"""Computes a result from other results, or from a finished run. It trains nothing.

python experiments/derive.py --name=exposure

| name | what is computed | from |
|---|---|---|
| exposure | Eq 14: how the probability to attend falls with exposure | results recurrence, ablations, table_1 |
| streams_exposure | the same for fixed models in fresh streams, slow and fast | result streams_speeds |
| theorems | Theorems 1 to 3, compared with measurements | results static, recurrence |
| plasticity | importance, learning rate and memory of a trained Palimpsa | --run, of experiments/mqar.py |

Result and figure are written to a folder of that name below --results.
"""

from pathlib import Path

import mqar
from lib import exposure, gather, launch, plasticity, summary, theorems, trained
from lib.figures import catalogue

NOTE = "Computed from runs of several commits, which the results it comes from name."
# By name: (where its question and its table are, what computes it, from which results)
FROM_RESULTS = {
    "exposure": (exposure, exposure.compute, exposure.FROM),
    "streams_exposure": (exposure, exposure.in_streams, ("streams_speeds",)),
    "theorems": (theorems, theorems.compute, theorems.FROM),
}


def from_results(name: str) -> dict:
    """Computes the result of that name from other results."""
    module, compute, sources = FROM_RESULTS[name]
    made = gather.made_here([NOTE], **{"from": list(sources)})
    command = f"python experiments/derive.py --name={name}"
    return gather.result(name, module.QUESTION, command, made, data=compute())


def from_run(workdir: Path) -> dict:
    """Computes the result `plasticity` from a finished run."""
    found = trained.load(workdir, mqar.build, make=plasticity.MAKE)
    made = gather.made_by([found.summary])
    made["commits"] = sorted({*made["commits"], *gather.made_here()["commits"]})  # also the commit of this analysis
    command = f"{plasticity.MAKE} && python experiments/derive.py --name=plasticity"
    data = plasticity.compute(found)
    return gather.result("plasticity", plasticity.QUESTION, command, made, config=found.config, data=data)


def main(args) -> None:
    result = from_results(args.name) if args.name in FROM_RESULTS else from_run(Path(args.run))
    if args.name in FROM_RESULTS:
        summary.show(result["question"], FROM_RESULTS[args.name][0].table(result["data"]))
    catalogue.leave(result, Path(args.results) / args.name)


if __name__ == "__main__":
    launch.run(
        main,
        takes="10 seconds",
        name=launch.Flag("exposure", "The result to compute.", (*FROM_RESULTS, "plasticity")),
        run=launch.Flag("runs/palimpsa", "Finished run of experiments/mqar.py, for plasticity."),
        results="runs",
    )
