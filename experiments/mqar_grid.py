"""Compares memories on associative recall, each at the learning rate that validation data chose.

python experiments/mqar_grid.py --config=experiments/configs/mqar.py:small --runs=runs/mqar [--rates=1e-3,1e-2]

Every run is one of experiments/mqar.py, in a directory of its own below --runs: stopped, the same command goes on where
it was, and finished runs are not run again. Result and figure go to --results.
Two processes, each with some of the entries (--entry=palimpsa --entry=mamba2), use two cores; the whole command after
them only gathers. `mamba2` has a set of keys for each head, as MetaMamba2 has, and is MetaMamba2 without importance.
"""

from pathlib import Path

import grid
import mqar
from absl import flags
from lib import gather, results
from lib.figures import recall
from ml_collections import ConfigDict

from cram_jax.analysis import summary
from cram_jax.training import experiment

RUNS = flags.DEFINE_string("runs", "runs/mqar", "Where the runs are.")
RATES = flags.DEFINE_list("rates", ["4.64e-3", "1e-2", "2.15e-2"], "Learning rates to choose from.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds at each rate; the choice is by their mean.")
LABELS = flags.DEFINE_multi_string("entry", [], "What to compare; every entry by default, and only then a result.")
RESULTS = flags.DEFINE_string("results", "runs/mqar", "Where result and figure go.")

QUESTION = "Does importance help associative recall, at equal width and at equal state?"
COMMAND = "python experiments/mqar_grid.py --config=experiments/configs/mqar.py:small --runs=runs/mqar"

# Label: (model, what differs from its section; a factor multiplies the section's own number)
ENTRIES = {
    "palimpsa": ("palimpsa", {}),
    "palimpsa, half the keys": ("palimpsa", {"key_dim": 0.5}),  # the state of those without importance
    "gated_linear": ("gated_linear", {}),
    "metamamba2": ("metamamba2", {}),
    "mamba2": ("mamba2", {}),
    "mamba2, twice the state": ("mamba2", {"state": 2}),  # the state of those with importance
    "gated_delta": ("gated_delta", {}),
    "transformer": ("transformer", {}),
    "cram": ("cram", {}),
}
# A run of it takes as long as five of the others: it gets the rate at which the transformer, too, solves the task.
ONE_RATE = {"cram": [4.64e-3]}


def settings(base: ConfigDict, label: str) -> ConfigDict:
    """Of one entry."""
    config = base.copy_and_resolve_references()
    config.model, changes = ENTRIES[label]
    for name, factor in changes.items():
        config[config.model][name] = max(1, int(factor * config[config.model][name]))
    return config


def table(entries: dict) -> list[tuple[str, str]]:
    """Rows of (model, accuracy and state) for a person, the best first."""
    spread = lambda sd: f" +- {summary.percent(sd['accuracy'])}" if sd else ""
    rows = []
    for label, found in sorted(entries.items(), key=lambda item: -item[1]["mean"]["accuracy"]):
        mean, rate = found["mean"], found["chosen"]["learning_rate"]
        size = f"{mean['state_bytes']:.0f} bytes of state, {mean['parameters'] / 1000:.0f}k parameters"
        rows.append((label, f"{summary.percent(mean['accuracy'])}{spread(found['sd'])}  {size}, rate {rate:g}"))
    return rows


def main(_) -> None:
    experiment.quiet()
    base, target = mqar.CONFIG.value, Path(RESULTS.value)
    configs = {label: settings(base, label) for label in LABELS.value or ENTRIES}
    rates = {label: ONE_RATE.get(label, [float(rate) for rate in RATES.value]) for label in configs}
    entries, trained = grid.compare(
        mqar.train, base, configs, Path(RUNS.value), rates, SEEDS.value, "validation_accuracy"
    )
    summary.show("MQAR: accuracy at the rate chosen on validation data", table(entries))
    if LABELS.value:
        return  # a part is no result
    result = gather.result("mqar", QUESTION, COMMAND, gather.made_by(trained), config=base, entries=entries)
    results.write(target, result)
    recall.models(result, target)


if __name__ == "__main__":
    experiment.launch(main)
