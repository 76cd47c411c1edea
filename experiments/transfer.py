"""Transfers models trained on SRCD to other tasks and compares their attention with training from scratch.

python experiments/transfer.py --config=experiments/configs/transfer.py:tiny --runs=runs/transfer [--data=FOLDER]

The protocol is the config's. Every run is in a directory of its own below --runs: stopped, the same command goes on
where it was, and finished runs are not run again. Two processes with --part=0/2 and --part=1/2 use two cores; the whole
command after them only gathers. Result and figure go to --results.
"""

import itertools
import os
import tempfile
from pathlib import Path

import grid
import jax
import numpy as np
import srcd
from absl import flags
from cram_jax.training.learner import Learner
from lib import gather, results
from lib.figures import transfer as transfer_figures
from ml_collections import ConfigDict

from cram_jax.analysis import summary
from cram_jax.tasks.copying import CopyConfig
from cram_jax.tasks.copying_task import CopyTask
from cram_jax.tasks.irregular_generated import PATHS, write_generated
from cram_jax.tasks.irregular_task import IrregularTask, area_under_curve
from cram_jax.training import experiment, loop
from cram_jax.training import learner as learning
from cram_jax.training.checkpoints import Checkpoints
from cram_jax.training.loop import RunConfig
from cram_jax.training.metrics import read
from cram_jax.training.settings import from_config

MODELS = ("cram", "seqboat")
RUNS = flags.DEFINE_string("runs", "runs/transfer", "Where the runs are, and generated files.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds, of both phases.")
DATA = flags.DEFINE_string("data", None, "Folder with the published files; generated ones stand in without.")
MODEL = flags.DEFINE_multi_enum("model", [], MODELS, "What to transfer; every model by default.")
TARGET = flags.DEFINE_multi_string("target", [], "What to transfer to; every target by default.")
PART = flags.DEFINE_string("part", "0/1", "i/n, i from 0: only every n-th pair of model and seed, no result.")
RESULTS = flags.DEFINE_string("results", "runs/transfer", "Where result and figure go.")

QUESTION = "Does a model trained on SRCD save attention on another task, against training from scratch?"
COMMAND = "python experiments/transfer.py --config=experiments/configs/transfer.py:tiny --runs=runs/transfer"

SELECTION = {"cram": ("semantic", "router"), "seqboat": ("working", "choice_Dx2", "log_temperature")}
WAYS = ("from scratch", "frozen", "head alone")
SCORES = {"copy": "accuracy", "records": "area_under_curve", "motion": "accuracy"}
# Published files as their archives name them, and what the data is called
PUBLISHED = {
    "records": (("set-a", "Outcomes-a.txt"), "PhysioNet 2012"),
    "motion": (("ConfLongDemo_JSI.txt",), "Person Activity"),
}
# What the result keeps of a run, and of its logged lines
KEPT = (
    "seed", "score", "accuracy", "accuracy_recurring", "accuracy_new", "label_nats", "realised_new_share",
    "attention_tokens_start", "attention_tokens_peak", "attention_tokens_end", "attention_utilisation_end",
    "attention_asked", "attention_query_new", "kept_share", "router_released_step", "train_seconds", "commit",
    "machine",
)  # fmt: skip
CURVES = ("step", "held_out/attention_tokens", "held_out/accuracy", "held_out/label_nats", "train/price")


def files_of(target: str, config: ConfigDict, data: Path | None, runs: Path) -> tuple[str, tuple[str, ...]]:
    """(what the target is called, the paths its reader takes), generated where no published ones are given.

    Raises:
      ValueError: for published files that are not there.
    """
    if target not in PUBLISHED:
        return target, ()
    names, called = PUBLISHED[target]
    if data is None:
        made = config.targets[target].generated
        folder = runs / f"generated_{target}_{made.series}_of_{made.events}"  # other sizes are other files
        return f"generated files of the {called} format", _generated(config.targets[target], folder)
    paths = tuple(str(data / name) for name in names)
    missing = [path for path in paths if not Path(path).exists()]
    if missing:
        raise ValueError(
            f"--data={data} lacks {', '.join(missing)}; unpack {called} there, or choose others by --target"
        )
    return called, paths


def _generated(about: ConfigDict, folder: Path) -> tuple[str, ...]:
    """Paths of generated files in `folder`, which are written if it is not there: all of them, or none."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            write_generated(about.data.format, Path(made) / "files", about.generated.series, about.generated.events)
            try:
                os.rename(Path(made) / "files", folder)
            except OSError:
                if not folder.exists():  # else another process was faster
                    raise
    return tuple(str(folder / name) for name in PATHS[about.data.format])


def source_settings(config: ConfigDict, model: str, seed: int) -> ConfigDict:
    """Of the training on SRCD."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        del config.targets
    config.model, config.seed, config.data.table_seed = model, seed, seed
    if model == "seqboat":
        config.optimizer.weight_decay = 0.01  # that of every baseline, see configs/comparisons.py
    return config


def target_settings(
    config: ConfigDict, target: str, model: str, way: str, seed: int, paths: tuple[str, ...]
) -> ConfigDict:
    """Of one run on a target. What the files hold is part of them, where they are is not."""
    about = config.targets[target].copy_and_resolve_references()
    config = source_settings(config, model, seed)
    with config.unlocked():
        del config.data, config.dynamics_weight
        config.target, config.way, config.data = target, way, about.data
        if target == "copy":
            config.data.update(table_seed=seed, length=config.run.length, batch=config.run.batch)
        else:
            task = task_of(config, paths)
            config.data.files = task.collection.fingerprint
            # The last evaluation goes through the held-out windows once.
            windows, run = len(task.windows("held_out", config.run.length).series_N), config.run
            run.final_tokens = min(run.final_tokens, max(1, windows // run.batch) * run.batch * run.length)
    config.price.update(about.price)
    config.optimizer.frozen = {"from scratch": (), "frozen": SELECTION[model], "head alone": ("model",)}[way]
    return config


def task_of(config: ConfigDict, paths: tuple[str, ...]) -> CopyTask | IrregularTask:
    """The target's task, from a run's settings."""
    if config.target == "copy":
        return CopyTask(from_config(CopyConfig(), config.data))
    return IrregularTask(config.data.format, paths, config.data.validation_share, config.data.held_out_share)


def build(config: ConfigDict, paths: tuple[str, ...]) -> tuple[Learner, RunConfig]:
    """What to train on a target and for how long, from a run's settings.

    Raises:
      ValueError, KeyError: for settings out of range, or parts to freeze that the model lacks.
    """
    learner, run = experiment.build(config, task_of(config, paths))
    jax.eval_shape(lambda: learning.init(learner, config.seed, 0))
    return learner, run


def place(learner: Learner, seed: int, source: ConfigDict, trained: Path, workdir: Path) -> None:
    """Puts the layers trained on SRCD into `workdir` as its step 0, unless it has begun.

    The router is trained already, so it decides from the first step: `ConsolidationState` comes with the layers,
    released, with the statistics that the frozen semantic memory and q-hat belong to; its means follow the target's
    retrievals within some 100 steps. The price starts anew, by the same rule as from scratch: it is in units of a loss,
    and the source's loss, far below the target's first ones, would count as a tolerance broken for ever. It does not
    start at once either: while the embedding is fresh nothing is worth attending to, and a price would teach just that.
    """
    before, _ = srcd.build(source)
    saves, state = Checkpoints(workdir / "checkpoints"), learning.init(learner, seed, 0)
    if saves.restore(state) is None:
        patterns = before.task.data.patterns
        _, last = Checkpoints(trained / "checkpoints").restore(learning.init(before, source.seed, patterns))
        params = state.params._replace(model=last.params.model)
        saves.save(0, state._replace(params=params, consolidation=last.consolidation))
    saves.close()


def finish(config: ConfigDict, learner: Learner, run: RunConfig, state, lines: list[dict]) -> dict:
    """The run's summary, with the score its target is judged by."""
    out = experiment.finish(learner, run, config.seed, state, lines)
    if SCORES[config.target] == "area_under_curve":
        found = loop.evaluate(learner, run, state, config.seed, run.final_tokens)
        out["area_under_curve"] = area_under_curve(found["negative_bins"], found["positive_bins"])
    if config.way != WAYS[0] and learner.model.consolidates:  # it was before the first step; what came later is a price
        out |= {"price_started_step": out["router_released_step"], "router_released_step": 0}
    return out | {"score": out[SCORES[config.target]]}


def train(config: ConfigDict, workdir: Path, paths: tuple[str, ...], called: str) -> dict:
    """One run on a target, or what is left of it: its summary, which is shown and written into the directory."""
    learner, run = build(config, paths)
    state, lines = experiment.train(config, learner, run, workdir)
    out = finish(config, learner, run, state, lines)
    rows = [(SCORES[config.target].replace("_", " "), f"{out['score']:.4f}"), *summary.attention_rows(out, "event")]
    title = f"{called}, {config.model}, {config.way}, seed {config.seed}"
    experiment.report(workdir, title, out, rows + summary.time_rows(out, "event"))
    return out


def source_folder(runs: Path, model: str, seed: int) -> Path:
    """Of the training on SRCD."""
    return runs / "source" / f"{model}_seed_{seed}"


def target_folder(runs: Path, target: str, way: str, model: str, seed: int) -> Path:
    """Of what comes of it."""
    return runs / target / f"{model}_{way.replace(' ', '_')}_seed_{seed}"


def chain(config: ConfigDict, targets: dict, model: str, seed: int, runs: Path) -> tuple[dict, dict]:
    """A model's training on SRCD with one seed, and all that comes of it: (its summary, summaries by target and way).

    Args:
      targets: by name, what they are called and their files.

    Raises:
      ValueError: where one diverged.
    """
    trained, source = source_folder(runs, model, seed), source_settings(config, model, seed)

    def settled(found: dict | None, workdir: Path) -> dict:
        if found is None:
            raise ValueError(f"the run in {workdir} diverged; lower optimizer.learning_rate for all of them")
        return found

    first = settled(grid.once(srcd.train, source, trained), trained)
    out = {}
    for target, (called, paths) in targets.items():
        for way in WAYS:
            workdir = target_folder(runs, target, way, model, seed)

            def run(settings: ConfigDict, workdir: Path, way=way, paths=paths, called=called) -> dict:
                if way != "from scratch":
                    place(build(settings, paths)[0], seed, source, trained, workdir)
                return train(settings, workdir, paths, called)

            settings = target_settings(config, target, model, way, seed, paths)
            found = settled(grid.once(run, settings, workdir), workdir)
            out[target, way] = found | {"curve": gather.columns(read(workdir / "metrics.jsonl"), CURVES)}
    return first, out


def reduction(attention: float, from_scratch: float) -> float | None:
    """1 - attention / attention from scratch; None where that is 0."""
    return 1 - attention / from_scratch if from_scratch else None


def entry(runs: list[dict], kept: tuple[str, ...], settings: dict) -> dict:
    """An entry of these runs, given by their summaries, of which it keeps these numbers; with curves where they have
    one."""
    flat = [{name: value for name, value in gather.flat(run).items() if name in kept} for run in runs]
    curves = {"curves": [run["curve"] for run in runs]} if "curve" in runs[0] else {}
    return {"settings": settings, "runs": flat, **gather.statistics(flat), **curves}


def compare(done: dict, targets: dict, models: list[str], seeds: range) -> tuple[dict, dict]:
    """(entries of the sources, and of every target, model and way; reductions by the labels of what was transferred:
    of the means, and by seed).

    Args:
      done: what `chain` says, by (model, seed). targets: by name, what they are called and their files.
    """
    kept = ("seed", "retrieval_accuracy", "attention_tokens_end", "commit", "machine")
    source = lambda model: entry([done[model, seed][0] for seed in seeds], kept, {"model": model})
    entries, reductions = {f"source: {model}": source(model) for model in models}, {}
    for (target, (called, _)), model, way in itertools.product(targets.items(), models, WAYS):
        runs = [done[model, seed][1][target, way] for seed in seeds]
        label = f"{called}: {model}, {way}"
        entries[label] = entry(runs, KEPT, {"target": target, "model": model, "way": way})
        if way != WAYS[0]:
            scratch = [done[model, seed][1][target, WAYS[0]] for seed in seeds]
            attends = [[run["attention_tokens_end"] for run in some] for some in (runs, scratch)]
            by_seed = [reduction(*pair) for pair in zip(*attends, strict=True)]
            reductions[label] = {"mean": reduction(*map(np.mean, attends)), "by_seed": by_seed}
    return entries, reductions


def table(entries: dict, reductions: dict) -> list[tuple[str, str]]:
    """Rows of (target, model and way; score, attention and reduction) for a person."""
    rows = []
    for label, found in entries.items():
        name = "score" if "score" in found["mean"] else "retrieval_accuracy"
        spread = f" +- {found['sd'][name]:.3f}" if found["sd"] else ""
        less = f"  less by {summary.percent(reductions[label]['mean'])}" if label in reductions else ""
        attends = f"{summary.percent(found['mean']['attention_tokens_end'])} attend{less}"
        rows.append((label, f"{found['mean'][name]:.3f}{spread}  {attends}"))
    return rows


def main(_) -> None:
    experiment.quiet()
    config, runs, folder = srcd.CONFIG.value, Path(RUNS.value), Path(RESULTS.value)
    unknown = set(TARGET.value) - set(config.targets)
    if unknown:
        raise ValueError(f"--target names {sorted(unknown)}; there are {sorted(config.targets)}")
    data = Path(DATA.value) if DATA.value else None
    targets = {name: files_of(name, config, data, runs) for name in TARGET.value or SCORES}
    seeds, models = range(SEEDS.value), MODEL.value or list(MODELS)
    for (target, (_, paths)), model, way in itertools.product(targets.items(), models, WAYS):
        build(target_settings(config, target, model, way, 0, paths), paths)  # what is wrong shows before the first run

    part, parts = grid.parted(PART.value)
    mine = list(itertools.product(models, seeds))[part::parts]
    ways = list(itertools.product(targets, WAYS))
    at = lambda *one: [source_folder(runs, *one), *(target_folder(runs, target, way, *one) for target, way in ways)]
    grid.check_code([workdir for one in mine for workdir in at(*one)])
    done = {one: chain(config, targets, *one, runs) for one in mine}
    if parts > 1:
        return  # a part is no result
    runs_done = [run for first, rest in done.values() for run in (first, *rest.values())]
    grid.one_code(runs_done)
    entries, reductions = compare(done, targets, models, seeds)
    data = {"targets": {called: target for target, (called, _) in targets.items()}, "reduction": reductions}
    made = gather.made_by(runs_done)
    if DATA.value is None and set(targets) & set(PUBLISHED):
        made["notes"].append("Generated files of the published formats say nothing of the published data.")
    result = gather.result("transfer", QUESTION, COMMAND, made, config=config, entries=entries, data=data)
    results.write(folder, result)
    transfer_figures.draw(result, folder)
    title = "Transfer: score (of the source: retrieval), tokens that attend, against the same from scratch"
    summary.show(title, table(entries, reductions))


if __name__ == "__main__":
    experiment.launch(main)
