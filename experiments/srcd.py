"""Trains a model on SRCD, the paper's task, and shows how its demand for attention falls.

python experiments/srcd.py --config=experiments/configs/srcd.py:small --workdir=runs/srcd [--config.seed=1 ...]
"""

from pathlib import Path

import numpy as np
from lib import gather, launch, lesion, runs, summary
from lib.figures import training

from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training.loop import RunConfig
from cram_jax.training.settings import from_config
from cram_jax.training.step import Learner


def build(config) -> tuple[Learner, RunConfig]:
    """What to train and for how long, from the settings."""
    return runs.build(config, SRCDTask(from_config(SRCDConfig(), config.data), config.dynamics_weight))


def finish(learner: Learner, run: RunConfig, seed: int, state, lines: list[dict]) -> dict:
    """The run's summary, with lesions and how often each pattern was asked for."""
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


def table(out: dict) -> list[tuple[str, str]]:
    """Rows of (what, figure) for a person."""
    shares = lambda *names: "  ".join(summary.percent(out[name]) for name in names)
    rows = [
        (
            "queries answered right: all, recurring, new",
            shares("retrieval_accuracy", "retrieval_accuracy_recurring", "retrieval_accuracy_new"),
        ),
        (
            "queries of new bindings, as a share of events: only attention can answer these",
            shares("realised_new_share"),
        ),
        (
            "squared error of the next value: the model, repeating the last value",
            f"{out['dynamics_mse']:.4f}  {out['dynamics_mse_persistence']:.4f}",
        ),
        ("... above that of a perfect model, which is the noise of the data", f"{out['dynamics_mse_excess']:.4f}"),
    ]
    if "attention_tokens" in out:
        rows += summary.attention_rows(out, "event")
    if "familiarity_calibration_error_query" in out:
        rows += consolidation_rows(out)
    return rows + summary.time_rows(out, "event")


def consolidation_rows(out: dict) -> list[tuple[str, str]]:
    """What a model that consolidates did with its attention."""
    shares = lambda *names: "  ".join(summary.percent(out[name]) for name in names)
    peak = out["attention_tokens_peak_after_release"] or float("nan")
    fewer = lambda share: f"{share / max(out['attention_tokens_end'], 1e-9):.1f}x"
    calibration = [out[f"familiarity_calibration_error_{group}"] for group in ("query", "all")]
    return [
        ("times fewer events attend at the end than: if all did", fewer(1)),
        ("... at most, once the router decides", fewer(peak)),
        ("... if each query did and nothing else", fewer(out["realised_query_share"])),
        (
            "quality of semantic recall (1: equals attention): recurring, new queries",
            shares("quality_query_recurring_busiest", "quality_query_new_busiest"),
        ),
        (
            "calibration error of familiarity, the router's guess of quality: queries, all",
            "  ".join(f"{error:.3f}" for error in calibration),
        ),
        (
            "answers lost if semantic memory is removed: recurring (without attention)",
            shares("recurring_lost_without_semantic"),
        ),
        (
            "... of one layer, the one that costs most: recurring; new, as a control",
            shares("recurring_lost_without_semantic_holder", "new_lost_without_semantic_holder"),
        ),
        ("... the feed-forward networks are", shares("recurring_lost_without_feed_forward")),
        ("... all layers are, which leaves the read-out", shares("recurring_lost_without_layers")),
    ]


def train(config, workdir: Path) -> dict:
    """One run, or what is left of it: its summary, which is shown and written into the directory, and its figure."""
    learner, run = build(config)
    title, patterns = f"SRCD, {run.length} events a sequence", learner.task.data.patterns
    out, lines = runs.complete(
        config, workdir, learner, run, finish=finish, table=table, title=title, patterns=patterns
    )
    draw(gather.of_run("srcd", f"How does {config.model} learn SRCD?", config, out, lines), workdir / "figures")
    return out


def draw(result: dict, folder: Path) -> None:
    """The figures of a run."""
    for figure in (training.draw, training.details):
        print(f"figure: {figure(result, folder)}")


def main(args) -> None:
    train(args.config, Path(args.workdir))


if __name__ == "__main__":
    launch.run(main, config="srcd.py:small", workdir="runs/srcd", takes="1 (tiny) to 10 minutes (paper), two CPU cores")
