"""Result files: the one schema, the one reader and the one writer.

A result is a folder NAME with `result.json`, and `figure.png` and `figure.svg` where there is a figure. Committed
results stand in experiments/results. A main writes its own below runs/; `experiments/promote.py` moves it over.

| key | what it holds |
|---|---|
| schema, name, question, command | 1; the folder's name; one sentence; the command that makes the numbers |
| made_by | who made it: see below |
| config | all settings, as they were; null where there are none |
| entries | by label: `settings` that differ from config, `runs`, `mean`, `sd`, `missing`, and what PARTS lists |
| data | what is no run: tables of a benchmark, fits, theorems |

`made_by`: `commits` that trained the runs (a + marks a tree with uncommitted changes), `date` (the day on which the
numbers were committed), `machines`, `versions`, `notes` (what a reader must know), `from` (results it was computed
from, where it was).

A run is flat: numbers by name (null where there is none), and perhaps `commit` and `machine`. `mean` and `sd` (of a
sample) may hold more names than `runs`, which keep what a table needs. `missing` counts, for each number that some runs
lack, how many lack it: mean and sd leave those numbers out.
"""

import json
import math
from pathlib import Path

SCHEMA = 1
SENTENCE = 60  # characters from which on a text in a list has a line of its own
RESULTS = Path(__file__).parents[1] / "results"
MADE_BY = {"commits": list, "date": (str, type(None)), "machines": list, "versions": dict, "notes": list}
# What an entry may hold beside settings, runs, mean, sd and missing
PARTS = {
    "curves": list,  # a dictionary of columns for each run
    "chosen": dict,  # the learning rate, whether it is at the edge of those tried, and the score of each
    "diverged": int,  # how many runs did
    "quality": list,  # of recall in the busiest layer, at three moments, for each run
    "exposures": list,  # Eq 14's counts, for each run
    "patterns": list,  # when each pattern stopped attending, for each run
}
ENTRY = {"settings": dict, "runs": list, "mean": dict, "sd": dict, "missing": dict}


def names(folder: Path = RESULTS) -> list[str]:
    """All results in a folder."""
    return sorted(path.parent.name for path in Path(folder).glob("*/result.json"))


def load(name: str, folder: Path = RESULTS) -> dict:
    """The result of that name.

    Raises:
      FileNotFoundError: where there is none, naming those there are.
      ValueError: where the file does not follow the schema.
    """
    path = Path(folder) / name / "result.json"
    if not path.exists():
        raise FileNotFoundError(f"no result {name!r} in {folder}; there are {', '.join(names(folder)) or 'none'}")
    result = json.loads(path.read_text())
    check(result)
    return result


def number(name: str, path: str, folder: Path = RESULTS) -> float:
    """The number at a path in a result, such as "entries.cram.mean.retrieval_accuracy"; see `at`."""
    return at(load(name, folder), path)


def at(result: dict, path: str) -> float:
    """The number at a dotted path of names and list indices. Names may hold dots themselves: the longest that fits is
    taken.

    Raises:
      KeyError: where there is no number, saying how far the path goes.
    """
    value, parts, done = result, path.split("."), 0
    while done < len(parts):
        rest = range(len(parts), done, -1)
        if isinstance(value, list):
            fits = [done + 1] if parts[done].isdigit() and int(parts[done]) < len(value) else []
        else:
            fits = [i for i in rest if isinstance(value, dict) and ".".join(parts[done:i]) in value]
        if not fits:
            here = list(value) if isinstance(value, dict) else type(value).__name__
            raise KeyError(f"{'.'.join(parts[:done]) or 'the result'} has no {'.'.join(parts[done:])!r}; it is {here}")
        key = ".".join(parts[done : fits[0]])
        value = value[int(key)] if isinstance(value, list) else value[key]
        done = fits[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise KeyError(f"{path} is no number: {type(value).__name__}")
    return value


def write(folder: Path, result: dict) -> Path:
    """Writes a result into its folder, which is made: `folder`/result.json.

    Raises:
      ValueError: where the result does not follow the schema; nothing is written then.
    """
    check(result)
    path = Path(folder) / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".tmp")
    new.write_text(text(result) + "\n")
    new.replace(path)
    return path


def text(value, indent: int = 0) -> str:
    """JSON with one line for each name and each list of numbers, and for each sentence of a list."""
    inner, outer = " " * (indent + 1), " " * indent
    if isinstance(value, dict) and value:
        rows = (f"{inner}{json.dumps(name)}: {text(item, indent + 1)}" for name, item in value.items())
        return "{\n" + ",\n".join(rows) + f"\n{outer}}}"
    long = lambda item: isinstance(item, dict) or isinstance(item, str) and len(item) > SENTENCE
    if isinstance(value, list) and any(map(long, value)):
        return "[\n" + ",\n".join(inner + text(item, indent + 1) for item in value) + f"\n{outer}]"
    return json.dumps(value, allow_nan=False)


def check(result: dict) -> None:
    """Holds a result to the schema.

    Raises:
      ValueError: naming everything that is wrong.
    """
    faults = list(_faults(result))
    if faults:
        raise ValueError(f"result {result.get('name')!r} does not follow schema {SCHEMA}: " + "; ".join(faults))


def _faults(result: dict):
    wanted = {"schema", "name", "question", "command", "made_by", "config", "entries", "data"}
    if result.keys() != wanted:
        yield f"keys must be {sorted(wanted)}, got {sorted(result)}"
        return
    if result["schema"] != SCHEMA:
        yield f"schema must be {SCHEMA}, got {result['schema']}"
    for key in ("name", "question", "command"):
        if not isinstance(result[key], str) or not result[key].strip():
            yield f"{key} must be text"
    if not isinstance(result["config"], dict | None):
        yield "config must be settings or null"
    if not isinstance(result["data"], dict):
        yield "data must be a dictionary"
    if not result["entries"] and not result["data"]:
        yield "there must be entries or data"
    yield from _typed("made_by", result["made_by"], MADE_BY, {"from": list})
    for label, entry in result["entries"].items():
        wrong = list(_typed(label, entry, ENTRY, PARTS))
        yield from wrong or _entry_faults(label, entry)
    if path := _not_finite(result):
        yield f"{path} is not finite; null says that there is no number"


def _typed(at: str, found: dict, wanted: dict, optional: dict):
    """Faults of keys and types."""
    if missing := wanted.keys() - found.keys():
        yield f"{at} lacks {sorted(missing)}"
    if unknown := found.keys() - wanted.keys() - optional.keys():
        yield f"{at} has unknown {sorted(unknown)}"
    for key, kind in (wanted | optional).items():
        if key in found and not isinstance(found[key], kind):
            yield f"{at}.{key} must be of another type than {type(found[key]).__name__}"


def _entry_faults(label: str, entry: dict):
    for i, run in enumerate(entry["runs"]):
        wrong = [
            name
            for name, value in run.items()
            if not (value is None or isinstance(value, int | float) or name in ("commit", "machine"))
        ]
        if wrong:
            yield f"{label}: run {i} is not flat, see {wrong}"
    for key in ("mean", "sd", "missing"):
        if wrong := [name for name, value in entry[key].items() if not isinstance(value, int | float)]:
            yield f"{label}.{key} holds no numbers at {wrong}"
    for part in ("curves", "quality", "exposures", "patterns"):
        if len(entry.get(part, [])) not in (0, len(entry["runs"])):
            yield f"{label}.{part} must be as many as its {len(entry['runs'])} runs, got {len(entry[part])}"
    for i, columns in enumerate(entry.get("curves", [])):
        if len({len(column) for column in columns.values()}) > 1:
            yield f"{label}: the columns of curve {i} differ in length"


def _not_finite(value, path: str = "") -> str:
    """Path of the first number that is not finite; "" where all are."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, item in items if (found := _not_finite(item, f"{path}.{key}".strip(".")))), "")
