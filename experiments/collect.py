"""Gathers the summaries of several runs into one committed file, with mean and standard deviation of each number.

python experiments/collect.py experiments/results/srcd_small.json runs/small_0 runs/small_1 ...
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cram_jax.analysis import figures
from cram_jax.analysis.transition import by_pattern
from cram_jax.training import learner as learning
from cram_jax.training.loop import RunConfig
from cram_jax.training.metrics import read, strict
from cram_jax.training.settings import from_config

EXPOSURES = ("k", "count", "episodic")

# What figures are drawn from, at every logged step
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
    "train/total_flops",
    "train/attention_flops",
    "train/price",
)


def curves(lines: list[dict], busiest: int | None = None) -> dict[str, list]:
    """A run's logged lines in columns, to five digits; those of CURVES that it has.

    Args:
      busiest: the layer that attends most at the end, whose quality of recall is a column too.
    """
    name = f"probe/quality_query_recurring_layer_{busiest}"
    found = columns(lines, (*CURVES, name))
    return {column.replace(f"layer_{busiest}", "busiest"): values for column, values in found.items()}


def quality(lines: list[dict], summary: dict) -> dict:
    """How well semantic memory recalls in the layer that attends most, early, at the transition (or half-way), last.

    Returns:
      {"layer", and at these three: "step", "bins": queries in equal bins of q from 0 to 1, "recurring": mean q of
      queries of recurring bindings}; {} for a model that does not consolidate, or a task without queries.
    """
    layer = summary.get("busiest_layer")
    names = {"step": "step", "bins": f"probe/quality_bins_layer_{layer}"}
    names |= {"recurring": f"probe/quality_query_recurring_layer_{layer}"}
    if not all(name in lines[-1] for name in names.values()):
        return {}
    three = figures.moments(lines, summary["transition_step"])
    short = lambda value: [round(x, 3) for x in value] if isinstance(value, list) else round(value, 4)
    return {"layer": layer} | {key: [short(line[name]) for line in three] for key, name in names.items()}


def columns(lines: list[dict], names) -> dict[str, list]:
    """These numbers of logged lines, to five digits; NaN where only later lines have one, nothing where the last lacks
    it."""
    rounded = lambda x: float(f"{x:.5g}") if isinstance(x, float) else x
    return {name: [rounded(line.get(name, np.nan)) for line in lines] for name in names if name in lines[-1]}


def exposures(lines: list[dict]) -> dict[str, list]:
    """Eq 14's data of a whole run: queries of recurring patterns by how often theirs was asked for before.

    Returns:
      {"k": mean number of earlier queries, geometric, "count": queries, "episodic": of those, how many chose episodic
      memory}, for bins that hold some; {} for a model without routes.
    """
    if "train/exposed" not in lines[-1]:
        return {}
    steps = np.diff([line["step"] for line in lines])
    total = lambda name: steps @ np.array([line[name] for line in lines[1:]], float)  # lines hold means over steps
    count, episodic = total("train/exposed"), total("train/exposed_episodic")
    edges = np.ceil(2 ** (np.arange(len(count) + 1) / learning.OCTAVE) - 1e-9)  # of k + 1, whole numbers
    full = count > 0
    k = np.sqrt(edges[:-1] * np.maximum(edges[1:] - 1, edges[:-1])) - 1
    return {
        name: np.round(values[full], 3).tolist() for name, values in zip(EXPOSURES, (k, count, episodic), strict=True)
    }


def patterns(lines: list[dict]) -> dict:
    """When each recurring pattern's queries stopped attending (`transition.by_pattern`); {} where no model routes."""
    if "train/asked_by_pattern" not in lines[-1]:
        return {}
    column = lambda name: np.array([line[name] for line in lines[1:]], float)
    return by_pattern(
        [line["step"] for line in lines[1:]],
        column("train/asked_by_pattern"),
        column("train/asked_by_pattern_episodic"),
    )


def training_teraflops(config: dict, lines: list[dict]) -> float:
    """Operations of a whole training, in units of 10^12, from those of a token in each logged stretch of steps."""
    run = from_config(RunConfig(), ConfigDict(config["run"]))
    total = 0.0
    for before, line in itertools.pairwise(lines):
        shapes = [run.shape(step) for step in range(before["step"], line["step"])]
        total += line["train/total_flops"] * sum(length * batch for length, batch in shapes)
    return total / 1e12


def collect(summaries: list[dict], configs: list[dict]) -> dict:
    """{"config": of the first run, "runs": summaries, "mean", "sd", "missing"}.

    sd is that of a sample, absent for a single run. missing: for each number that some runs lack (a transition that
    never came, say), how many; mean and sd leave it out.

    Raises:
      ValueError: where two runs have the same seed, which would count one run twice, or differ in more than that, the
        code that trained them included.
    """
    seeds = [s["seed"] for s in summaries]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"runs must have different seeds, got {seeds}")
    for config, seed in zip(configs, seeds, strict=True):
        if _unseeded(config) != _unseeded(configs[0]):
            raise ValueError(f"the runs of seeds {seeds[0]} and {seed} have different settings: they do not add up")
    code = [s["trained_by"] for s in summaries]
    if any(commits != code[0] for commits in code):
        raise ValueError(f"the runs were trained by different code, so they do not add up: {code}")
    number = lambda v: isinstance(v, (int, float)) and np.isfinite(v)
    names = dict.fromkeys(n for s in summaries for n, v in s.items() if number(v) and n != "seed")
    missing = {n: sum(not number(s.get(n)) for s in summaries) for n in names}
    columns = {n: np.array([s[n] for s in summaries], float) for n in names if not missing[n]}
    # Paths of one machine are nobody else's; a run on files notes in `corpus` what they hold.
    config = {name: value for name, value in configs[0].items() if name != "files"}
    out = {"config": config, "runs": summaries, "mean": {n: float(np.mean(v)) for n, v in columns.items()}}
    if len(summaries) > 1:
        out["sd"] = {n: float(np.std(v, ddof=1)) for n, v in columns.items()}
        out["missing"] = {n: count for n, count in missing.items() if count}
    return strict(out)


def result(summaries: list[dict], configs: list[dict], lines: list[list[dict]]) -> dict:
    """`collect`, with each run's `training_teraflops`; and by seed what figures are drawn from: `curves`, and `quality`
    where there is some."""
    summaries = [
        summary | {"training_teraflops": training_teraflops(config, logged)}
        for summary, config, logged in zip(summaries, configs, lines, strict=True)
    ]
    out = collect(summaries, configs)
    runs = list(zip(lines, summaries, strict=True))
    out["curves"] = [curves(logged, summary.get("busiest_layer")) for logged, summary in runs]
    out["quality"] = [found for found in (quality(*run) for run in runs) if found]
    return strict({name: part for name, part in out.items() if name != "quality" or part})


def _unseeded(config: dict) -> dict:
    data = {k: v for k, v in config.get("data", {}).items() if k != "table_seed"}
    return {**config, "seed": None, "data": data}


def main(target: str, *workdirs: str) -> None:
    load = lambda name: [json.loads((Path(d) / name).read_text()) for d in workdirs]
    out = result(load("summary.json"), load("config.json"), [read(Path(d) / "metrics.jsonl") for d in workdirs])
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(json.dumps(out, indent=1) + "\n")
    for name in ("retrieval_accuracy", "retrieval_accuracy_new", "attention_tokens_end", "realised_new_share"):
        if name in out["mean"]:
            print(f"{name}: {out['mean'][name]:.5f} +- {out.get('sd', {}).get(name, float('nan')):.5f}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python experiments/collect.py TARGET.json WORKDIR [WORKDIR ...]")
    main(*sys.argv[1:])
