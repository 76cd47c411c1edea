"""Makes results from finished run directories. An entry of a result holds runs that differ only in their seed.

A run directory holds `config.json`, `summary.json` and `metrics.jsonl`.
"""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cram_jax.analysis.transition import by_pattern
from cram_jax.training import probes
from cram_jax.training.files import read, strict
from cram_jax.training.loop import RunConfig
from cram_jax.training.settings import from_config
from lib import results
from lib import summary as summaries

# Columns that figures are drawn from, at every logged step
CURVES = (
    "step",
    "seconds",
    "step_ms",
    "held_out/attention_tokens",
    "held_out/attention_utilisation",
    "held_out/retrieval_accuracy",
    "held_out/retrieval_accuracy_recurring",
    "held_out/retrieval_accuracy_new",
    "held_out/realised_new_share",
    "held_out/accuracy",
    "held_out/bits_per_byte",
    "held_out/label_nats",
    "train/total_flops",
    "train/attention_flops",
    "train/price",
)
EXPOSURES = ("k", "count", "episodic")
VERSIONS = ("python", "jax", "flax", "optax")


def entry(runs: list[dict], configs: list[dict], lines: list[list[dict]], settings: dict | None = None) -> dict:
    """Returns an entry of a result.

    Args:
      runs: summary of each run.
      configs: settings of each run.
      lines: logged lines of each run.
      settings: settings that differ from the result's config.

    Raises:
      ValueError: if two runs have the same seed, different settings, or were trained by different code.
    """
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"runs must have different seeds, got {seeds}")
    for config, seed in zip(configs, seeds, strict=True):
        if names := list(difference(unseeded(configs[0]), unseeded(config))):
            raise ValueError(f"the runs of seeds {seeds[0]} and {seed} have different settings: {', '.join(names)}")
    code = [run["trained_by"] for run in runs]
    if any(commits != code[0] for commits in code):
        raise ValueError(f"the runs were trained by different code: {code}")
    cost = [{"training_teraflops": training_teraflops(*one)} for one in zip(configs, lines, strict=True)]
    flat_runs = [flat(run | more) for run, more in zip(runs, cost, strict=True)]
    out = {"settings": settings or {}, "runs": flat_runs, **statistics(flat_runs)}
    logged = list(zip(lines, runs, strict=True))
    out["curves"] = [curves(logged_lines, run.get("busiest_layer")) for logged_lines, run in logged]
    parts = {
        "quality": [quality(*one) for one in logged],
        "exposures": [exposures(one) for one in lines],
        "patterns": [patterns(one) for one in lines],
    }
    return strict(out | {name: part for name, part in parts.items() if all(part)})


def of_directories(workdirs: Iterable[Path], settings: dict | None = None) -> tuple[dict, dict]:
    """Returns (entry of these run directories, settings of the first one).

    Raises:
      ValueError: as `entry`, and if a run is not finished.
    """
    workdirs = [Path(workdir) for workdir in workdirs]
    for workdir in workdirs:
        if not (workdir / "summary.json").exists():
            raise ValueError(f"{workdir} holds no summary.json, so the run is not finished; run its command again")
    load = lambda name: [json.loads((workdir / name).read_text()) for workdir in workdirs]
    configs, lines = load("config.json"), [read(workdir / "metrics.jsonl") for workdir in workdirs]
    return entry(load("summary.json"), configs, lines, settings), portable(configs[0])


def made_by(runs: list[dict], notes: Iterable[str] = ()) -> dict:
    """Returns `made_by` of a result, from the summaries of its runs. `promote` sets the date."""
    of = lambda name: sorted({value for run in runs for value in run.get(name, [])})
    return {
        "commits": of("trained_by"),
        "date": None,
        "machines": of("trained_on"),
        "versions": {name: ", ".join(sorted({run[name] for run in runs})) for name in VERSIONS},
        "notes": list(notes),
    }


def made_by_launches(launches: list[dict], notes: Iterable[str] = ()) -> dict:
    """Returns `made_by` of trainings, from the lines of their `launches.jsonl`."""
    place = lambda one: f"{one['device']} of {one['cpu']}, jax {one['jax']}"
    commit = lambda one: [one["commit"]] if isinstance(one["commit"], str) else []
    return made_by([one | {"trained_by": commit(one), "trained_on": [place(one)]} for one in launches], notes)


def made_here(notes: Iterable[str] = (), **more) -> dict:
    """Returns `made_by` of a result that this process measured or computed.

    Args:
      more: further fields, such as `from`, the names of the results it was computed from.
    """
    here = summaries.versions()
    return {
        "commits": [here["commit"]] if here["commit"] else [],
        "date": None,
        "machines": [f"{here['device']} of {here['cpu']}"],
        "versions": {name: here[name] for name in VERSIONS},
        "notes": list(notes),
        **more,
    }


def result(name: str, question: str, command: str, made: dict, *, config=None, entries=None, data=None) -> dict:
    """Returns a result with these parts."""
    parts = {"question": question, "command": command, "made_by": made, "config": config and portable(config)}
    return strict({"schema": results.SCHEMA, "name": name, **parts, "entries": entries or {}, "data": data or {}})


def of_run(name: str, question: str, config: ConfigDict, run: dict, lines: list[dict]) -> dict:
    """Returns the result of a single run, from its summary and logged lines. The run's figure is drawn from it."""
    settings = portable(config)
    entries = {config.model: entry([run], [settings], [lines])}
    command = f"python experiments/{name}.py"
    return result(name, question, command, made_by([run]), config=settings, entries=entries)


def portable(config: dict | ConfigDict) -> dict:
    """Returns settings as JSON types, without machine-specific paths. `corpus` says what the files held."""
    settings = json.loads(config.to_json()) if isinstance(config, ConfigDict) else config
    return {name: value for name, value in settings.items() if name != "files"}


def flat(run: dict) -> dict:
    """Returns the numbers of a summary, and the commit and machine that trained the run."""
    out = {name: value for name, value in run.items() if value is None or isinstance(value, int | float)}
    for name, source in (("commit", "trained_by"), ("machine", "trained_on")):
        if run.get(source):
            out[name] = "; ".join(run[source])
    return strict(out)


def statistics(runs: list[dict]) -> dict:
    """Returns {"mean", "sd", "missing"} of flat runs.

    sd is the sample standard deviation, {} for a single run. `missing` counts the runs that lack a number, for instance
    the transition step if there was no transition. Such a number has no mean.
    """
    is_number = lambda value: isinstance(value, int | float) and np.isfinite(value)
    names = dict.fromkeys(n for run in runs for n, value in run.items() if is_number(value) and n != "seed")
    missing = {n: sum(not is_number(run.get(n)) for run in runs) for n in names}
    columns = {n: np.array([run[n] for run in runs], float) for n in names if not missing[n]}
    several = len(runs) > 1
    return {
        "mean": {n: float(np.mean(values)) for n, values in columns.items()},
        "sd": {n: float(np.std(values, ddof=1)) for n, values in columns.items()} if several else {},
        "missing": {n: count for n, count in missing.items() if count} if several else {},
    }


def difference(old: dict, new: dict, at: str = "") -> dict:
    """Returns the settings of `new` that differ from `old`, by dotted names; None for those that only `old` has."""
    out = {}
    for name in dict.fromkeys((*old, *new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            out |= difference(before, after, f"{at}{name}.")
        elif before != after:
            out[f"{at}{name}"] = after
    return out


def unseeded(config: dict) -> dict:
    """Returns the settings without those that depend on the seed."""
    data = {name: value for name, value in config.get("data", {}).items() if name != "table_seed"}
    return {**config, "seed": None, "data": data}


def columns(lines: list[dict], names: Iterable[str]) -> dict[str, list]:
    """Returns columns of logged lines, to five digits. Missing numbers are NaN. Names must be in the last line."""
    rounded = lambda x: float(f"{x:.5g}") if isinstance(x, float) else x
    return {name: [rounded(line.get(name, np.nan)) for line in lines] for name in names if name in lines[-1]}


def curves(lines: list[dict], busiest: int | None = None) -> dict[str, list]:
    """Returns the columns CURVES of a run's logged lines.

    Args:
      busiest: the layer that attends most. Its quality of recall is a column, too.
    """
    found = columns(lines, (*CURVES, f"probe/quality_query_recurring_layer_{busiest}"))
    return {name.replace(f"layer_{busiest}", "busiest"): values for name, values in found.items()}


def moments(lines: list[dict], transition: int | None) -> list[dict]:
    """Returns three lines: an early one, one at the transition (half-way if there was none), and the last."""
    steps = np.array([line["step"] for line in lines])
    middle = transition if transition is not None else steps[-1] / 2
    early = lines[min(len(lines) - 1, max(1, len(lines) // 30))]
    return [early, lines[int(np.argmin(np.abs(steps - middle)))], lines[-1]]


def quality(lines: list[dict], run: dict) -> dict:
    """Returns the quality q of recall in the layer that attends most, at the three `moments`.

    Returns:
      {} if no layer consolidates or the task has no queries. Otherwise "layer", and lists with a value for each moment:
      "step"; "bins", the number of queries in equal bins of q from 0 to 1; "recurring", mean q of recurring queries.
    """
    layer = run.get("busiest_layer")
    names = {"step": "step", "bins": f"probe/quality_bins_layer_{layer}"}
    names |= {"recurring": f"probe/quality_query_recurring_layer_{layer}"}
    if not all(name in lines[-1] for name in names.values()):
        return {}
    three = moments(lines, run["transition_step"])
    short = lambda value: [round(x, 3) for x in value] if isinstance(value, list) else round(value, 4)
    return {"layer": layer} | {key: [short(line[name]) for line in three] for key, name in names.items()}


def exposures(lines: list[dict]) -> dict[str, list]:
    """Returns the data of Eq 14: counts of queries of recurring patterns by exposure, over a whole run.

    Returns:
      {} for a model without routes. Otherwise, for each bin that is not empty: "k", the geometric mean exposure;
      "count", the number of queries; "episodic", the number of those that chose episodic memory.
    """
    if "train/exposed" not in lines[-1]:
        return {}
    steps = np.diff([line["step"] for line in lines])
    total = lambda name: steps @ np.array([line[name] for line in lines[1:]], float)  # means over steps times steps
    count, episodic = total("train/exposed"), total("train/exposed_episodic")
    edges = np.ceil(2 ** (np.arange(len(count) + 1) / probes.OCTAVE) - 1e-9)  # edges of k + 1, whole numbers
    full = count > 0
    k = np.sqrt(edges[:-1] * np.maximum(edges[1:] - 1, edges[:-1])) - 1
    return {
        name: np.round(values[full], 3).tolist() for name, values in zip(EXPOSURES, (k, count, episodic), strict=True)
    }


def patterns(lines: list[dict]) -> dict:
    """Returns when each pattern's queries stopped attending (`transition.by_pattern`); {} without routes."""
    if "train/asked_by_pattern" not in lines[-1]:
        return {}
    column = lambda name: np.array([line[name] for line in lines[1:]], float)
    return by_pattern(
        [line["step"] for line in lines[1:]],
        column("train/asked_by_pattern"),
        column("train/asked_by_pattern_episodic"),
    )


def training_teraflops(config: dict, lines: list[dict]) -> float:
    """Returns the operations of a whole training in units of 10^12, from the logged operations per token."""
    run = from_config(RunConfig(), ConfigDict(config["run"]))
    total = 0.0
    for before, line in itertools.pairwise(lines):
        shapes = [run.shape(step) for step in range(before["step"], line["step"])]
        total += line["train/total_flops"] * sum(length * batch for length, batch in shapes)
    return total / 1e12
