"""How an experiment is launched: its flags, its settings, errors in one line, `--help` and `--list`.

A main ends with

    if __name__ == "__main__":
        launch.run(main, config="srcd.py:small", workdir="runs/srcd", takes="3 minutes on two CPU cores")

and has no other effect when it is imported. `main(args)` gets `args.config` (a ConfigDict) and each flag's value by
name. `--help` shows the settings of the config with their meaning. `--list` shows all experiments, what they show and
how long they take. An error that names its cause ends the program in one line; CRAM_TRACEBACK=1 shows the traceback.
"""

import ast
import contextlib
import dataclasses
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.table import Table

from cram_jax.training.loop import Interrupted

EXPERIMENTS = Path(__file__).parents[1]
# What names its own cause. Everything else is a bug, and shows its traceback.
EXPLAINED = (flags.Error, ValueError, TypeError, KeyError, AttributeError, OSError, FloatingPointError, Interrupted)
TEXT = {"workdir": "Where the run leaves its files. The same command on a directory with a run goes on from there."}


@dataclasses.dataclass(frozen=True)
class Flag:
    """default: its type (str, int, or a list of str) is the flag's. help: its meaning. choices: all values, if few."""

    default: Any
    help: str
    choices: tuple[str, ...] = ()


def run(
    main: Callable[[SimpleNamespace], None], *, config: str | None = None, takes: str = "", **more: Flag | str
) -> None:
    """Reads the command line and calls `main(args)`.

    Args:
      config: file below experiments/configs, with its default variant: "srcd.py:small". None for a main without one.
      takes: how long it takes, and where; `--list` shows it.
      more: further flags by name; a plain string for `workdir` is its default.
    """
    del takes  # `--list` reads it from the file
    if "--list" in sys.argv[1:]:
        return listed()
    with explained():
        names = [_define(name, flag) for name, flag in more.items()]
        if config:
            text = "File with the settings, and after a colon their variant. --config.SECTION.FIELD=VALUE sets a field."
            config_flags.DEFINE_config_file("config", str(EXPERIMENTS / "configs" / config), text)
            names.append("config")
        flags.DEFINE_bool("list", False, "Show all experiments, what they show and how long they take.")
        call = lambda _: main(SimpleNamespace(**{name: flags.FLAGS[name].value for name in names}))
        app.run(call, flags_parser=lambda argv: _parse(argv, bool(config)))


def _define(name: str, flag: Flag | str) -> str:
    flag = Flag(flag, TEXT[name]) if isinstance(flag, str) else flag
    if flag.choices:
        flags.DEFINE_enum(name, flag.default, flag.choices, flag.help)
    else:
        kinds = {str: flags.DEFINE_string, int: flags.DEFINE_integer, list: flags.DEFINE_multi_string}
        kinds[type(flag.default)](name, flag.default, flag.help)
    return name


def _parse(argv: list[str], has_config: bool) -> list[str]:
    """The command line read by absl. A setting that does not exist is answered with those that do."""
    asks = {"--help", "-help", "--helpfull", "-h"} & set(argv)
    if asks and has_config:
        print(sys.modules["__main__"].__doc__.strip(), "\n\nFlags:")
        print(flags.FLAGS.main_module_help() or flags.FLAGS.module_help(__name__))
        default = flags.FLAGS["config"]
        print("\n".join(described(default.parser.parse(default.default))))
        sys.exit(0)
    try:
        return flags.FLAGS(argv)
    except AttributeError:
        flag = flags.FLAGS["config"]
        config = flag.parser.parse(flag.default)  # the settings are the same in every variant
        for name in (arg.removeprefix("--config.").split("=")[0] for arg in argv if arg.startswith("--config.")):
            _check_setting(config, name)
        raise


def _check_setting(config: ConfigDict, name: str) -> None:
    section = config
    for i, part in enumerate(name.split(".")):
        if isinstance(section, ConfigDict) and part not in section:
            where = ".".join(["config", *name.split(".")[:i]])
            raise KeyError(f"unknown setting {part!r}: {where} has {sorted(section)}")
        section = section[part] if isinstance(section, ConfigDict) else None


def described(config: ConfigDict) -> Iterator[str]:
    """Lines with every setting of a config, its default, and the meaning that its dataclass gives."""
    from lib import runs

    yield "\nSettings (--config.SECTION.FIELD=VALUE):"
    for name, value in config.items():
        if not isinstance(value, ConfigDict):
            yield f"  config.{name} = {value!r}"
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _section(f"config.{name}", value, runs.SECTIONS.get(name))


def _section(path: str, config: ConfigDict, kind: type | None) -> Iterator[str]:
    yield f"\n{path}"
    if kind is not None and kind.__doc__:
        yield from (f"    {line}" for line in inspect.cleandoc(kind.__doc__).splitlines())
    for name, value in config.items():
        if not isinstance(value, ConfigDict):
            yield f"  {path}.{name} = {value!r}"
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _section(f"{path}.{name}", value, type(getattr(kind(), name)) if kind else None)


def listed() -> None:
    """Prints a table of all experiments."""
    table = Table(show_lines=True)
    for column in ("experiment", "what it shows", "takes"):
        table.add_column(column)
    for path in sorted(EXPERIMENTS.glob("*.py")):
        tree = ast.parse(path.read_text())
        table.add_row(f"experiments/{path.name}", (ast.get_docstring(tree) or "").split("\n")[0], _takes(tree))
    Console(width=120).print(table)


def _takes(tree: ast.Module) -> str:
    keywords = (word for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords)
    found = (word.value.value for word in keywords if word.arg == "takes" and isinstance(word.value, ast.Constant))
    return next(found, "seconds")


def quiet() -> None:
    """Progress goes to standard output. Libraries report only warnings."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextlib.contextmanager
def explained():
    """Inside, an error that names its cause ends the program in one line, or with CRAM_TRACEBACK=1 in a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("error: stopped by SIGINT; the same command goes on from the last checkpoint")
    except EXPLAINED as error:
        if os.environ.get("CRAM_TRACEBACK") == "1":
            raise
        cause = error
        while isinstance(cause, Exception) and len(cause.args) == 1:  # an error may hold another
            cause = cause.args[0]
        text = str(cause)
        if "Traceback" in text:  # an error of a config file, as its reader passes it on
            text = text.strip().split("\n")[-1]
        where = "" if isinstance(error, ValueError) else " (CRAM_TRACEBACK=1 shows where)"
        sys.exit("error: " + " ".join(text.split()) + where)
