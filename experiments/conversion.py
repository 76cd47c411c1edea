"""Fine-tunes a trained Mamba-2 beyond what it could hold: as it is, and made metaplastic. The protocol is the config's.

python experiments/conversion.py --config=experiments/configs/conversion.py:small --runs=runs/conversion

Every run is in a directory of its own below --runs: stopped, the same command goes on where it was, and finished runs
are not run again. Result and figure go to --results.
"""

from pathlib import Path

import grid
import jax
import mqar
from absl import flags
from lib import gather, results
from lib.figures import recall
from ml_collections import ConfigDict

from cram_jax.analysis import summary
from cram_jax.functional.metaplastic import make_metaplastic
from cram_jax.training import experiment
from cram_jax.training import learner as learning
from cram_jax.training.checkpoints import Checkpoints
from cram_jax.training.metrics import read

RUNS = flags.DEFINE_string("runs", "runs/conversion", "Where the runs are.")
RATES = flags.DEFINE_list("rates", ["1e-3", "2.15e-3", "4.64e-3", "1e-2"], "To choose from, for each way by itself.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds, of both phases.")
RESULTS = flags.DEFINE_string("results", "runs/conversion", "Where result and figure go.")

QUESTION = "Does a trained Mamba-2 gain by being made metaplastic before it is fine-tuned beyond what it could hold?"
COMMAND = "python experiments/conversion.py --config=experiments/configs/conversion.py:small --runs=runs/conversion"

WAYS = {"as it is": "mamba2", "metaplastic": "metamamba2"}


def first_phase(config: ConfigDict, seed: int) -> ConfigDict:
    """Settings of the training on few pairs."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        del config.tune
    config.seed = seed
    return config


def second_phase(config: ConfigDict, model: str) -> ConfigDict:
    """Settings of a fine-tuning on many pairs."""
    tune, config = config.tune, first_phase(config, 0)
    config.model, config.data.pairs = model, tune.pairs
    config.run.length = config.data.length = tune.length
    config.run.steps = config.optimizer.steps = tune.steps
    return config


def place(config: ConfigDict, first: ConfigDict, trained: Path, workdir: Path) -> None:
    """Puts the trained parameters, converted where the model is metaplastic, into `workdir` as its step 0."""
    learner, before = mqar.build(config)[0], mqar.build(first)[0]
    saves, state = Checkpoints(workdir / "checkpoints"), learning.init(learner, config.seed, 0)
    if saves.restore(state) is None:
        _, last = Checkpoints(trained / "checkpoints").restore(learning.init(before, config.seed, 0))
        params = last.params
        if learner.model.layer.rank:
            rank, key = learner.model.layer.rank, jax.random.key(config.seed)
            layers, _ = make_metaplastic(params.model, before.model.layer, rank=rank, key=key)
            params = params._replace(model=layers)
        saves.save(0, state._replace(params=params))
    saves.close()


def compare(config: ConfigDict, runs: Path, rates: list[float], seeds: int) -> tuple[dict, list[dict]]:
    """(entries of the first phase and of both ways, the summaries of all runs).

    Raises:
      ValueError: where a first phase did not learn its pairs: then nothing was held yet.
    """
    configs = {way: second_phase(config, model) for way, model in WAYS.items()}
    for settings in configs.values():
        mqar.build(settings)  # before hours of the first phase: what is wrong shows now
    trained = lambda seed: runs / f"trained_seed_{seed}"
    first = [grid.once(mqar.train, first_phase(config, seed), trained(seed)) for seed in range(seeds)]
    accuracies = [run["accuracy"] if run else 0.0 for run in first]
    if min(accuracies) < config.tune.least:
        raise ValueError(
            f"the first phase reached {accuracies} by seed, below tune.least={config.tune.least}: give it fewer "
            "data.pairs, or more run.steps"
        )

    def tune(settings: ConfigDict, workdir: Path) -> dict:
        place(settings, first_phase(config, settings.seed), trained(settings.seed), workdir)
        return mqar.train(settings, workdir)

    def start(settings: ConfigDict, workdir: Path) -> dict:
        return {"accuracy_start": gather.curves(read(workdir / "metrics.jsonl"))["held_out/accuracy"][0]}

    held, _ = gather.of_directories(map(trained, range(seeds)))
    rates = dict.fromkeys(configs, rates)
    ways, tuned = grid.compare(tune, config, configs, runs, rates, seeds, "validation_accuracy", more=start)
    return {"trained": held, **ways}, first + tuned


def main(_) -> None:
    experiment.quiet()
    config, target = mqar.CONFIG.value, Path(RESULTS.value)
    entries, runs = compare(config, Path(RUNS.value), [float(rate) for rate in RATES.value], SEEDS.value)
    of = lambda label, name: [run[name] for run in entries[label]["runs"]]
    gains = [new - old for old, new in zip(*(of(way, "accuracy") for way in WAYS), strict=True)]
    made, data = gather.made_by(runs), {"gain": gains}
    result = gather.result("conversion", QUESTION, COMMAND, made, config=config, entries=entries, data=data)
    results.write(target, result)
    recall.conversion(result, target)
    many = lambda values: "  ".join(summary.percent(value) for value in values)
    few, pairs = config.data.pairs, config.tune.pairs
    rows = [(f"accuracy by seed, trained on {few} pairs", many(of("trained", "accuracy")))]
    for way in WAYS:
        rows.append((f"{way}, on {pairs} pairs, before fine-tuning", many(of(way, "accuracy_start"))))
        rate = entries[way]["chosen"]["learning_rate"]
        rows.append((f"{way}, after {config.tune.steps} steps at rate {rate:g}", many(of(way, "accuracy"))))
    rows.append(("metaplastic above as it is", many(gains)))
    summary.show("Conversion: fine-tuned beyond the old capacity", rows)


if __name__ == "__main__":
    experiment.launch(main)
