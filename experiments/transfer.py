"""Transfers models trained on SRCD to other tasks, and compares their attention with that of training from scratch.

python experiments/transfer.py --config=experiments/configs/transfer.py:tiny --runs=runs/transfer [--data=FOLDER]

The config file describes the protocol. Each run has its own directory below --runs.
"""

import itertools
from pathlib import Path

import jax
import numpy as np
import srcd
from lib import gather, grid, launch, runs, summary, targets
from lib.figures import catalogue
from lib.targets import SCORES, Target
from ml_collections import ConfigDict

from cram_jax.tasks.irregular_task import area_under_curve
from cram_jax.training import loop, step
from cram_jax.training.loop import RunConfig
from cram_jax.training.step import Learner

QUESTION = "Does a model trained on SRCD save attention on another task, against training from scratch?"
COMMAND = "python experiments/transfer.py --config=experiments/configs/transfer.py:tiny --runs=runs/transfer"

# By model: patterns of the parameters that decide which tokens attend, and of semantic memory
SELECTION = {
    "cram": ("model.*.semantic.*", "model.*.router.*"),
    "seqboat": ("model.*.working.*", "model.*.choice_Dx2", "model.*.log_temperature"),
}
SCRATCH, FROZEN, HEAD = WAYS = ("from scratch", "frozen", "head alone")
# Numbers of a run that the result keeps
KEPT = (
    "seed", "score", "retrieval_accuracy", "accuracy", "accuracy_recurring", "accuracy_new", "label_nats",
    "realised_new_share", "attention_tokens_start", "attention_tokens_peak", "attention_tokens_end",
    "attention_utilisation_end", "attention_asked", "attention_query_new", "kept_share", "router_released_step",
    "train_seconds", "commit", "machine",
)  # fmt: skip


def source_settings(config: ConfigDict, model: str, seed: int) -> ConfigDict:
    """Returns the settings of the training on SRCD."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        del config.targets
    config.model, config.seed, config.data.table_seed = model, seed, seed
    if model == "seqboat":
        config.optimizer.weight_decay = 0.01  # as for every baseline, see configs/comparisons.py
    return config


def target_settings(config: ConfigDict, target: Target, model: str, way: str, seed: int) -> ConfigDict:
    """Returns the settings of one run on a target. They have a fingerprint of its files, but not their paths."""
    about = config.targets[target.name].copy_and_resolve_references()
    config = source_settings(config, model, seed)
    with config.unlocked():
        del config.data, config.dynamics_weight
        config.target, config.way, config.data = target.name, way, about.data
        if target.paths:
            task = targets.task(config, target)
            config.data.files = task.collection.fingerprint
            # The last evaluation goes through the held-out windows once.
            windows, run = len(task.windows("held_out", config.run.length).series_N), config.run
            run.final_tokens = min(run.final_tokens, max(1, windows // run.batch) * run.batch * run.length)
        else:
            config.data.update(table_seed=seed, length=config.run.length, batch=config.run.batch)
    config.price.update(about.price)
    config.optimizer.frozen = {SCRATCH: (), FROZEN: SELECTION[model], HEAD: ("model.*",)}[way]
    return config


def build(config: ConfigDict, target: Target) -> tuple[Learner, RunConfig]:
    """Returns what to train on a target, and for how long, from a run's settings.

    Raises:
      ValueError, KeyError: if settings are out of range, or the model lacks parameters that are to be frozen.
    """
    learner, run = runs.build(config, targets.task(config, target))
    jax.eval_shape(lambda: step.init(learner, config.seed, 0))
    return learner, run


def begin(learner: Learner, seed: int, source: ConfigDict, trained: Path, workdir: Path) -> None:
    """Writes the layers trained on SRCD to `workdir` as the state at step 0, unless the training there has started.

    The router is already trained, so it decides from the first step. The consolidation state is transferred, too: it is
    released, and its statistics fit the frozen semantic memory and familiarity head. Its means adapt to the target's
    retrievals within about 100 steps.

    The state of the price is not transferred; the price starts by the same rule as from scratch. It depends on the
    loss, and the source's best loss is far below the first losses on the target: the tolerance would always be
    exceeded. The price also does not start at once: while the embedding is untrained, attention is of no use, and a
    price would teach the model not to attend.
    """

    def transferred(fresh):
        before, _ = srcd.build(source)
        _, last = runs.last_state(before, source.seed, trained, before.task.data.patterns)
        return 0, fresh._replace(
            params=fresh.params._replace(model=last.params.model), consolidation=last.consolidation
        )

    runs.begin_from(transferred, learner, seed, workdir)


def finish(learner: Learner, run: RunConfig, seed: int, state, lines: list[dict], target: str, way: str) -> dict:
    """Returns the run's summary, with the target's score."""
    out = runs.finish(learner, run, seed, state, lines)
    if SCORES[target] == "area_under_curve":
        found = loop.evaluate(learner, run, state, seed, run.final_tokens)
        out["area_under_curve"] = area_under_curve(found["negative_bins"], found["positive_bins"])
    if way != SCRATCH and learner.model.consolidates:  # the router decides from step 0; the price starts later
        out |= {"price_started_step": out["router_released_step"], "router_released_step": 0}
    return out | {"score": out[SCORES[target]]}


def train(config: ConfigDict, workdir: Path, target: Target) -> dict:
    """Trains or resumes one run on a target; prints, writes and returns its summary."""
    learner, run = build(config, target)
    score = SCORES[target.name].replace("_", " ")
    out, _ = runs.complete(
        config,
        workdir,
        learner,
        run,
        finish=lambda *args: finish(*args, target.name, config.way),
        table=lambda out: [
            (score, f"{out['score']:.4f}"), *summary.attention_rows(out, "event"), *summary.time_rows(out, "event")
        ],
        title=f"{target.called}, {config.way}",
    )  # fmt: skip
    return out


def plan(config: ConfigDict, chosen: list[Target], pairs: list[tuple[str, int]], folder: Path):
    """Returns (the trainings on SRCD, one for each pair of model and seed; the runs on the targets)."""
    sources, tuned = [], []
    for model, seed in pairs:
        name, source = f"{model}_seed_{seed}", source_settings(config, model, seed)
        sources.append(grid.Run(f"source: {model}", seed, source, folder / "source" / name))
        for target, way in itertools.product(chosen, WAYS):
            workdir = folder / target.name / f"{model}_{way.replace(' ', '_')}_seed_{seed}"
            settings = target_settings(config, target, model, way, seed)
            tuned.append(grid.Run(f"{target.called}: {model}, {way}", seed, settings, workdir))
    return sources, tuned


def reductions(entries: dict[str, dict]) -> dict[str, dict]:
    """Returns 1 - attention / attention from scratch for each transferred entry: of the means, and by seed.

    It is None if attention from scratch is 0.
    """
    less = lambda one, scratch: 1 - one / scratch if scratch else None
    key = lambda settings: (settings.get("target"), settings["model"])
    base = {key(one["settings"]): one for one in entries.values() if one["settings"].get("way") == SCRATCH}
    out = {}
    for label, found in entries.items():
        if found["settings"].get("way", SCRATCH) != SCRATCH:
            pair = (found, base[key(found["settings"])])
            attends = [[run["attention_tokens_end"] for run in one["runs"]] for one in pair]
            by_seed = [less(*seeds) for seeds in zip(*attends, strict=True)]
            out[label] = {"mean": less(*map(np.mean, attends)), "by_seed": by_seed}
    return out


def table(entries: dict[str, dict], less: dict[str, dict]) -> list[tuple[str, ...]]:
    """Returns a heading, and a row for each target, model and way: score, attention and its reduction."""
    rows = [("", "score (source: queries answered right)", "events that attend", "fewer than from scratch")]
    for label, found in entries.items():
        mean, sd = found["mean"], found["sd"]
        name = "score" if "score" in mean else "retrieval_accuracy"
        spread = f" +- {sd[name]:.3f}" if sd else ""
        saved = summary.percent(less[label]["mean"]) if label in less else ""
        rows.append((label, f"{mean[name]:.3f}{spread}", summary.percent(mean["attention_tokens_end"]), saved))
    return rows


def main(args) -> None:
    config, folder = args.config, Path(args.runs)
    data = Path(args.data) if args.data else None
    chosen = [targets.found(name, config, data, folder) for name in args.target or SCORES]
    models = args.model or list(SELECTION)
    for target, model, way in itertools.product(chosen, models, WAYS):
        build(target_settings(config, target, model, way, 0), target)  # wrong settings show before the first run
    pairs = list(itertools.product(models, range(args.seeds)))
    first, tuned = plan(config, chosen, pairs[grid.part(args.part)], folder)
    trained = settled(first, grid.train(srcd.train, first))
    at, by_name = {(run.config.model, run.seed): run for run in first}, {target.name: target for target in chosen}

    def on_target(settings: ConfigDict, workdir: Path) -> dict:
        target, source = by_name[settings.target], at[settings.model, settings.seed]
        if settings.way != SCRATCH:
            begin(build(settings, target)[0], settings.seed, source.config, source.workdir, workdir)
        return train(settings, workdir, target)

    done = settled(tuned, grid.train(on_target, tuned))
    if args.part != grid.WHOLE:
        return print("This was a part. The command without --part gathers all parts.")
    grid.one_code(trained + done)
    of_source = {f"source: {model}": {"model": model} for model in models}
    of_target = {run.label: {name: run.config[name] for name in ("target", "model", "way")} for run in tuned}
    entries = grid.entries(first, trained, of_source, kept=KEPT) | grid.entries(tuned, done, of_target, kept=KEPT)
    less = reductions(entries)
    summary.show("Transfer from SRCD", table(entries, less), heading=True)
    made = gather.made_by(trained + done)
    if data is None and {target.name for target in chosen} & set(targets.PUBLISHED):
        made["notes"].append("Generated files of the published formats say nothing of the published data.")
    about = {"targets": {target.called: target.name for target in chosen}, "reduction": less}
    result = gather.result("transfer", QUESTION, COMMAND, made, config=config, entries=entries, data=about)
    catalogue.leave(result, folder)


def settled(todo: list[grid.Run], done: list[dict | None]) -> list[dict]:
    """Returns the summaries of these runs. Raises ValueError if one diverged."""
    for run, found in zip(todo, done, strict=True):
        if found is None:
            raise ValueError(f"the run in {run.workdir} diverged; lower optimizer.learning_rate for all of them")
    return done


if __name__ == "__main__":
    launch.run(
        main,
        config="transfer.py:tiny",
        runs="runs/transfer",
        seeds=3,
        part=grid.WHOLE,
        model=launch.Flag([], "Model to transfer; all by default. May be repeated.", tuple(SELECTION)),
        target=launch.Flag([], "Task to transfer to; all by default. May be repeated.", tuple(SCORES)),
        data=launch.Flag("", "Folder with the published files. Without it, files of the same formats are generated."),
        takes="60 runs of about two minutes each on one CPU core",
    )
