"""Trains what one of the comparisons of experiments/configs/comparisons.py lists, and writes what came of it.

python experiments/compare.py --name=ablations --runs=runs/ablations [--part=0/2]

Every run is one of experiments/srcd.py, in a directory of its own below --runs: stopped, the same command goes on where
it was, and finished runs are not run again. Two processes with --part=0/2 and --part=1/2 use two cores; the whole
command after them only gathers, into --results/NAME.json and .png.
"""

import json
import logging
from pathlib import Path

import collect
import grid
import numpy as np
import srcd
from absl import flags
from configs import comparisons
from configs import srcd as srcd_config
from ml_collections import ConfigDict

from cram_jax.analysis import comparison_figures, summary
from cram_jax.training import experiment
from cram_jax.training.metrics import read, strict

log = logging.getLogger(__name__)

NAME = flags.DEFINE_enum("name", "ablations", sorted(comparisons.COMPARISONS), "Which comparison.")
RUNS = flags.DEFINE_string("runs", "runs/compare", "Where the runs are.")
PART = flags.DEFINE_string("part", "0/1", "i/n, i from 0: only every n-th run, from the i-th on, no result.")
RESULTS = flags.DEFINE_string("results", "experiments/results", "Folder for result and figure.")

# What a table needs of each run; of all others mean and deviation are enough.
HEADLINES = (
    "seed", "retrieval_accuracy", "retrieval_accuracy_new", "attention_tokens_end", "transition_step",
    "realised_query_share", "realised_new_share", "dynamics_mse_excess", "training_teraflops", "total_flops",
    "trained_on",
)  # fmt: skip


def folder(label: str) -> str:
    """A label as the name of a directory."""
    return "".join(letter if letter.isalnum() else "_" for letter in label)


def entry(runs: list[dict], configs: list[ConfigDict], workdirs: list[Path]) -> dict:
    """Means, deviations, headlines by seed, curves, quality, Eq 14's data and each pattern's transition of an entry,
    over its runs that did not diverge.

    How many did is said beside them.
    """
    done = [i for i, run in enumerate(runs) if run is not None]
    if not done:
        return {"diverged": len(runs), "runs": [], "mean": {}, "sd": {}, "missing": {}, "curves": []}
    lines = [read(workdirs[i] / "metrics.jsonl") for i in done]
    found = collect.result([runs[i] for i in done], [json.loads(configs[i].to_json()) for i in done], lines)
    slim = lambda numbers: {name: value for name, value in numbers.items() if "_layer_" not in name}
    return {
        "diverged": len(runs) - len(done),
        "runs": [{name: runs[i][name] for name in HEADLINES if name in runs[i]} for i in done],
        "mean": slim(found["mean"]),
        "sd": slim(found.get("sd", {})),
        "missing": slim(found.get("missing", {})),
        "curves": found["curves"],
        "exposures": [one for one in map(collect.exposures, lines) if one],
        "patterns": [strict(one) for one in map(collect.patterns, lines) if one],
        **{name: found[name] for name in ("quality",) if name in found},
    }


def table(entries: dict) -> list[tuple[str, str]]:
    """Rows of (label, retrieval, of new bindings, attention) for a person."""
    rows = []
    for label, found in entries.items():
        mean, sd = found["mean"], found["sd"]
        show = lambda name, mean=mean, sd=sd: (
            f"{summary.percent(mean[name])} +- {summary.percent(sd.get(name, np.nan))}" if name in mean else "-"
        )
        names = ("retrieval_accuracy", "retrieval_accuracy_new", "attention_tokens_end")
        rows.append((label, "   ".join(show(name) for name in names)))
    return rows


def main(_) -> None:
    experiment.quiet()
    comparison, runs = comparisons.COMPARISONS[NAME.value], Path(RUNS.value)
    part, parts = grid.parted(PART.value)
    seeds = comparison.seeds
    todo = [(label, seed) for seed in seeds for label in comparison.entries]
    configs = {run: comparisons.settings(comparison, *run) for run in todo}
    for config in configs.values():
        srcd.build(config)  # what is wrong shows before the first run
    at = {(label, seed): runs / folder(label) / f"seed_{seed}" for label, seed in todo}
    mine = todo[part::parts]
    grid.check_code([at[run] for run in mine])
    found = {}
    for i, run in enumerate(mine):
        log.info("run %d of %d: %s, seed %d, in %s", i + 1, len(mine), *run, at[run])
        found[run] = grid.once(srcd.train, configs[run], at[run])
    if parts > 1:
        return  # a part is no result
    trained_by = grid.one_code([run for run in found.values() if run])
    of = lambda where, label: [where[label, seed] for seed in seeds]
    entries = {label: entry(*(of(where, label) for where in (found, configs, at))) for label in comparison.entries}
    summary.show(f"{NAME.value}: retrieval, of new bindings, tokens that attend", table(entries))
    target, base = Path(RESULTS.value) / NAME.value, srcd_config.get_config(comparison.variant)
    out = grid.write(
        target, base, variant=comparison.variant, settings=comparison.entries, entries=entries, trained_by=trained_by
    )
    comparison_figures.draw(out, target.with_suffix(".png"))


if __name__ == "__main__":
    experiment.launch(main)
