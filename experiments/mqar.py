"""Trains a model on multi-query associative recall (MQAR), and shows its accuracy.

python experiments/mqar.py --config=experiments/configs/mqar.py:small --workdir=runs/mqar --config.model=palimpsa
"""

from pathlib import Path

from lib import launch, runs, summary

from cram_jax.tasks.mqar import MQARConfig
from cram_jax.tasks.mqar_task import MQARTask
from cram_jax.training import loop
from cram_jax.training.loop import RunConfig
from cram_jax.training.settings import from_config
from cram_jax.training.step import Learner


def build(config) -> tuple[Learner, RunConfig]:
    """Returns what to train, and for how long, from the settings."""
    return runs.build(config, MQARTask(from_config(MQARConfig(), config.data), config.examples))


def finish(learner: Learner, run: RunConfig, seed: int, state, lines: list[dict]) -> dict:
    """Returns the run's summary, with the validation accuracy, by which settings are chosen."""
    out = runs.finish(learner, run, seed, state, lines)
    chosen_by = loop.evaluate(learner, run, state, seed, run.held_out_tokens, split="validation")
    out |= {"accuracy_start": lines[0]["held_out/accuracy"]}
    return out | {"validation_accuracy": chosen_by["accuracy"]}


def table(out: dict) -> list[tuple[str, ...]]:
    """Returns the printed table: rows of (what, number)."""
    rows = [
        ("values asked for that are named right", summary.percent(out["accuracy"])),
        ("  on validation data, by which settings are chosen", summary.percent(out["validation_accuracy"])),
        ("state carried from token to token, without convolutions", f"{out['state_bytes']} bytes"),
    ]
    if "attention_tokens" in out:
        rows += summary.attention_rows(out, "token")
    return rows + summary.time_rows(out, "token")


def train(config, workdir: Path) -> dict:
    """Trains or resumes one run; prints, writes and returns its summary."""
    learner, run = build(config)
    title = f"MQAR, {run.length} tokens a sequence"
    return runs.complete(config, workdir, learner, run, finish=finish, table=table, title=title)[0]


def main(args) -> None:
    runs.one(args, train, *build(args.config))


if __name__ == "__main__":
    launch.run(
        main,
        config="mqar.py:small",
        workdir="runs/mqar",
        takes="1 to 2 minutes on one CPU core (small)",
        **launch.ONE_RUN,
    )
