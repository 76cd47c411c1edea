"""Makes the texts that `--help` and `--list` print."""

import ast
import dataclasses
import inspect
import re
import runpy
import textwrap
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table

from cram_jax.tasks.mqar import MQARConfig
from cram_jax.tasks.srcd import SRCDConfig
from lib import runs

EXPERIMENTS = Path(__file__).parents[1]
DATA = (SRCDConfig, MQARConfig)  # what a section `data` may hold
WIDTH = 120


def page(about: str, flags: dict) -> str:
    """Returns the text of `--help`: what the main does, its flags, and each setting with default and meaning.

    Args:
      about: the main's docstring.
      flags: `launch.Flag` by name. The default of the flag `config` is the file whose settings are shown.
    """
    lines = [about.strip(), "", "Flags:"]
    for name, flag in flags.items():
        default = " ".join(flag.default) if isinstance(flag.default, list) else flag.default
        choices = f" One of {', '.join(flag.choices)}." if flag.choices else ""
        lines += [f"  --{name}={default}", *_indented(flag.help + choices)]
    lines += ["  --list", *_indented("Show all experiments, what they show and how long they take.")]
    if "config" in flags:
        path, _, variant = flags["config"].default.partition(":")
        lines += ["", f"Settings, from {path}:", "", *_docstring(Path(path)).strip().splitlines()]
        lines += ["", f"Each is set by --config.NAME=VALUE. Defaults of {variant}:", *_settings(path, variant)]
    return "\n".join(lines)


def _settings(path: str, variant: str) -> Iterator[str]:
    """Yields lines with each setting of a config file's variant, its default, and its meaning from its dataclass."""
    yield from _section("", runpy.run_path(path)["get_config"](variant), None)


def _section(path: str, config: ConfigDict, kind: type | None) -> Iterator[str]:
    meant = meanings(kind) if kind else runs.MEANINGS if not path else {}
    if path:
        yield f"\n  {path.rstrip('.')}"
    for name, value in config.items():
        if not isinstance(value, ConfigDict):
            yield f"    {path}{name} = {value!r}"
            yield from _indented(meant.get(name, ""))
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _section(f"{path}{name}.", value, _kind(name, value, kind))


def _kind(name: str, section: ConfigDict, parent: type | None) -> type | None:
    """The dataclass of a section: a field of its parent, one in `runs.SECTIONS`, or one in DATA with these fields."""
    if parent:
        return type(getattr(parent(), name))
    fits = [one for one in DATA if {field.name for field in dataclasses.fields(one)} == set(section)]
    return runs.SECTIONS.get(name) or next(iter(fits), None)


def meanings(kind: type) -> dict[str, str]:
    """Returns the meaning of each field from a dataclass's docstring, which says "name: meaning" or "a, b: meaning"."""
    names = "|".join(field.name for field in dataclasses.fields(kind))
    parts = re.split(rf"(?:^|(?<=\s))((?:(?:{names}), )*(?:{names})): ", " ".join(inspect.getdoc(kind).split()))
    return {
        name: meaning.strip()
        for given, meaning in zip(parts[1::2], parts[2::2], strict=True)
        for name in given.split(", ")
    }


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def listed() -> str:
    """Returns the text of `--list`: all experiments, and the comparisons that experiments/compare.py runs."""
    from configs import comparisons

    table = Table(box=box.SIMPLE, padding=(0, 1), leading=0)
    for column in ("experiment", "what it shows", "takes"):
        table.add_column(column)
    for path in sorted(EXPERIMENTS.glob("*.py")):
        takes = _takes(ast.parse(path.read_text()))
        table.add_row(f"experiments/{path.name}", _docstring(path).split("\n")[0], takes or "seconds")
        if path.name == "compare.py":
            for name, one in comparisons.COMPARISONS.items():
                table.add_row(f"  --name={name}", one.question, one.takes)
    console = Console(width=WIDTH)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _takes(tree: ast.Module) -> str:
    """Returns the constant that a main passes as `launch.run(takes=...)`."""
    words = (word for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords)
    found = (word.value.value for word in words if word.arg == "takes" and isinstance(word.value, ast.Constant))
    return next(found, "")
