"""What every experiment's main shares: from settings to a learner, to a trained state, to a summary on disk."""

import contextlib
import json
import logging
import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from cram_jax.analysis import summary
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.objective import ObjectiveConfig
from cram_jax.functional.palimpsa import PalimpsaConfig
from cram_jax.functional.seqboat import SeqBoatConfig
from cram_jax.models.stack import Stack
from cram_jax.training import loop
from cram_jax.training.controller import PriceConfig
from cram_jax.training.loop import Interrupted, RunConfig
from cram_jax.training.metrics import read, strict
from cram_jax.training.optimizer import OptimizerConfig
from cram_jax.training.settings import claim_workdir, from_config, to_config
from cram_jax.training.step import Learner
from cram_jax.training.task import Task

EXPLAINED = (
    flags.Error,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OSError,
    FloatingPointError,
    Interrupted,
)
PROBED = 16  # batches of the last probe
MODELS = {  # a model's settings stand in a section of its name
    "cram": CRAMConfig,
    "transformer": AttentionConfig,
    "mamba2": Mamba2Config,
    "metamamba2": Mamba2Config,
    "palimpsa": PalimpsaConfig,
    "gated_linear": PalimpsaConfig,
    "gated_delta": PalimpsaConfig,
    "seqboat": SeqBoatConfig,
}


def variant_of(variants: dict, name: str):
    """What a config file has under the name of a variant.

    Raises:
      ValueError: for an unknown one, naming those there are.
    """
    if name not in variants:
        raise ValueError(f"unknown variant {name!r} of this config; there are {sorted(variants)}")
    return variants[name]


def settings(run: RunConfig, models: dict, price: PriceConfig, **more) -> ConfigDict:
    """The settings every experiment has, and `more`. The learning rate's schedule is as long as the run, and the
    transformer's cache as long as the sequences.

    Args:
      models: layers by the names of MODELS, CRAM and the transformer among them; each gets the same depth and data.
    """
    config = ConfigDict(
        {
            "seed": 0,
            "model": "cram",
            "depth": 2,
            **{name: to_config(layer) for name, layer in models.items()},
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


def build(config: ConfigDict, task: Task) -> tuple[Learner, RunConfig]:
    """What to train and for how long, from the settings.

    Raises:
      ValueError, KeyError: for settings out of range, unknown, or that do not fit each other.
    """
    run = from_config(RunConfig(), config.run)  # first: other settings follow its own
    models = sorted(name for name in MODELS if name in config)
    if config.model not in models:
        raise ValueError(f"config.model must be one of {models}, got {config.model!r}")
    learner = Learner(
        task=task,
        model=Stack((from_config(MODELS[config.model](), config[config.model]),), config.depth),
        optimizer=from_config(OptimizerConfig(), config.optimizer),
        objective=from_config(ObjectiveConfig(), config.objective),
        price=from_config(PriceConfig(), config.price),
    )
    return learner, run


def train(config: ConfigDict, learner: Learner, run: RunConfig, workdir: Path, patterns: int = 0):
    """Claims the directory and trains in it, or goes on: (state, logged lines)."""
    quiet()
    claim_workdir(workdir, config)
    return loop.train(learner, run, config.seed, workdir, patterns)


def quiet() -> None:
    """Progress goes to standard output; libraries speak where something is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def finish(learner: Learner, run: RunConfig, seed: int, state, lines: list[dict]) -> dict:
    """What every summary has: the last evaluation on many held-out tokens, the attention curve, times and versions."""
    final = loop.evaluate(learner, run, state, seed, run.final_tokens)
    out = summary.summarise(lines, final, loop.probe(learner, run, state, seed, PROBED), seed)
    out |= {"length": run.length, "length_start": run.shape(0)[0]}
    return out | {"held_out_tokens": run.held_out_batches(run.final_tokens) * run.length * run.batch}


def report(workdir: Path, title: str, out: dict, rows: list[tuple[str, str]]) -> None:
    """Writes `summary.json`, with the commits and machines that trained the run, and prints the table."""
    launches = read(workdir / "launches.jsonl")
    commits = {launch["commit"] for launch in launches}
    machines = {f"{launch['device']} of {launch['cpu']}, jax {launch['jax']}" for launch in launches}
    out |= {"trained_by": sorted(commit for commit in commits if isinstance(commit, str))}
    out |= {"trained_on": sorted(machines)}
    (workdir / "summary.json").write_text(json.dumps(strict(out), indent=1) + "\n")
    summary.show(title, rows)


@contextlib.contextmanager
def explained():
    """Inside, an error that names its cause ends the program in one line, and CRAM_TRACEBACK=1 in a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("error: stopped by SIGINT; the same command goes on from the last checkpoint")
    except EXPLAINED as error:
        if os.environ.get("CRAM_TRACEBACK") == "1":
            raise
        said = error
        while isinstance(said, Exception) and len(said.args) == 1:  # an error may hold another
            said = said.args[0]
        text = str(said)
        if "Traceback" in text:  # a config file's own error, as its reader passes it on
            text = text.strip().split("\n")[-1]
        where = "" if isinstance(error, ValueError) else " (CRAM_TRACEBACK=1 shows where)"
        sys.exit("error: " + " ".join(text.split()) + where)


def config_flag(default: str):
    """The flag --config; settings given on the command line are read, and refused, here.

    Args:
      default: its value, but for a main with a config of its own name, whose default variant it then is: one main may
        build on another's.
    """
    main = Path(sys.argv[0])
    own = main.parent / "configs" / main.name
    default = str(own) if own.is_file() else default
    with explained():
        return config_flags.DEFINE_config_file("config", default, "File with the settings, and their variant.")


def workdir_flag(default: str):
    """The flag --workdir."""
    return flags.DEFINE_string("workdir", default, "Where the run leaves its files; a run found there goes on.")


def launch(main) -> None:
    """Runs `main` under absl."""
    with explained():
        app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """The command line read by absl; a setting that does not exist is answered with those that do."""
    try:
        return flags.FLAGS(argv)
    except AttributeError:
        flag = flags.FLAGS["config"]
        config = flag.parser.parse(flag.default)  # whatever the variant, the settings are the same
        for name in (arg.removeprefix("--config.").split("=")[0] for arg in argv if arg.startswith("--config.")):
            section = config
            for i, part in enumerate(name.split(".")):
                if isinstance(section, ConfigDict) and part not in section:
                    where = ".".join(["config", *name.split(".")[:i]])
                    raise KeyError(f"unknown setting {part!r}: {where} has {sorted(section)}") from None
                section = section[part] if isinstance(section, ConfigDict) else None
        raise
