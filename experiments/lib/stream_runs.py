"""Trains models on streams and deploys them in fresh ones: what both mains on streams do."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cram_jax.tasks.streams import StreamsConfig
from cram_jax.tasks.streams_task import StreamsTask
from cram_jax.training import files
from cram_jax.training.files import read, strict
from cram_jax.training.loop import RunConfig
from cram_jax.training.machine import versions
from cram_jax.training.settings import claim_workdir, from_config
from cram_jax.training.step import Learner, TrainState
from lib import deployment, gather, grid, live, runs, summary
from lib.figures import catalogue
from lib.joined import JoinedTask
from lib.readers import Reader

BLOCK = 10  # visits of a line that is printed
FLAGS = dict(config="streams.py:small", runs="runs/streams_small", seeds=1)  # of all mains on streams
Counts = dict[str, np.ndarray]  # by name, with an axis of visits in front


class Entry(NamedTuple):
    """Attributes:
    settings: those that differ, by dotted names. Entries with the same ones share a training.
    reader: how the trained model reads fresh streams, one of the functions at the end of `lib/readers.py`.
    deployed: settings that differ in deployment only. They must not change the shapes of parameters.
    """

    settings: dict
    reader: Callable[[Learner, ConfigDict], Reader]
    deployed: dict = {}


def build(config: ConfigDict) -> tuple[Learner, RunConfig]:
    """Returns what to train, and for how long, from the settings.

    With `carried`, training sequences have `joined` visits, and batches that many times fewer sequences. The training
    takes `longer` times as many steps.

    Raises:
      ValueError, KeyError: if settings are unknown, out of range, or contradict each other.
    """
    data = from_config(StreamsConfig(), config.data)
    if not config.carried:
        return runs.build(config, StreamsTask(data, config.dynamics_weight))
    if config.longer < 1:
        raise ValueError(f"longer must be at least 1, got {config.longer}")
    config = config.copy_and_resolve_references()
    config.run.steps, config.optimizer.steps = (config.longer * one.steps for one in (config.run, config.optimizer))
    learner, run = runs.build(config, JoinedTask(data.one_visit, config.dynamics_weight, data))
    joined = tuple(config.joined)
    if not joined or any(one < 1 or run.batch % one for one in joined):
        raise ValueError(f"each number in joined must divide run.batch={run.batch}, got joined={joined}")
    shapes = [(run.length * one, run.batch // one) for one in joined]
    stages = tuple((run.steps // len(joined), *shape) for shape in shapes[:-1])
    return learner, dataclasses.replace(run, length=shapes[-1][0], batch=shapes[-1][1], curriculum=stages)


def settings(config: ConfigDict, entry: Entry, seed: int) -> ConfigDict:
    """Returns the settings of one training of an entry."""
    config = config.copy_and_resolve_references()
    config.seed = seed
    return runs.change(config, entry.settings)


def unchanged(data: StreamsConfig) -> StreamsConfig:
    """Returns the settings of the streams in training, for fresh streams like them."""
    return data


def deployed_settings(config: ConfigDict, entry: Entry) -> ConfigDict:
    """Returns the settings of an entry's deployment, from those of its training."""
    return runs.change(config.copy_and_resolve_references(), entry.deployed)


def deployed_learner(config: ConfigDict, entry: Entry, change=unchanged) -> Learner:
    """Returns the learner for the deployment, which reads visit after visit, however training read them.

    Args:
      config: settings of the entry's training.
      change: returns the settings of the fresh streams from those of the streams in training.
    """
    config = deployed_settings(config, entry)
    data = change(from_config(StreamsConfig(), config.data))
    return dataclasses.replace(build(config)[0], task=StreamsTask(data, config.dynamics_weight))


def workdir(at: Path, entries: dict[str, Entry], label: str, seed: int) -> Path:
    """Returns the directory of an entry's training: that of the first entry with the same settings."""
    first = next(one for one, entry in entries.items() if entry.settings == entries[label].settings)
    return at / grid.folder(first) / f"seed_{seed}"


def deployed(
    config: ConfigDict,
    entries: dict[str, Entry],
    chosen: Iterable[str],
    seed: int,
    at: Path,
    kept: str,
    change: Callable[[StreamsConfig], StreamsConfig] = unchanged,
) -> dict[str, Counts]:
    """Trains what the chosen entries need and deploys them, or reads what an earlier call with these settings left.

    Args:
      entries: all entries. chosen: labels of some.
      at: directory of all trainings.
      kept: folder for the counts, within the directory of a training.
      change: see `deployed_learner`.

    Returns:
      Counts of each chosen entry.
    """
    found, trained = {}, {}
    for label in chosen:
        entry, place = entries[label], workdir(at, entries, label, seed)
        own = settings(config, entry, seed)
        fresh, settled = deployed_learner(own, entry, change), deployed_settings(own, entry)
        claim_workdir(place, _of_training(own))
        path = _counts_file(place, kept, label)
        asked = json.loads(json.dumps(settled.to_dict() | {"data": dataclasses.asdict(fresh.task.data)}))
        if not path.exists() or json.loads(path.read_text())["settings"] != asked:
            if place not in trained:
                print(f"{label}, seed {seed}: {place}", flush=True)
                trained[place] = train(own, place)
            counts = deploy(label, entry.reader(fresh, settled.deployment), trained[place], settled)
            path.parent.mkdir(exist_ok=True)
            listed = {name: values.tolist() for name, values in counts.items()}
            files.write_whole(path, json.dumps({"settings": asked, "made_by": versions(), "counts": listed}))
        counts = json.loads(path.read_text())["counts"]
        found[label] = {name: np.array(values) for name, values in counts.items()}
    return found


def train(own: ConfigDict, place: Path) -> TrainState:
    """Returns the model that these settings train, in this directory; trained now, unless it is there."""
    state, _ = runs.train(_of_training(own), *build(own), place)
    return state


def _of_training(own: ConfigDict) -> ConfigDict:
    """Without the settings of the deployment, so that a trained model can be deployed with others."""
    return ConfigDict({name: of for name, of in own.items() if name != "deployment"})


def _counts_file(place: Path, kept: str, label: str) -> Path:
    return place / kept / f"{grid.folder(label)}.json"


def deploy(label: str, reader: Reader, trained: TrainState, settled: ConfigDict, **more) -> Counts:
    """Deploys a trained model, in sight of a person. more: for `deployment.deploy`."""
    visits = settled.deployment.visits
    with live.shown(f"{label}, seed {settled.seed}", visits, functools.partial(_progress, label)) as show:
        return deployment.deploy(
            reader,
            trained,
            size=settled.deployment.streams,
            visits=visits,
            length=settled.run.length,
            seed=settled.seed,
            show=show,
            **more,
        )


def _progress(label: str, done: int, counts: list[dict]) -> None:
    if done % BLOCK:
        return
    row = deployment.blocks({name: np.stack([one[name] for one in counts[-BLOCK:]]) for name in counts[0]}, BLOCK)[0]
    percent = lambda name: summary.percent(row[name])
    print(
        f"{label}: visits {done - BLOCK} to {done - 1}  "
        f"attend {percent('attention_tokens')} (first queries {percent('least')})  "
        f"right {percent('retrieval_accuracy')}, new {percent('retrieval_accuracy_new')}",
        flush=True,
    )


def made_by(at: Path, entries: dict[str, Entry], chosen: Iterable[str], seeds: Iterable[int], kept: str) -> dict:
    """Returns `made_by` of a result of these entries: from all launches of their trainings, and from the deployments.

    Args: as for `deployed`.
    """
    runs_of = [(workdir(at, entries, label, seed), label) for label in chosen for seed in seeds]
    places = dict.fromkeys(place for place, _ in runs_of)
    launches = [line for place in places for line in read(place / "launches.jsonl")]
    deployments = [json.loads(_counts_file(place, kept, label).read_text())["made_by"] for place, label in runs_of]
    return gather.made_by_launches(launches + deployments)


def entry(of: Entry, made: dict, found: list[dict], **parts) -> dict:
    """Returns an entry of a result.

    Args:
      made: `made_by`.
      found: numbers of each seed.
      parts: further parts of the entry, such as curves.
    """
    flat = [gather.flat(run | {"trained_by": made["commits"], "trained_on": made["machines"]}) for run in found]
    parts |= {"deployed": of.deployed} if of.deployed else {}
    return strict({"settings": of.settings, "runs": flat, **gather.statistics(flat), **parts})


def leave(main: str, args, name: str, question: str, made: dict, entries: dict, data: dict | None = None) -> None:
    """Writes a result and its figure to a folder with its name below --runs.

    Args:
      main, args: of the command, which the result states. Trainings of one variant share a directory.
    """
    variant, what = args.config.variant, f" --what={args.what}" if hasattr(args, "what") else ""
    command = (
        f"python experiments/{main}.py --config=experiments/configs/streams.py:{variant}{what} "
        f"--runs=runs/streams_{variant} --seeds={args.seeds}"
    )
    config = args.config.copy_and_resolve_references()
    result = gather.result(name, question, command, made, config=config, entries=entries, data=data)
    catalogue.leave(result, Path(args.runs) / name)


def table(columns: Iterable[summary.Column], entries: dict[str, dict]) -> list[tuple[str, ...]]:
    """Returns a heading, and a row for each entry: means over seeds, a dash where there is none.

    A column that no entry has a number for is left out.
    """
    columns = [one for one in columns if any(found["mean"].get(one.number) is not None for found in entries.values())]

    def cell(found: dict, column: summary.Column) -> str:
        value = found["mean"].get(column.number)
        return summary.percent(value) if value is None or column.written == "%" else format(value, column.written)

    headings = ("", *(column.heading for column in columns))
    return [headings, *((label, *(cell(found, column) for column in columns)) for label, found in entries.items())]
