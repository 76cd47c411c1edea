"""Fills references to results into texts: `{srcd_paper:entries.cram.mean.retrieval_accuracy:.2%}` becomes 99.98%.

| written | becomes |
|---|---|
| `{NAME:PATH:FORMAT}` | the number at PATH in the result NAME, in Python's format |
| `mean±sd` in PATH | mean and standard deviation: 99.98% ± 0.04%; of a single run, its number alone |
| `*` in PATH | every number of a list, in order: 99.92%, 99.86%, 99.99% |
| `{A / B:FORMAT}`, `{A - B:FORMAT}` | ratio or difference of two numbers; A and B are NAME:PATH |
| `{NAME:PATH:+.1p}` | a share in percentage points, without a unit: +3.6 |
| `{tests/FILE.py:TEXT}` | TEXT, such as a tolerance; an error if that file does not contain it |

PATH is a path as in `lib/results.py`: names and list indices, with dots between them.
"""

import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

from lib import results

ROOT = Path(__file__).parents[2]
REFERENCE = re.compile(r"\{([^{}]+)\}")
OPERATOR = re.compile(r" ([/-]) (?=\w+:)")  # only in front of NAME:, because names in a path may contain " / "
FORMAT = re.compile(r"\+?,?(\.\d+)?[f%ep]")

Load = Callable[[str], dict]


def numbers(operand: str, load: Load) -> list[float]:
    """Returns the numbers at one NAME:PATH: a single one, or one for each item that `*` stands for.

    Raises:
      KeyError: if there is no number.
    """
    name, _, path = operand.partition(":")
    if "*" not in path:
        return [results.at(load(name), path)]
    found = []
    for i in count():
        try:
            found.append(results.at(load(name), path.replace("*", str(i), 1)))
        except KeyError:
            if not found:
                raise
            return found


def shown(number: float, form: str) -> str:
    """Returns the number in a format of Python, or in percentage points (p)."""
    return format(100 * number, f"{form[:-1]}f") if form.endswith("p") else format(number, form)


def written(reference: str, load: Load) -> str:
    """Returns the text for a reference, which is given without its braces.

    Raises:
      ValueError: if the reference has a wrong form, or its test file does not contain the text.
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
        mean, sd = (expression.replace("mean±sd", one) for one in ("mean", "sd"))
        name, _, path = sd.partition(":")
        label = path.partition(".sd.")[0]
        alone = len(load(name)["entries"][label.removeprefix("entries.")]["runs"]) == 1
        return " ± ".join(written(f"{one}:{form}", load) for one in ([mean] if alone else [mean, sd]))
    left, *more = OPERATOR.split(expression)
    if not more:
        return ", ".join(shown(number, form) for number in numbers(left, load))
    operator, right = more
    (a,), (b,) = numbers(left, load), numbers(right, load)
    return shown(a / b if operator == "/" else a - b, form)


def filled(text: str, load: Load) -> str:
    """Returns a text with each reference replaced by its number."""
    return REFERENCE.sub(lambda found: written(found[1], load), text)


def named(text: str) -> list[str]:
    """Returns the names of the results that a text refers to, each once, in order of appearance."""
    return list(dict.fromkeys(re.findall(r"(?:\{| [/-] )(\w+):", text)))
