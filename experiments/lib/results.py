"""Result files: their schema, reader and writer.

A result is a folder NAME with `result.json`, and with `figure.png` and `figure.svg` if it has a figure. Committed
results are in experiments/results. A main writes its result below runs/; `experiments/promote.py` copies it there.

| key | what it holds |
|---|---|
| schema, name, question, command | 1; the folder's name; one sentence; the command that makes the numbers |
| made_by | who made it: see below |
| config | all settings; null if there are none |
| entries | by label: `settings` that differ from config, `runs`, `mean`, `sd`, `missing`, and what PARTS lists |
| data | all that is not a run: tables of a benchmark, fits, theorems |

`made_by`: `commits` that trained the runs (a + marks a tree with uncommitted changes), `date` (the day on which the
numbers were committed), `machines`, `versions`, `notes` (what a reader must know), `from` (only if the result was
computed from other results: their names).

A run is flat: it has numbers by name (null for a missing number), and may have `commit` and `machine`. `mean` and `sd`
(of a sample) may hold more names than `runs`, which keep only what tables need. For each number that some runs lack,
`missing` says how many lack it; mean and sd leave it out.
"""

import json
import math
from pathlib import Path

SCHEMA = 1
SENTENCE = 60  # characters; longer texts in a list get a line of their own
RESULTS = Path(__file__).parents[1] / "results"
MADE_BY = {"commits": list, "date": (str, type(None)), "machines": list, "versions": dict, "notes": list}
# What an entry may hold beside settings, runs, mean, sd and missing
PARTS = {
    "curves": list,  # a dictionary of columns for each run
    "chosen": dict,  # the learning rate, whether it is at the edge of those tried, and the score of each
    "deployed": dict,  # settings that differ in deployment only
    "diverged": int,  # number of runs that diverged
    "quality": list,  # quality of recall in the busiest layer, at three moments, for each run
    "exposures": list,  # Eq 14's counts, for each run
    "patterns": list,  # when each pattern stopped attending, for each run
}
ENTRY = {"settings": dict, "runs": list, "mean": dict, "sd": dict, "missing": dict}


def names(folder: Path = RESULTS) -> list[str]:
    """Returns the names of all results in a folder."""
    return sorted(path.parent.name for path in Path(folder).glob("*/result.json"))


def load(name: str, folder: Path = RESULTS) -> dict:
    """Reads the result of that name.

    Raises:
      FileNotFoundError: if there is no such result. The message lists those that exist.
      ValueError: if the file cannot be read, or does not follow the schema.
    """
    path = Path(folder) / name / "result.json"
    if not path.exists():
        raise FileNotFoundError(f"no result {name!r} in {folder}; there are {', '.join(names(folder)) or 'none'}")
    try:
        result = json.loads(path.read_text())
        check(result)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    return result


def number(name: str, path: str, folder: Path = RESULTS) -> float:
    """Returns the number at a path in a result, such as "entries.cram.mean.retrieval_accuracy"; see `at`."""
    return at(load(name, folder), path)


def at(result: dict, path: str) -> float:
    """Returns the number at a dotted path of names and list indices.

    Names may contain dots themselves: the longest name that fits is taken.

    Raises:
      KeyError: if there is no number. The message says which part of the path exists.
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
    """Writes a result to `folder`/result.json, and returns the path. The folder is created if missing.

    Raises:
      ValueError: if the result does not follow the schema. Then nothing is written.
    """
    check(result)
    path = Path(folder) / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".tmp")
    new.write_text(text(result) + "\n")
    new.replace(path)
    return path


def text(value, indent: int = 0) -> str:
    """Returns JSON with a line for each name, each list of numbers, and each sentence in a list."""
    inner, outer = " " * (indent + 1), " " * indent
    if isinstance(value, dict) and value:
        rows = (f"{inner}{json.dumps(name)}: {text(item, indent + 1)}" for name, item in value.items())
        return "{\n" + ",\n".join(rows) + f"\n{outer}}}"
    long = lambda item: isinstance(item, dict) or isinstance(item, str) and len(item) > SENTENCE
    if isinstance(value, list) and any(map(long, value)):
        return "[\n" + ",\n".join(inner + text(item, indent + 1) for item in value) + f"\n{outer}]"
    return json.dumps(value, allow_nan=False)


def check(result: dict) -> None:
    """Checks that a result follows the schema.

    Raises:
      ValueError: if it does not. The message lists everything that is wrong.
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
        yield f"{path} is not finite; use null for a missing number"


def _typed(at: str, found: dict, wanted: dict, optional: dict):
    """Yields wrong keys and types."""
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
    """Path of the first number that is not finite; "" if all are finite."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, item in items if (found := _not_finite(item, f"{path}.{key}".strip(".")))), "")
