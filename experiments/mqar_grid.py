"""Compares memories on associative recall: chooses each model's learning rate on validation data, then trains seeds.

python experiments/mqar_grid.py --config=experiments/configs/mqar.py:small --runs=runs/mqar [--rates=2e-3,5e-3,1e-2]

Every run is one of experiments/mqar.py, in a directory of its own below --runs: stopped, the same command goes on where
it was, and finished runs are not run again. Result and figure go to --results, with .json and .png.
Two processes, each with some of the entries (--entry=palimpsa --entry=mamba2), use two cores; the whole command after
them only gathers.
"""

import json
from pathlib import Path

import grid
import mqar
from absl import flags
from ml_collections import ConfigDict

from cram_jax.analysis import mqar_figures, summary
from cram_jax.training import experiment
from cram_jax.training.metrics import strict

RUNS = flags.DEFINE_string("runs", "runs/mqar", "Where the runs are.")
RATES = flags.DEFINE_list("rates", ["2e-3", "5e-3", "1e-2"], "Learning rates to choose from.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds at the chosen rate; the choice is made with seed 0.")
LABELS = flags.DEFINE_multi_string("entry", [], "What to compare; every entry by default. May be given several times.")
RESULTS = flags.DEFINE_string("results", "experiments/results/mqar", "Where result and figure go.")

# Label: (model, what differs from its section)
ENTRIES = {
    "palimpsa": ("palimpsa", {}),
    "palimpsa, equal state": ("palimpsa", {"key_dim": 0.5}),
    "gated_linear": ("gated_linear", {}),
    "metamamba2": ("metamamba2", {}),
    "metamamba2, equal state": ("metamamba2", {"state": 0.5}),
    "mamba2": ("mamba2", {}),
    "gated_delta": ("gated_delta", {}),
    "transformer": ("transformer", {}),
    "cram": ("cram", {}),
}


def settings(base: ConfigDict, label: str) -> ConfigDict:
    """Of one entry; a factor in ENTRIES multiplies the section's own number."""
    config = base.copy_and_resolve_references()
    config.model, changes = ENTRIES[label]
    for name, factor in changes.items():
        config[config.model][name] = int(factor * config[config.model][name])
    return config


def table(models: dict) -> list[tuple[str, str]]:
    """Rows of (model, accuracy and state) for a person, the best first."""
    spread = lambda one: "" if one["accuracy_sd"] is None else f" +- {summary.percent(one['accuracy_sd'])}"
    ranked = sorted(models.items(), key=lambda item: -item[1]["accuracy"])
    return [
        (label, f"{summary.percent(m['accuracy'])}{spread(m)}  {m['state_bytes']} bytes, rate {m['learning_rate']:g}")
        for label, m in ranked
    ]


def main(_) -> None:
    experiment.quiet()
    base, target = mqar.CONFIG.value, Path(RESULTS.value)
    entries = {label: settings(base, label) for label in LABELS.value or ENTRIES}
    rates = [float(rate) for rate in RATES.value]
    models = grid.compare(
        mqar.train, entries, Path(RUNS.value), rates, SEEDS.value, score="accuracy", chosen_by="validation_accuracy"
    )
    for model in models.values():
        model["state_bytes"] = model["runs"][0]["state_bytes"]
    target.parent.mkdir(parents=True, exist_ok=True)
    out = {"config": json.loads(base.to_json()), "models": models, **summary.versions()}
    target.with_suffix(".json").write_text(json.dumps(strict(out), indent=1) + "\n")
    mqar_figures.draw(models, target.with_suffix(".png"))
    summary.show("MQAR: accuracy at the rate chosen on validation data", table(models))


if __name__ == "__main__":
    experiment.launch(main)
