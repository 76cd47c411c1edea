"""Compares tiny language models on real text with the same budget: bits per byte of held-out files.

python experiments/language.py --runs=runs/language [--files=FOLDER] [--rates=3e-3,6e-3] [--seeds=1]

Every run is one of experiments/text.py, in a directory of its own below --runs: stopped, the same command goes on where
it was, and finished runs are not run again. Each model's learning rate is chosen by its mean training loss
over the last logged stretch, not on the files that are reported; a run reads less than a tenth of the training text, so
nearly all of what it reads there is new to it. Result and figure go to --results. Two processes with some
of the models each (--entry=mamba2) use two cores; the whole command after them only gathers.
"""

from pathlib import Path

import grid
import jax
import text
from absl import flags
from lib import gather, results
from lib.figures import text as text_figures
from ml_collections import ConfigDict

from cram_jax.analysis import accounting, ngram, summary
from cram_jax.training import experiment
from cram_jax.training import learner as learning
from cram_jax.training.metrics import read

RUNS = flags.DEFINE_string("runs", "runs/language", "Where the runs are.")
RATES = flags.DEFINE_list("rates", ["3e-3", "6e-3"], "Learning rates to choose from.")
SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds at each rate; the choice is by their mean.")
LABELS = flags.DEFINE_multi_string("entry", [], "Models to compare; all by default, and only then a result.")
RESULTS = flags.DEFINE_string("results", "runs/language", "Where result and figure go.")

QUESTION = "How do tiny Palimpsa, MetaMamba2, Mamba-2 and transformer models compare on the bytes of real files?"
COMMAND = "python experiments/language.py --config=experiments/configs/language.py:small --runs=runs/language"


def settings(base: ConfigDict, model: str) -> ConfigDict:
    """Of one model, with its own depth."""
    config = base.copy_and_resolve_references()
    config.model, config.depth = model, base.depths[model]
    return config


def more(config: ConfigDict, workdir: Path) -> dict:
    """What a model has and carries, and what its rate is chosen by."""
    learner, _ = text.build(config)
    params = jax.eval_shape(lambda: learning.init(learner, 0, 0)).params
    lines = read(workdir / "metrics.jsonl")
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "state_bytes": accounting.state_bytes(learner.model.init_cache(1)),
        "training_bits_per_byte": lines[-1]["train/bits_per_byte"],
    }


def table(entries: dict) -> list[tuple[str, str]]:
    """Rows of (model, figures) for a person, the best first."""
    spread = lambda sd: f" +- {sd['bits_per_byte']:.3f}" if sd else ""
    rows = []
    for label, found in sorted(entries.items(), key=lambda item: item[1]["mean"]["bits_per_byte"]):
        mean, rate = found["mean"], found["chosen"]["learning_rate"]
        size = f"{mean['parameters'] / 1000:.0f}k parameters, {mean['step_ms_end']:.0f} ms a step"
        rows.append((label, f"{mean['bits_per_byte']:.3f}{spread(found['sd'])}  {size}, rate {rate:g}"))
    grams = "  ".join(f"{mean[f'bits_per_byte_{n}_gram']:.3f}" for n in ngram.ORDERS)
    return [*rows, ("n-grams with n = 1, 2, 3", grams)]


def main(_) -> None:
    experiment.quiet()
    base, target, runs = text.opened(text.CONFIG.value, tuple(text.FILES.value)), Path(RESULTS.value), Path(RUNS.value)
    configs = {model: settings(base, model) for model in LABELS.value or base.depths}
    rates = dict.fromkeys(configs, [float(rate) for rate in RATES.value])
    chosen_by = "training_bits_per_byte"
    entries, trained = grid.compare(
        text.train, base, configs, runs, rates, SEEDS.value, chosen_by, lower=True, more=more
    )
    summary.show("Text: bits per byte of held-out files", table(entries))
    if LABELS.value:
        return  # a part is no result
    result = gather.result("language", QUESTION, COMMAND, gather.made_by(trained), config=base, entries=entries)
    results.write(target, result)
    text_figures.models(result, target)


if __name__ == "__main__":
    experiment.launch(main)
