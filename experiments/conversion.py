"""Fine-tunes a trained Mamba-2 on more pairs than it can hold, unchanged or made metaplastic, and compares both.

python experiments/conversion.py --config=experiments/configs/conversion.py:small --runs=runs/conversion

The config file describes the protocol.
"""

from pathlib import Path

import jax
import mqar
from lib import gather, grid, launch, runs, summary
from lib.figures import catalogue
from ml_collections import ConfigDict

from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.metaplastic import make_metaplastic

QUESTION = "Does a trained Mamba-2 gain by being made metaplastic before it is fine-tuned beyond what it could hold?"
COMMAND = "python experiments/conversion.py --config=experiments/configs/conversion.py:small --runs=runs/conversion"

TRAINED = "trained"
WAYS = {"as it is": "mamba2", "metaplastic": "metamamba2"}


def settings(config: ConfigDict, seed: int, changes: dict) -> ConfigDict:
    """Returns the settings of one run: those of the training on few pairs, with these changes."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        del config.tune
    config.seed = seed
    return runs.change(config, changes)


def changes_of(config: ConfigDict) -> dict[str, dict]:
    """Returns the settings that change for the fine-tuning on many pairs, for each of WAYS."""
    tune = config.tune
    longer = {"data.pairs": tune.pairs, "data.length": tune.length, "run.length": tune.length}
    longer |= {"run.steps": tune.steps, "optimizer.steps": tune.steps}
    return {way: {"model": model} | longer for way, model in WAYS.items()}


def tune(config: ConfigDict, workdir: Path, first: ConfigDict, trained: Path) -> dict:
    """Does or resumes one fine-tuning, from the last state of the training in `trained`; returns its summary."""
    learner, before = mqar.build(config)[0], mqar.build(first)[0]

    def converted(params, old: Mamba2Config, new: Mamba2Config):
        if old.rank == new.rank:
            return params
        return make_metaplastic(params, old, rank=new.rank, key=jax.random.key(config.seed))[0]

    def begin(fresh):
        _, last = runs.last_state(before, config.seed, trained)
        layers = zip(last.params.model, before.model.layers, learner.model.layers, strict=True)
        return 0, fresh._replace(params=last.params._replace(model=tuple(converted(*layer) for layer in layers)))

    runs.begin_from(begin, learner, config.seed, workdir)
    return mqar.train(config, workdir)


def check_held(config: ConfigDict, done: list[dict | None]) -> None:
    """Raises ValueError if a training on few pairs did not learn them, because then fine-tuning shows nothing."""
    accuracies = [run["accuracy"] if run else 0.0 for run in done]
    if accuracies and min(accuracies) < config.tune.least:
        raise ValueError(
            f"the training on {config.data.pairs} pairs reached {accuracies} by seed, below tune.least="
            f"{config.tune.least}: give it fewer data.pairs, or more run.steps"
        )


def main(args) -> None:
    config, folder, changes = args.config, Path(args.runs), changes_of(args.config)
    of_run = lambda seed, changed: settings(config, seed, changed)
    for changed in changes.values():
        mqar.build(of_run(0, changed))  # so that wrong settings show before the first training
    seeds = range(args.seeds)[grid.part(args.part)]
    first = grid.plan({TRAINED: {}}, seeds, (), folder, of_run)
    trained = grid.train(mqar.train, first)
    check_held(config, trained)
    at = {run.seed: (run.config, run.workdir) for run in first}
    tuned = grid.plan(changes, seeds, config.tune.rates, folder, of_run)
    done = grid.train(lambda config, workdir: tune(config, workdir, *at[config.seed]), tuned)
    if args.part != grid.WHOLE:
        return print("This was a part. The command without --part gathers all parts.")
    grid.one_code(trained + done)
    entries = grid.entries(first, trained, {TRAINED: {}})
    entries |= grid.entries(tuned, done, changes, chosen_by="validation_accuracy")
    of = lambda label, name: [run[name] for run in entries[label]["runs"]]
    gains = [new - old for old, new in zip(*(of(way, "accuracy") for way in WAYS), strict=True)]
    made, data = gather.made_by([run for run in trained + done if run]), {"gain": gains}
    result = gather.result("conversion", QUESTION, COMMAND, made, config=config, entries=entries, data=data)
    summary.show("Values named right on held-out data, by seed", table(config, entries, gains))
    catalogue.leave(result, folder)


def table(config: ConfigDict, entries: dict, gains: list[float]) -> list[tuple[str, str]]:
    """Returns the printed table: rows of (what, numbers by seed)."""
    of = lambda label, name: "  ".join(summary.percent(run[name]) for run in entries[label]["runs"])
    rows = [(f"trained on {config.data.pairs} pairs", of(TRAINED, "accuracy"))]
    for way in WAYS:
        rows.append((f"{way}, on {config.tune.pairs} pairs, before fine-tuning", of(way, "accuracy_start")))
        rate = entries[way]["chosen"]["learning_rate"]
        rows.append((f"... after {config.tune.steps} steps at learning rate {rate:g}", of(way, "accuracy")))
    return [*rows, ("metaplastic minus as it is", "  ".join(map(summary.percent, gains)))]


if __name__ == "__main__":
    launch.run(
        main, config="conversion.py:small", runs="runs/conversion", seeds=3, part=grid.WHOLE,
        takes="27 runs, a minute or two each on one CPU core",
    )  # fmt: skip
