"""Compares models, settings or learning rates: trains all runs of a comparison and gathers them into one result.

python experiments/compare.py --name=ablations                                 # all of it, into runs/ablations
python experiments/compare.py --name=ablations --entry="no price" --seeds=1    # one row: a part, so no result

experiments/configs/comparisons.py defines the comparisons. Each run has its own directory below --runs.
"""

from pathlib import Path

import mqar
import srcd
import text
from configs import comparisons
from lib import gather, grid, launch, summary
from lib.figures import catalogue

MAINS = {"srcd": srcd, "mqar": mqar, "text": text}  # each has build(config) and train(config, workdir)


def part_of(comparison: grid.Comparison, labels: list[str], seeds: int) -> grid.Comparison:
    """Returns a part of the comparison.

    Args:
      comparison: the whole comparison.
      labels: labels of the entries to keep; [] for all.
      seeds: number of seeds to keep; 0 for all.

    Raises:
      ValueError: if there is no entry of that label. The message lists the labels.
    """
    if unknown := set(labels) - set(comparison.entries):
        there = ", ".join(map(repr, comparison.entries))
        raise ValueError(f"--entry names {sorted(unknown)}; there are {there}")
    first = comparison.seeds.start
    return comparison._replace(
        entries={label: comparison.entries[label] for label in labels or comparison.entries},
        seeds=range(first, first + seeds) if seeds else comparison.seeds,
    )


def main(args) -> None:
    whole, folder = comparisons.COMPARISONS[args.name], Path(args.runs or f"runs/{args.name}")
    comparison, taken, one = part_of(whole, args.entry, args.seeds), grid.part(args.part), MAINS[whole.main]
    base, opened = comparisons.configured(comparison, 0, {}), {}
    if "files" in base:
        base = text.opened(base, tuple(args.files))
        opened = {"files": base.files, "corpus": base.corpus}
    elif args.files:
        raise ValueError(f"--files is for comparisons on text; {args.name} has data of its own")
    settings = lambda seed, changes: comparisons.configured(comparison, seed, changes | opened)
    for changes in comparison.entries.values():
        one.build(settings(0, changes))  # so that wrong settings show before the first run
    todo = grid.plan(comparison.entries, comparison.seeds, comparison.rates, folder, settings)[taken]
    done = grid.train(one.train, todo)
    if args.part != grid.WHOLE:
        return print("This was a part of the comparison. The command without --part gathers all parts.")
    how = dict(chosen_by=comparison.chosen_by, lower=comparison.lower, kept=comparison.kept)
    entries = grid.entries(todo, done, comparison.entries, **how)
    summary.show(comparison.question, summary.compared(comparison.columns, entries), heading=True)
    if comparison != whole:
        return print("This was a part of the comparison, so no result was written.")
    command = f"python experiments/compare.py --name={args.name} --runs=runs/{args.name}"
    made, data = gather.made_by([run for run in done if run]), {"variant": comparison.variant}
    result = gather.result(args.name, comparison.question, command, made, config=base, entries=entries, data=data)
    catalogue.leave(result, folder)


if __name__ == "__main__":
    launch.run(
        main,
        name=launch.Flag(
            "ablations", "Which comparison; --list shows them all.", tuple(sorted(comparisons.COMPARISONS))
        ),
        runs=launch.Flag("", launch.SHARED["runs"] + " runs/NAME by default."),
        part=grid.WHOLE,
        entry=launch.Flag(
            [], "Only the entry with this label; may be repeated. The error for an unknown label lists all labels."
        ),
        seeds=launch.Flag(0, "Number of seeds; 0 for all seeds of the comparison."),
        files=text.FILES,
        takes="see the comparisons below",
    )
