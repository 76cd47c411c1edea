"""Trains a model on SRCD, the paper's task, and shows how its demand for attention falls.

python experiments/srcd.py --config=experiments/configs/srcd.py:small --workdir=runs/srcd [--config.seed=1 ...]
"""

from functools import partial
from pathlib import Path

import numpy as np
from lib import gather, launch, lesion, runs, summary
from lib.figures import training

from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training import processes
from cram_jax.training.loop import RunConfig
from cram_jax.training.settings import from_config
from cram_jax.training.step import Learner


def build(config) -> tuple[Learner, RunConfig]:
    """Returns what to train, and for how long, from the settings."""
    return runs.build(config, SRCDTask(from_config(SRCDConfig(), config.data), config.dynamics_weight))


def finish(learner: Learner, run: RunConfig, seed: int, state, lines: list[dict]) -> dict:
    """Returns the run's summary, with lesions and the exposures of patterns."""
    out = runs.finish(learner, run, seed, state, lines)
    out["dynamics_mse_excess"] = out["dynamics_mse"] - learner.task.data.noise**2
    if learner.model.consolidates:
        batches = [learner.task.batch("held_out", seed, i, run.length, run.batch) for i in range(16)]
        out |= lesion.share_lost(learner, state, batches)
        exposures = np.asarray(state.exposures_P)
        out |= {
            "exposures_per_pattern_mean": float(exposures.mean()),
            "exposures_per_pattern_min": int(exposures.min()),
        }
    return out


def table(out: dict) -> list[tuple[str, ...]]:
    """Returns the printed table: rows of (what, number)."""
    shares, attends = partial(summary.shares, out), "attention_tokens" in out
    noise = out["dynamics_mse"] - out["dynamics_mse_excess"]
    errors = {"model": out["dynamics_mse"], "last value repeated": out["dynamics_mse_persistence"], "least": noise}
    accuracy = {
        "all": "retrieval_accuracy",
        "recurring": "retrieval_accuracy_recurring",
        "new": "retrieval_accuracy_new",
    }
    rows = [
        ("Task",),
        ("queries answered right", shares(**accuracy)),
        ("  new queries, which only attention can answer", shares(of_all_events="realised_new_share")),
        ("mean squared error of the next value", "  ".join(f"{name} {error:.4f}" for name, error in errors.items())),
    ]
    if attends:
        rows += [("Attention",), *summary.attention_rows(out, "event")]
    if "familiarity_calibration_error_query" in out:
        rows += consolidation_rows(out)
    return [*rows, ("Cost",), *summary.time_rows(out, "event")]


def consolidation_rows(out: dict) -> list[tuple[str, ...]]:
    """Returns rows about attention and recall of a model that consolidates."""
    shares = partial(summary.shares, out)
    peak = out["attention_tokens_peak_after_release"]  # missing if the router was never released
    fewer = lambda share: f"{share / max(out['attention_tokens_end'], 1e-9):.1f}x" if share else "not released"
    queries, everything = (out[f"familiarity_calibration_error_{group}"] for group in ("query", "all"))
    return [
        (
            "fewer events attend at the end than",
            f"all {fewer(1)}  most under the router {fewer(peak)}  one a query {fewer(out['realised_query_share'])}",
        ),
        ("Semantic memory, in the layer that attends most",),
        (
            "quality of recall (100%: as from attention)",
            shares(recurring_queries="quality_query_recurring_busiest", new_queries="quality_query_new_busiest"),
        ),
        ("  calibration error of the guess of it", f"queries {queries:.3f}  all events {everything:.3f}"),
        ("Right answers without attention, lost if it is removed:",),
        ("semantic memory", shares(all_layers="recurring_lost_without_semantic")),
        (
            "  of the layer where it costs most",
            shares(
                recurring="recurring_lost_without_semantic_holder", new_as_a_control="new_lost_without_semantic_holder"
            ),
        ),
        ("feed-forward networks", shares(all_layers="recurring_lost_without_feed_forward")),
        ("all layers; embedding and read-out are left", shares(all_layers="recurring_lost_without_layers")),
    ]


def train(config, workdir: Path) -> dict:
    """Trains or resumes one run; prints, writes and returns its summary, and draws its figures."""
    learner, run = build(config)
    title, patterns = f"SRCD, {run.length} events a sequence", learner.task.data.patterns
    out, lines = runs.complete(
        config, workdir, learner, run, finish=finish, table=table, title=title, patterns=patterns
    )
    if processes.first():
        draw(gather.of_run("srcd", f"How does {config.model} learn SRCD?", config, out, lines), workdir / "figures")
    return out


def draw(result: dict, folder: Path) -> None:
    """Draws the figures of a run."""
    for figure in (training.draw, training.details):
        print(f"figure: {figure(result, folder)}")


def main(args) -> None:
    learner, run = build(args.config)
    runs.one(args, train, learner, run, learner.task.data.patterns)


if __name__ == "__main__":
    launch.run(
        main,
        config="srcd.py:small",
        workdir="runs/srcd",
        takes="1 (tiny) to 10 minutes (paper), two CPU cores",
        **launch.ONE_RUN,
    )
