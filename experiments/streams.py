"""Trains on streams, then deploys the fixed model in fresh ones: does attention fall by experience alone?

python experiments/streams.py --config=experiments/configs/streams.py:small --runs=runs/streams [--seeds=3]

The config file describes training, deployment and what is reported.
"""

import json
from pathlib import Path

import numpy as np
from lib import deployment, gather, launch, runs, summary
from lib.figures import catalogue
from ml_collections import ConfigDict

from cram_jax.tasks.streams import StreamsConfig
from cram_jax.tasks.streams_task import StreamsTask
from cram_jax.training.loop import RunConfig
from cram_jax.training.metrics import read, strict
from cram_jax.training.settings import from_config
from cram_jax.training.step import Learner

QUESTION = "Does the attention of a fixed model fall in fresh streams, by what it retrieved there before?"
COMMAND = "python experiments/streams.py --config=experiments/configs/streams.py:small --runs=runs/streams --seeds=N"
ARMS = {"memory learns": True, "memory fixed": False}
BLOCK = 10  # visits


def build(config: ConfigDict) -> tuple[Learner, RunConfig]:
    """Returns what to train and for how long, from the settings."""
    return runs.build(config, StreamsTask(from_config(StreamsConfig(), config.data), config.dynamics_weight))


def train(config: ConfigDict, workdir: Path) -> dict[str, dict]:
    """Trains one seed and deploys it, or reads what an earlier call left; returns the counts of each arm."""
    learner, run = build(config)
    state, _ = runs.train(config, learner, run, workdir)
    path, counts = workdir / "deployed.json", {}
    if path.exists():
        return {arm: {k: np.array(v) for k, v in found.items()} for arm, found in json.loads(path.read_text()).items()}
    for arm, consolidate in ARMS.items():
        show = lambda done, found, arm=arm: _progress(arm, done, found)
        counts[arm] = deployment.deploy(
            learner,
            state.params,
            state.consolidation,
            size=config.deployment.streams,
            visits=config.deployment.visits,
            length=run.length,
            seed=config.seed,
            consolidate=consolidate,
            show=show,
        )
    path.write_text(json.dumps({arm: {k: v.tolist() for k, v in found.items()} for arm, found in counts.items()}))
    return counts


def _progress(arm: str, done: int, counts: list[dict]) -> None:
    if done % BLOCK:
        return
    row = deployment.blocks({name: np.stack([one[name] for one in counts[-BLOCK:]]) for name in counts[0]}, BLOCK)[0]
    percent = lambda name: f"{100 * row[name]:.2f}%"
    print(
        f"{arm}: visits {done - BLOCK} to {done - 1}  attend {percent('attention_tokens')} (least {percent('least')})  "
        f"right {percent('retrieval_accuracy')}, new {percent('retrieval_accuracy_new')}",
        flush=True,
    )


def entry(config: ConfigDict, seeds: dict[int, dict], made: dict, arm: str) -> dict:
    """Returns the entry of one arm: a run for each seed, with its numbers and its curve over blocks of visits."""
    found, curves, exposures = [], [], []
    for seed, counts in seeds.items():
        rows = deployment.blocks(counts[arm], BLOCK)
        first, last = rows[0], rows[-1]
        run = {
            "seed": seed,
            "attention_tokens_first": first["attention_tokens"],
            "attention_tokens_end": last["attention_tokens"],
            "least_end": last["least"],
            "new_end": last["new"],
            "over_least_highest": max(row["over_least"] for row in rows),
            "retrieval_accuracy_lowest": min(row["retrieval_accuracy"] for row in rows),
            "retrieval_accuracy_new_lowest": min(row["retrieval_accuracy_new"] for row in rows),
            "retrieval_accuracy_end": last["retrieval_accuracy"],
            "retrieval_accuracy_new_end": last["retrieval_accuracy_new"],
            "operations_per_token_end": last["operations_per_token"],
        }
        found.append(gather.flat(run | {"trained_by": made["commits"], "trained_on": made["machines"]}))
        curves.append({name: [row[name] for row in rows] for name in rows[0]})
        asked, attended = (counts[arm][f"{what}_by_exposure"].sum(0).tolist() for what in ("asked", "attended"))
        exposures.append({"k": list(range(len(asked))), "count": asked, "episodic": attended})
    return strict({"settings": {}, "runs": found, **gather.statistics(found), "curves": curves, "exposures": exposures})


def table(entries: dict[str, dict]) -> list[tuple[str, ...]]:
    """Returns the printed table: rows of (what, number)."""
    rows = []
    for arm, found in entries.items():
        mean, percent = found["mean"], summary.percent
        rows += [
            (arm,),
            ("tokens that attend, first and last ten visits", f"{percent(mean['attention_tokens_first'])}  "
             f"{percent(mean['attention_tokens_end'])}"),
            ("  the least that answers every query, last ten", percent(mean["least_end"])),
            ("  highest ratio of the two, over blocks of ten visits", f"{mean['over_least_highest']:.2f}"),
            ("queries answered right, lowest block and last", f"{percent(mean['retrieval_accuracy_lowest'])}  "
             f"{percent(mean['retrieval_accuracy_end'])}"),
            ("  queries of new bindings", f"{percent(mean['retrieval_accuracy_new_lowest'])}  "
             f"{percent(mean['retrieval_accuracy_new_end'])}"),
        ]  # fmt: skip
    return rows


def main(args) -> None:
    at, seeds = Path(args.runs), {}
    for seed in range(args.seeds):
        config = args.config.copy_and_resolve_references()
        config.seed = seed
        seeds[seed] = train(config, at / f"seed_{seed}")
    launches = [line for seed in seeds for line in read(at / f"seed_{seed}" / "launches.jsonl")]
    made = gather.made_by_launches(launches)
    entries = {arm: entry(args.config, seeds, made, arm) for arm in ARMS}
    visits = f"{args.config.deployment.visits} visits of {args.config.deployment.streams} fresh streams"
    summary.show(f"{visits}, parameters fixed, no labels, seeds {', '.join(map(str, seeds))}", table(entries))
    config = args.config.copy_and_resolve_references()
    catalogue.leave(gather.result("streams", QUESTION, COMMAND, made, config=config, entries=entries), at)


if __name__ == "__main__":
    launch.run(main, config="streams.py:small", runs="runs/streams", seeds=1, takes="20 minutes (small), two CPU cores")
