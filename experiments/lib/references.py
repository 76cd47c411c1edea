"""References to numbers in texts: `{srcd_paper:entries.cram.mean.retrieval_accuracy:.2%}` becomes 99.98%.

| written | becomes |
|---|---|
| `{NAME:PATH:FORMAT}` | the number at PATH in the result NAME, in Python's format |
| `mean±sd` as a step of PATH | mean and standard deviation: 99.98% ± 0.04% |
| `*` as a step of PATH | every number there, in order: 99.92%, 99.86%, 99.99% |
| `{A / B:FORMAT}`, `{A - B:FORMAT}` | ratio or difference of two numbers; A and B are NAME:PATH |
| `{tests/FILE.py:TEXT}` | TEXT, a tolerance for instance, if that test has it |

A step of PATH is a key or a list's index. A key may hold dots, spaces and brackets: the longest key that fits is taken.
"""

import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
REFERENCE = re.compile(r"\{([^{}]+)\}")
OPERATOR = re.compile(r" ([/-]) (?=\w+:)")  # only before NAME: so that keys may hold " / "
FORMAT = re.compile(r"\+?,?(\.\d+)?[f%e]")

Load = Callable[[str], dict]


def follow(value: object, path: str) -> list[float]:
    """The numbers at a path: one, or as many as its `*` stands for.

    Raises:
      KeyError: if nothing stands there, or something that is no number.
    """
    if not path:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise KeyError(f"{value!r} is not a number")
        return [value]
    first, _, rest = path.partition(".")
    if isinstance(value, list):
        chosen = value if first == "*" else [value[int(first)]]
        return [number for one in chosen for number in follow(one, rest)]
    keys = value if isinstance(value, dict) else ()
    fits = [key for key in keys if path == key or path.startswith(f"{key}.")]
    if not fits:
        raise KeyError(f"{first!r}: there is {', '.join(map(repr, list(keys)[:30])) or value!r}")
    key = max(fits, key=len)
    return follow(value[key], path[len(key) + 1 :])


def measured(operand: str, load: Load) -> list[float]:
    """The numbers of one NAME:PATH."""
    name, _, path = operand.partition(":")
    return follow(load(name), path)


def write(reference: str, load: Load) -> str:
    """What stands for a reference, given without its braces.

    Raises:
      ValueError: if it is not written as this module says, or its test does not have the text.
      KeyError: if its number does not exist.
    """
    if reference.startswith("tests/"):
        file, _, text = reference.partition(":")
        if text not in (ROOT / file).read_text():
            raise ValueError(f"{file} does not have {text!r}")
        return text
    expression, _, form = reference.rpartition(":")
    if not FORMAT.fullmatch(form) or ":" not in expression:
        raise ValueError(f"{{{reference}}} is not {{NAME:PATH:FORMAT}}")
    if "mean±sd" in expression:
        return " ± ".join(write(f"{expression.replace('mean±sd', one)}:{form}", load) for one in ("mean", "sd"))
    left, *more = OPERATOR.split(expression)
    if not more:
        return ", ".join(format(number, form) for number in measured(left, load))
    operator, right = more
    (a,), (b,) = measured(left, load), measured(right, load)
    return format(a / b if operator == "/" else a - b, form)


def filled(text: str, load: Load) -> str:
    """A text with a figure in place of each reference."""
    return REFERENCE.sub(lambda found: write(found[1], load), text)


def results(text: str) -> list[str]:
    """The names of the results that a text refers to, each once, in its order."""
    names = re.findall(r"(?:\{|[/-] )(\w+):", text)
    return list(dict.fromkeys(names))
