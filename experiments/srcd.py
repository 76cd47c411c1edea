"""Trains a model on SRCD and shows how its demand for attention falls.

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
            "retrieval: all, recurring, new",
            shares("retrieval_accuracy", "retrieval_accuracy_recurring", "retrieval_accuracy_new"),
        ),
        ("queries of new bindings (the least attention)", shares("realised_new_share")),
        ("dynamics MSE: model, persistence", f"{out['dynamics_mse']:.4f}  {out['dynamics_mse_persistence']:.4f}"),
        ("dynamics MSE above the generator's noise", f"{out['dynamics_mse_excess']:.4f}"),
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
        ("at the end, times fewer events attend than at the start (all, by design)", fewer(1)),
        ("... than at the peak once the router was released", fewer(peak)),
        ("... than if every query did and nothing else", fewer(out["realised_query_share"])),
        (
            "quality of recall in that layer: recurring, new queries",
            shares("quality_query_recurring_busiest", "quality_query_new_busiest"),
        ),
        (
            "q-hat calibration error in that layer: queries, all events",
            "  ".join(f"{error:.3f}" for error in calibration),
        ),
        ("recurring answers lost without semantic memory", shares("recurring_lost_without_semantic")),
        (
            "... without that of one layer; new answers, as a control",
            shares("recurring_lost_without_semantic_holder", "new_lost_without_semantic_holder"),
        ),
        ("... without the feed-forward networks", shares("recurring_lost_without_feed_forward")),
        ("... without any layer, by the read-out alone", shares("recurring_lost_without_layers")),
    ]


def train(config, workdir: Path) -> dict:
    """One run, or what is left of it: its summary, which is shown and written into the directory, and its figure."""
    learner, run = build(config)
    state, lines = runs.train(config, learner, run, workdir, patterns=learner.task.data.patterns)
    out = finish(learner, run, config.seed, state, lines)
    runs.report(workdir, f"SRCD, {config.model}, {run.length} events, seed {config.seed}", out, table(out))
    settings = gather.portable(config)
    result = gather.result(
        "srcd", f"How does {config.model} learn SRCD?", "python experiments/srcd.py", gather.made_by([out]),
        config=settings, entries={config.model: gather.entry([out], [settings], [lines])},
    )  # fmt: skip
    for draw in (training.draw, training.details):
        print(f"figure: {draw(result, workdir / 'figures')}")
    return out


def main(args) -> None:
    train(args.config, Path(args.workdir))


if __name__ == "__main__":
    launch.run(main, config="srcd.py:small", workdir="runs/srcd", takes="1 (tiny) to 10 minutes (paper), two CPU cores")
