"""Compares memories on associative recall, each at the learning rate that validation data chose.

python experiments/mqar_grid.py --config=experiments/configs/mqar.py:small --runs=runs/mqar [--rates=1e-3,1e-2]

Every run is one of experiments/mqar.py, in a directory of its own below --runs: stopped, the same command goes on where
it was, and finished runs are not run again. Result and figure go to --results, with .json and .png.
Two processes, each with some of the entries (--entry=palimpsa --entry=mamba2), use two cores; the whole command after
them only gathers. `mamba2` has a set of keys for each head, as MetaMamba2 has, and is MetaMamba2 without importance.
"""

from pathlib import Path

import collect
import grid
import mqar
from absl import flags
from ml_collections import ConfigDict

from cram_jax.analysis import mqar_figures, summary
from cram_jax.training import experiment
from cram_jax.training.metrics import read

RUNS = flags.DEFINE_string("runs", "runs/mqar", "Where the runs are.")
RATES = flags.DEFINE_list("rates", ["4.64e-3", "1e-2", "2.15e-2"], "Learning rates to choose from.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds at each rate; the choice is by their mean.")
LABELS = flags.DEFINE_multi_string("entry", [], "What to compare; every entry by default, and only then a result.")
RESULTS = flags.DEFINE_string("results", "experiments/results/mqar", "Where result and figure go.")

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


def table(models: dict) -> list[tuple[str, str]]:
    """Rows of (model, accuracy and state) for a person, the best first."""
    spread = lambda one: "" if one["accuracy_sd"] is None else f" +- {summary.percent(one['accuracy_sd'])}"
    ranked = sorted(models.items(), key=lambda item: -item[1]["accuracy"])
    return [
        (
            label,
            f"{summary.percent(m['accuracy'])}{spread(m)}  {m['state_bytes']} bytes of state, "
            f"{m['parameters'] / 1000:.0f}k parameters, rate {m['learning_rate']:g}",
        )
        for label, m in ranked
    ]


def main(_) -> None:
    experiment.quiet()
    base, target = mqar.CONFIG.value, Path(RESULTS.value)
    entries = {label: settings(base, label) for label in LABELS.value or ENTRIES}
    rates = {label: ONE_RATE.get(label, [float(rate) for rate in RATES.value]) for label in entries}
    curve = lambda config, workdir: {"curve": collect.curves(read(workdir / "metrics.jsonl"))}
    models = grid.compare(
        mqar.train, entries, Path(RUNS.value), rates, SEEDS.value, "accuracy", "validation_accuracy", more=curve
    )
    for model in models.values():
        model |= {name: model["runs"][0][name] for name in ("state_bytes", "parameters")}
    summary.show("MQAR: accuracy at the rate chosen on validation data", table(models))
    if LABELS.value:
        return  # a part is no result
    mqar_figures.draw(grid.write(target, base, models=models), target.with_suffix(".png"))


if __name__ == "__main__":
    experiment.launch(main)
