"""Trains what one of the comparisons of experiments/configs/comparisons.py lists, and writes what came of it.

python experiments/compare.py --name=ablations --runs=runs/ablations [--part=0/2]

Every run is one of experiments/srcd.py, in a directory of its own below --runs: stopped, the same command goes on where
it was, and finished runs are not run again. Two processes with --part=0/2 and --part=1/2 use two cores; the whole
command after them only gathers. Result and figure go to --results.
"""

import logging
from pathlib import Path

import grid
import numpy as np
import srcd
from absl import flags
from configs import comparisons
from configs import srcd as srcd_config
from lib import gather, results
from lib.figures import catalogue
from ml_collections import ConfigDict

from cram_jax.analysis import summary
from cram_jax.training import experiment
from cram_jax.training.metrics import read

log = logging.getLogger(__name__)

NAME = flags.DEFINE_enum("name", "ablations", sorted(comparisons.COMPARISONS), "Which comparison.")
RUNS = flags.DEFINE_string("runs", "runs/compare", "Where the runs are.")
PART = flags.DEFINE_string("part", "0/1", "i/n, i from 0: only every n-th run, from the i-th on, no result.")
RESULTS = flags.DEFINE_string("results", "", "Where result and figure go; runs/NAME by default.")

# What a table needs of each run; of all others mean and deviation are enough.
HEADLINES = (
    "seed", "retrieval_accuracy", "retrieval_accuracy_new", "attention_tokens_end", "router_released_step",
    "transition_step", "realised_query_share", "realised_new_share", "dynamics_mse_excess", "training_teraflops",
    "total_flops", "commit", "machine",
)  # fmt: skip


def folder(label: str) -> str:
    """A label as the name of a directory."""
    return "".join(letter if letter.isalnum() else "_" for letter in label)


def entry(runs: list[dict | None], configs: list[ConfigDict], workdirs: list[Path], settings: dict) -> dict:
    """An entry of its runs that did not diverge, with the HEADLINES of each; how many did is said beside them."""
    done = [i for i, run in enumerate(runs) if run is not None]
    if not done:
        return {"settings": settings, "runs": [], "mean": {}, "sd": {}, "missing": {}, "diverged": len(runs)}
    lines = [read(workdirs[i] / "metrics.jsonl") for i in done]
    found = gather.entry([runs[i] for i in done], [gather.portable(configs[i]) for i in done], lines, settings)
    slim = lambda numbers: {name: value for name, value in numbers.items() if "_layer_" not in name}
    headlines = [{name: run[name] for name in HEADLINES if name in run} for run in found["runs"]]
    means = {part: slim(found[part]) for part in ("mean", "sd", "missing")}
    return found | means | {"runs": headlines, "diverged": len(runs) - len(done)}


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
    done = [run for run in found.values() if run]
    grid.one_code(done)
    of = lambda where, label: [where[label, seed] for seed in seeds]
    entries = {
        label: entry(*(of(where, label) for where in (found, configs, at)), settings)
        for label, settings in comparison.entries.items()
    }
    summary.show(f"{NAME.value}: retrieval, of new bindings, tokens that attend", table(entries))
    target, base = Path(RESULTS.value or f"runs/{NAME.value}"), srcd_config.get_config(comparison.variant)
    command = f"python experiments/compare.py --name={NAME.value} --runs=runs/{NAME.value}"
    result = gather.result(
        NAME.value, comparison.question, command, gather.made_by(done),
        config=base, entries=entries, data={"variant": comparison.variant},
    )  # fmt: skip
    results.write(target, result)
    for draw in catalogue.drawers(NAME.value, result):
        draw(result, target)


if __name__ == "__main__":
    experiment.launch(main)
