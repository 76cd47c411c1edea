"""Code of all mains that train: builds models from settings, trains them, and writes summaries."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
from ml_collections import ConfigDict

from cram_jax.analysis import accounting
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.layer import Layer
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.objective import ObjectiveConfig
from cram_jax.functional.palimpsa import PalimpsaConfig
from cram_jax.functional.posterior_cram import PosteriorCRAMConfig
from cram_jax.functional.seqboat import SeqBoatConfig
from cram_jax.models.stack import Stack, jamba_pattern
from cram_jax.training import files, loop, processes, replay, step
from cram_jax.training.checkpoints import Checkpoints
from cram_jax.training.controller import PriceConfig
from cram_jax.training.files import read, strict
from cram_jax.training.loop import RunConfig
from cram_jax.training.machine import versions
from cram_jax.training.optimizer import OptimizerConfig
from cram_jax.training.settings import claim_workdir, from_config, to_config
from cram_jax.training.step import Learner, TrainState
from cram_jax.training.task import Task
from lib import summary
from lib.circular import CircularCRAMConfig
from lib.controls import NeverWrittenConfig

log = logging.getLogger(__name__)

PROBED = 16  # batches in the last probe
LAYERS: dict[str, type[Layer]] = {  # sections of settings that hold a layer
    "cram": CRAMConfig,
    "posterior_cram": PosteriorCRAMConfig,
    "transformer": AttentionConfig,
    "mamba2": Mamba2Config,
    "metamamba2": Mamba2Config,
    "palimpsa": PalimpsaConfig,
    "gated_linear": PalimpsaConfig,
    "gated_delta": PalimpsaConfig,
    "seqboat": SeqBoatConfig,
}
# The sections that all mains have. `--help` takes the meaning of a setting from its dataclass.
SECTIONS = LAYERS | {
    "optimizer": OptimizerConfig,
    "objective": ObjectiveConfig,
    "price": PriceConfig,
    "run": RunConfig,
}
MEANINGS = {
    "seed": "decides parameters and data.",
    "model": "section of settings for the layers; jamba, circular and never_written use the sections of other models.",
    "depth": "how often the model's pattern of layers is repeated.",
    "rolled": "whether the network is compiled once for all repeats.",
    "remat": "whether gradients recompute a repeat, instead of keeping what it computed; with rolled.",
}


def _layer(config: ConfigDict, section: str, kind: type[Layer] | None = None) -> Layer:
    return from_config((kind or LAYERS[section])(), config[section])


# Models that use the sections of other models: (sections, pattern of layers)
PATTERNS: dict[str, tuple[tuple[str, ...], Callable[[ConfigDict], tuple[Layer, ...]]]] = {
    "jamba": (
        ("mamba2", "transformer"),
        lambda config: jamba_pattern(_layer(config, "mamba2"), _layer(config, "transformer")),
    ),
    "circular": (("cram",), lambda config: (_layer(config, "cram", CircularCRAMConfig),)),
    "never_written": (("posterior_cram",), lambda config: (_layer(config, "posterior_cram", NeverWrittenConfig),)),
}


def models(config: ConfigDict) -> dict[str, Callable[[ConfigDict], tuple[Layer, ...]]]:
    """Returns the models that these settings can build, by name: functions that return the pattern of layers."""
    plain = {name: (lambda config, name=name: (_layer(config, name),)) for name in LAYERS if name in config}
    return plain | {name: pattern for name, (needs, pattern) in PATTERNS.items() if all(n in config for n in needs)}


def variant_of(variants: dict, name: str):
    """Returns the settings of a config file's variant.

    Raises:
      ValueError: if there is no such variant. The message lists the variants.
    """
    if name not in variants:
        raise ValueError(f"unknown variant {name!r} of this config; there are {sorted(variants)}")
    return variants[name]


def settings(run: RunConfig, layers: dict[str, Layer], price: PriceConfig, **more) -> ConfigDict:
    """Returns the settings that every experiment has, and `more`.

    The learning-rate schedule is as long as the run, and the transformer's cache as long as the sequences.

    Args:
      run: settings of the run.
      layers: layers by their names in LAYERS. The transformer must be among them. The first is the default model.
      price: settings of the price of attention.
      more: further settings, or other values. `depth` is how often the model's pattern of layers is repeated: 2 for
        two layers of one kind, 1 for Jamba's eight layers.
    """
    config = ConfigDict(
        {
            "seed": 0,
            "model": next(iter(layers)),
            "depth": 2,
            "rolled": False,
            "remat": False,
            **{name: to_config(layer) for name, layer in layers.items()},
            "optimizer": to_config(OptimizerConfig()),
            "objective": to_config(ObjectiveConfig()),
            "price": to_config(price),
            "run": to_config(run),
            **more,
        }
    )
    config.optimizer.steps = config.run.get_oneway_ref("steps")
    config.transformer.context = config.run.get_oneway_ref("length")
    return config


def change(config: ConfigDict, changes: dict) -> ConfigDict:
    """Sets some settings, in place, and returns all of them.

    Args:
      config: the settings.
      changes: new values, by dotted names such as "optimizer.learning_rate".

    Raises:
      KeyError: if a setting does not exist. The message lists those that do.
    """
    for name, value in changes.items():
        *sections, last = name.split(".")
        section = config
        for part in sections:
            section = section[part]
        if last not in section:
            raise KeyError(f"unknown setting {name!r}: there are {sorted(section)}")
        section[last] = value
    return config


def build(config: ConfigDict, task: Task) -> tuple[Learner, RunConfig]:
    """Returns what to train, and for how long, from the settings.

    Raises:
      ValueError, KeyError: if settings are unknown, out of range, or contradict each other.
    """
    run = from_config(RunConfig(), config.run)  # first: other settings follow its own
    if config.model not in (found := models(config)):
        raise ValueError(f"config.model must be one of {sorted(found)}, got {config.model!r}")
    learner = Learner(
        task=task,
        model=Stack(found[config.model](config), config.depth, config.get("rolled", False), config.get("remat", False)),
        optimizer=from_config(OptimizerConfig(), config.optimizer),
        objective=from_config(ObjectiveConfig(), config.objective),
        price=from_config(PriceConfig(), config.price),
    )
    return learner, run


def last_state(learner: Learner, seed: int, workdir: Path, patterns: int = 0) -> tuple[int, TrainState]:
    """Returns (step, state) of the newest checkpoint of a run.

    Raises:
      ValueError: if there is no checkpoint, or it is of another model.
    """
    saves = Checkpoints(workdir / "checkpoints")
    found = saves.restore(step.init(learner, seed, patterns))
    saves.close()
    if found is None:
        raise ValueError(f"{workdir} holds no checkpoint; train a model there first")
    return found


def begin_from(
    make: Callable[[TrainState], tuple[int, TrainState]],
    learner: Learner,
    seed: int,
    workdir: Path,
    patterns: int = 0,
    said: dict | None = None,
) -> None:
    """Saves a checkpoint in `workdir` from which the training there will start; does nothing if it has one.

    Args:
      make: returns (step, state) of that checkpoint from a fresh state of this learner.
      said: what `launches.jsonl` is to say of this start, too. It is read after `make`.

    Raises:
      OSError: if it cannot be saved.
    """
    with files.held(workdir):
        saves, fresh = Checkpoints(workdir / "checkpoints"), step.init(learner, seed, patterns)
        if saves.restore(fresh) is None:
            at, state = make(fresh)
            files.append(workdir / "launches.jsonl", versions() | {"from_step": at, "begins": True} | (said or {}))
            saves.save(at, state)
        if not saves.close():
            raise OSError(f"{workdir}: the state to begin from could not be saved; the same command tries again")


def one(args: SimpleNamespace, train: Callable, learner: Learner, run: RunConfig, patterns: int = 0) -> None:
    """Does what the flags of one run ask for (`launch.ONE_RUN`): repeats a step that was skipped, or trains.

    Args:
      train: trains or resumes the run, from (settings, directory).
      patterns: number of recurring patterns, whose exposures are counted.
    """
    if processes.several() and (args.replay or args.warm_start):
        raise ValueError("--replay and --warm_start work in one process; start without --process")
    run.layout()  # so that devices which are not there show before anything is written
    if not args.replay:
        train(args.config, start(args, learner, patterns))
        return
    found = replay.repeat(learner, run, args.config.seed, files.folder(args.workdir), args.replay, patterns)
    print("\n".join([f"step {args.replay}, repeated:", *(found or ["everything is finite"])]))


def start(args: SimpleNamespace, learner: Learner, patterns: int = 0) -> Path:
    """Does what --extend and --warm_start ask for before a training; returns the directory of the run.

    Raises:
      ValueError: if the directory holds a run with other settings or another start, or there is nothing to start from.
    """
    workdir, source = files.folder(args.workdir), args.warm_start
    processes.check_alike(f"{args.workdir} {args.config.to_json()}", "a --workdir or settings")
    if processes.first():
        claim_workdir(workdir, args.config, looks=True, extend=args.extend)
    if not source:
        return workdir
    if not (files.folder(source) / "checkpoints").is_dir():
        raise ValueError(f"--warm_start={source} holds no checkpoints; name the directory of a run")
    said = {"warm_start": source}

    def begin(fresh):
        said["warm_start_step"], state = last_state(learner, args.config.seed, files.folder(source), patterns)
        log.info("begins with the parameters of step %d in %s", said["warm_start_step"], source)
        return 0, fresh._replace(params=state.params)

    begin_from(begin, learner, args.config.seed, workdir, patterns, said)
    if source not in {launch.get("warm_start") for launch in read(workdir / "launches.jsonl")}:
        raise ValueError(
            f"{workdir} holds a run that did not begin with --warm_start={source}; leave it out to go on with that run,"
            " or give another --workdir"
        )
    return workdir


def train(config: ConfigDict, learner: Learner, run: RunConfig, workdir: Path, patterns: int = 0):
    """Trains in the directory, or resumes the run there; returns (state, logged lines)."""
    if processes.first():
        claim_workdir(workdir, config, looks=True)
    return loop.train(learner, run, config.seed, workdir, patterns)


def finish(learner: Learner, run: RunConfig, seed: int, state, lines: list[dict]) -> dict:
    """Returns what every summary holds: a last evaluation on many tokens, the attention curve, times and versions."""
    final = loop.evaluate(learner, run, state, seed, run.final_tokens)
    out = summary.summarise(lines, final, loop.probe(learner, run, state, seed, PROBED), seed)
    if missing := summary.missing_lines(lines, int(state.step), run.log_every):
        log.warning("metrics.jsonl has no lines for steps %s: the curve has gaps, and so have figures from it", missing)
    out |= {"steps": int(state.step), "missing_lines": len(missing)}
    out |= {"length": run.length, "length_start": run.shape(0)[0]}
    caches = jax.eval_shape(lambda: learner.model.init_cache(1))
    out |= {"parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params))}
    out |= {"state_bytes": accounting.state_bytes(caches)}
    return out | {"held_out_tokens": run.held_out_batches(run.final_tokens) * run.length * run.batch}


def complete(
    config: ConfigDict,
    workdir: Path,
    learner: Learner,
    run: RunConfig,
    *,
    finish: Callable[[Learner, RunConfig, int, TrainState, list[dict]], dict],
    table: Callable[[dict], list[tuple[str, ...]]],
    title: str,
    patterns: int = 0,
) -> tuple[dict, list[dict]]:
    """Trains or resumes one run, prints and writes its summary, and returns (summary, logged lines).

    Args:
      finish: returns the summary.
      table: returns the printed rows of a summary.
      title: what the run is about, for the printed table.
      patterns: number of recurring patterns, whose exposures are counted.
    """
    state, lines = train(config, learner, run, workdir, patterns)
    out = finish(learner, run, config.seed, state, lines)
    report(workdir, f"{title}, {config.model}, seed {config.seed}", out, table(out))
    return out, lines


def report(workdir: Path, title: str, out: dict, rows: list[tuple[str, ...]]) -> None:
    """Writes `summary.json`, with the commits and machines that trained the run, and prints the table."""
    launches = read(workdir / "launches.jsonl")
    commits = {launch["commit"] for launch in launches}
    machines = {f"{launch['device']} of {launch['cpu']}, jax {launch['jax']}" for launch in launches}
    out |= {"trained_by": sorted(commit for commit in commits if isinstance(commit, str))}
    out |= {"trained_on": sorted(machines)}
    if started := [launch["warm_start"] for launch in launches if "warm_start" in launch]:
        out |= {"warm_start": started[-1]}
    if processes.first():
        files.write_whole(workdir / "summary.json", json.dumps(strict(out), indent=1) + "\n")
    summary.show(title, rows)
    print("docs/glossary.md says what the words mean.")
