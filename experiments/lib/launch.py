"""Launches an experiment: flags, settings, errors in one line, `--help` and `--list`.

A main ends with

    if __name__ == "__main__":
        launch.run(main, config="srcd.py:small", workdir="runs/srcd", takes="3 minutes on two CPU cores")

and does nothing else when it is imported. `main(args)` gets `args.config` (a ConfigDict) and the value of each flag by
its name. An error that explains its cause ends the program in one line; CRAM_TRACEBACK=1 shows the traceback instead.
"""

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cram_jax.training import processes
from cram_jax.training.loop import Interrupted
from lib import manual

EXPERIMENTS = Path(__file__).parents[1]
# Errors that explain their own cause. Any other error is a bug and shows its traceback.
EXPLAINED = (flags.Error, ValueError, TypeError, KeyError, AttributeError, OSError, FloatingPointError)
STOPPED = 75  # exit status of a run that a signal stopped: EX_TEMPFAIL, try again
KINDS = {
    bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, str: flags.DEFINE_string, list: flags.DEFINE_multi_string,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Flag:
    """default: default value. Its type is the flag's type: str, int, or a list of str for a flag that may be repeated.
    help: what the flag means.
    choices: all possible values, if there are few.
    """

    default: Any
    help: str
    choices: tuple[str, ...] = ()


CONFIG = "Config file and its variant, with a colon between them."
ONE_RUN = {"extend": False, "replay": 0, "warm_start": "", "process": ""}  # flags of mains that train one run
# Help texts of flags that several mains have. Each main gives its own default.
SHARED = {
    "workdir": "Directory of the run. If it already holds a run, the same command resumes it from its last checkpoint.",
    "extend": "Train a run in --workdir for more steps. The learning rate then follows the longer schedule.",
    "replay": "Number of a step that was skipped: it is repeated, and what was not finite is named.",
    "warm_start": "Directory of a run with the same model. A new run begins with its last parameters; all else is new.",
    "process": "i/n@HOST:PORT: this is process i, from 0, of n that train together; HOST is the machine of process 0. "
    "Not needed under SLURM or Open MPI, nor on TPU VMs.",
    "runs": "Directory of the result and of all runs, each in its own folder. The same command resumes where it "
    "stopped; finished runs are not trained again.",
    "results": "Folder of results. The result is written to a folder with its name there.",
    "seeds": "Number of seeds.",
    "part": "i/n: train only the i-th of n parts, and write no result. For two cores, start 0/2 and 1/2 at the same "
    "time. Afterwards run the command without --part: it gathers the parts.",
}


def run(
    main: Callable[[SimpleNamespace], None], *, config: str = "", takes: str = "", **more: Flag | str | int | bool
) -> None:
    """Reads the command line and calls `main(args)`.

    Args:
      main: the main of the experiment.
      config: file in experiments/configs, with its default variant: "srcd.py:small". "" for a main without settings.
      takes: how long it takes, and on what machine. `--list` reads it from the main's file.
      more: further flags by name. For those in SHARED the default is enough.
    """
    asked = {name: flag if isinstance(flag, Flag) else Flag(flag, SHARED[name]) for name, flag in more.items()}
    argv = list(sys.argv)
    with explained():
        if "--list" in argv[1:]:
            return print(manual.listed())
        if config:
            default = os.path.relpath(EXPERIMENTS / "configs" / config)
            asked = {"config": Flag(_file(argv) or default, CONFIG)} | asked
        if {"--help", "-h"} & set(argv[1:]):
            return print(manual.page(main.__globals__["__doc__"], asked))
        values = _parsed(argv, asked)
        quiet()
        if "process" in asked:
            processes.begin(values["process"].value)
            if not processes.first():
                logging.getLogger().setLevel(logging.WARNING)
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (until the end)
        main(SimpleNamespace(**{name: values[name].value for name in asked}))


def _file(argv: list[str]) -> str:
    """Returns the config file that the command line names; "" for none."""
    for arg, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        name, equals, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and name == "config":
            return value if equals else following
    return ""


def _parsed(argv: list[str], asked: dict[str, Flag]) -> flags.FlagValues:
    """Returns the values of the flags. The error for an unknown setting lists the settings that exist."""
    values = flags.FlagValues()
    for name, flag in asked.items():
        if name == "config":
            if not _file(argv):
                argv = [argv[0], f"--config={flag.default}", *argv[1:]]
            config_flags.DEFINE_config_file(name, None, flag.help, flag_values=values, sys_argv=argv)
        elif flag.choices:
            enum = flags.DEFINE_multi_enum if isinstance(flag.default, list) else flags.DEFINE_enum
            enum(name, flag.default, flag.choices, flag.help, flag_values=values)
        else:
            KINDS[type(flag.default)](name, flag.default, flag.help, flag_values=values)
    try:
        _, *rest = values(argv)
    except (AttributeError, KeyError):
        config = values["config"].parser.parse(asked["config"].default)
        for name in (arg.removeprefix("--config.").split("=")[0] for arg in argv if arg.startswith("--config.")):
            _check_setting(config, name)
        raise
    if rest:
        raise ValueError(f"{' '.join(rest)} is no flag; flags are given as --NAME=VALUE, see --help")
    return values


def _check_setting(config: ConfigDict, name: str) -> None:
    section = config
    for i, part in enumerate(name.split(".")):
        if isinstance(section, ConfigDict) and part not in section:
            where = ".".join(["config", *name.split(".")[:i]])
            raise KeyError(f"unknown setting {part!r}: {where} has {sorted(section)}")
        section = section[part] if isinstance(section, ConfigDict) else None


def quiet() -> None:
    """Sends progress to standard output, and lets libraries report only warnings."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    for noisy in ("absl", "jax", "orbax", "gcsfs"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # repeats each error of a save for each array


@contextlib.contextmanager
def explained():
    """Inside, an error that explains its cause ends the program in one line; with CRAM_TRACEBACK=1, in a traceback.

    The exit status is 1 for an error, and STOPPED for a run that was stopped by SIGTERM or SIGINT. A training saves
    first (`loop.train`); what comes before and after it has nothing to save, and ends at once.
    """
    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_DFL:  # a parent may have it ignored
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        by = stop if str(stop) else "stopped by SIGINT; the same command goes on from the last checkpoint"
        print(by, file=sys.stderr)
        sys.exit(STOPPED)
    except Exception as error:
        gone = processes.lost(error)
        if not isinstance(error, EXPLAINED) and not gone or os.environ.get("CRAM_TRACEBACK") == "1":
            if processes.several():
                traceback.print_exc()
                processes.leave(1)
            raise
        cause = error
        while isinstance(cause, Exception) and len(cause.args) == 1:  # an error may hold another
            cause = cause.args[0]
        text = str(cause)
        if "Traceback" in text:  # an error of a config file, as its reader passes it on
            text = text.strip().split("\n")[-1]
        where = "" if isinstance(error, ValueError) else " (CRAM_TRACEBACK=1 shows where)"
        text = "error: " + " ".join((processes.LOST.format(text[:200]) if gone else text).split()) + where
        if processes.several():
            print(text, file=sys.stderr)
            processes.leave(1)
        sys.exit(text)
    finally:
        if before is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, before)


def _interrupt(number, _):
    name = signal.Signals(number).name
    raise KeyboardInterrupt(f"stopped by {name}; the same command goes on from the last checkpoint")
