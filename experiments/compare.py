"""Trains what one of the comparisons of experiments/configs/comparisons.py lists, and writes what came of it.

python experiments/compare.py --name=ablations --runs=runs/ablations [--entry=LABEL ...] [--part=0/2]

Every run is one of experiments/srcd.py, in a directory of its own below --runs: stopped, the same command goes on where
it was, and finished runs are not run again. Two processes with --part=0/2 and --part=1/2 use two cores; the whole
command after them only gathers, into --results/NAME.json and .png.
"""

import json
from pathlib import Path

import collect
import grid
import numpy as np
import srcd
from absl import flags
from configs import comparisons
from ml_collections import ConfigDict

from cram_jax.analysis import comparison_figures, summary
from cram_jax.training import experiment
from cram_jax.training.metrics import read, strict

NAME = flags.DEFINE_enum("name", "ablations", sorted(comparisons.COMPARISONS), "Which comparison.")
RUNS = flags.DEFINE_string("runs", "runs/compare", "Where the runs are.")
LABELS = flags.DEFINE_multi_string("entry", [], "What to run; every entry by default, and only then a result.")
PART = flags.DEFINE_string("part", "0/1", "i/n: only every n-th run, from the i-th on, and then no result.")
RESULTS = flags.DEFINE_string("results", "experiments/results", "Folder for result and figure.")

# What a table needs of each run; of all others mean and deviation are enough.
HEADLINES = ("seed", "retrieval_accuracy", "retrieval_accuracy_new", "attention_tokens_end", "transition_step")


def folder(label: str) -> str:
    """A label as the name of a directory."""
    return "".join(letter if letter.isalnum() else "_" for letter in label)


def entry(runs: list[dict], configs: list[ConfigDict], workdirs: list[Path]) -> dict:
    """Means, deviations, headlines by seed, curves and Eq 14's data of an entry, over its runs that did not diverge.

    How many did is said beside them.
    """
    done = [i for i, run in enumerate(runs) if run is not None]
    if not done:
        return {"diverged": len(runs), "runs": [], "mean": {}, "sd": {}, "missing": {}, "curves": [], "exposures": []}
    found = collect.collect([runs[i] for i in done], [json.loads(configs[i].to_json()) for i in done])
    lines = [read(workdirs[i] / "metrics.jsonl") for i in done]
    slim = lambda numbers: {name: value for name, value in numbers.items() if "_layer_" not in name}
    return {
        "diverged": len(runs) - len(done),
        "runs": [{name: runs[i][name] for name in HEADLINES if name in runs[i]} for i in done],
        "mean": slim(found["mean"]),
        "sd": slim(found.get("sd", {})),
        "missing": slim(found.get("missing", {})),
        "curves": [collect.curves(run) for run in lines],
        "exposures": [found for found in map(collect.exposures, lines) if found],
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
    part, parts = map(int, PART.value.split("/"))
    unknown = set(LABELS.value) - set(comparison.entries)
    if unknown:
        raise ValueError(f"--entry must be among {sorted(comparison.entries)}, got {sorted(unknown)}")
    labels = LABELS.value or list(comparison.entries)
    todo = [(label, seed) for seed in range(comparison.seeds) for label in labels]
    configs = {run: comparisons.settings(comparison, *run) for run in todo}
    for config in configs.values():
        srcd.build(config)  # what is wrong shows before the first run
    at = {(label, seed): runs / folder(label) / f"seed_{seed}" for label, seed in todo}
    found = {run: grid.once(srcd.train, configs[run], at[run]) for run in todo[part::parts]}
    if LABELS.value or parts > 1:
        return  # a part is no result
    code = {tuple(one["trained_by"]) for one in found.values() if one}
    if len(code) > 1:
        raise ValueError(f"runs were trained by different code, so they do not compare: {sorted(code)}")
    of = lambda where, label: [where[label, seed] for seed in range(comparison.seeds)]
    entries = {label: entry(*(of(where, label) for where in (found, configs, at))) for label in labels}
    summary.show(f"{NAME.value}: retrieval, of new bindings, tokens that attend", table(entries))
    out = {"name": NAME.value, "variant": comparison.variant, "settings": comparison.entries, "entries": entries}
    out |= {"trained_by": list(*code), **summary.versions()}
    target = Path(RESULTS.value) / f"{NAME.value}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(strict(out)) + "\n")
    comparison_figures.draw(entries, NAME.value, target.with_suffix(".png"))


if __name__ == "__main__":
    experiment.launch(main)
