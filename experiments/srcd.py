"""Trains a model on SRCD and shows how its demand for attention falls.

python experiments/srcd.py --config=experiments/configs/srcd.py:small --workdir=runs/srcd [--config.seed=1 ...]
"""

import json
import logging
import sys
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import config_flags

from cram_jax.analysis import figures, summary
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.objective import ObjectiveConfig
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training import lesion, loop
from cram_jax.training.learner import Learner, OptimizerConfig
from cram_jax.training.loop import RunConfig
from cram_jax.training.price import PriceConfig
from cram_jax.training.settings import claim_workdir, from_config, launch

CONFIG = config_flags.DEFINE_config_file("config", "experiments/configs/srcd.py:small", "Settings, and their variant.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run leaves its files; a run found there goes on.")
MODELS = {"cram": CRAMConfig(), "transformer": AttentionConfig()}


def build(config) -> tuple[Learner, RunConfig]:
    """What to train and for how long, from the settings.

    Raises:
      ValueError: for settings out of range, or that do not fit each other.
    """
    if config.model not in MODELS:
        raise ValueError(f"config.model must be one of {sorted(MODELS)}, got {config.model!r}")
    run = from_config(RunConfig(), config.run)
    data = from_config(SRCDConfig(), config.data)
    learner = Learner(
        task=SRCDTask(data, config.dynamics_weight),
        model=Stack(from_config(MODELS[config.model], config[config.model]), config.depth),
        optimizer=from_config(OptimizerConfig(), config.optimizer),
        objective=from_config(ObjectiveConfig(), config.objective),
        price=from_config(PriceConfig(), config.price),
    )
    return learner, run


def finish(learner: Learner, run: RunConfig, seed: int, state, lines: list[dict]) -> dict:
    """The run's summary: the last evaluation on many held-out tokens, lesions, the curve."""
    final = loop.evaluate(learner, run, state, seed, run.final_tokens)
    out = summary.summarise(lines, final, seed)
    out["dynamics_mse_excess"] = out["dynamics_mse"] - learner.task.data.noise**2
    out["held_out_tokens"] = run.held_out_batches(run.final_tokens) * run.length * run.batch
    if learner.model.routes:
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
    percent = lambda name: f"{100 * out[name]:.2f}%"
    rows = [
        (
            "retrieval: all, recurring, new",
            "  ".join(percent(f"retrieval_accuracy{s}") for s in ("", "_recurring", "_new")),
        ),
        ("queries of new bindings (the least attention)", percent("realised_new_share")),
        ("dynamics MSE: model, persistence", f"{out['dynamics_mse']:.4f}  {out['dynamics_mse_persistence']:.4f}"),
        ("dynamics MSE above the generator's noise", f"{out['dynamics_mse_excess']:.4f}"),
    ]
    if "attention_tokens" in out:
        layer = out["busiest_layer"]
        kept = percent(f"kept_share_layer_{layer}")
        curve = lambda unit: "  ".join(percent(f"{unit}_{when}") for when in ("start", "peak", "end"))
        start_end = out["attention_tokens_start"] / max(out["attention_tokens_end"], 1e-9)
        rows += [
            ("tokens that attend: start, peak, end", curve("attention_tokens")),
            ("(token, layer) pairs that attend: start, peak, end", curve("attention_utilisation")),
            ("tokens that attend in training at the end, audits included", percent("attention_tokens_training_end")),
            ("reduction of attending tokens, against this run's own start", f"{start_end:.1f}x"),
            (
                "reduction, against a dense transformer (every token attends)",
                f"{1 / max(out['attention_tokens_end'], 1e-9):.1f}x",
            ),
            (
                "router released by step, transition at step",
                f"{out['router_released_step']}  {out['transition_step']}",
            ),
            (f"events kept in layer {layer}, in all (event, layer) pairs", f"{kept}  {percent('kept_share')}"),
            (
                f"quality of recall of recurring queries, layer {layer}",
                percent(f"quality_query_recurring_layer_{layer}"),
            ),
            ("q-hat calibration error", f"{out['familiarity_calibration_error']:.3f}"),
            ("unattended recurring answers lost without semantic memory", percent("recurring_lost_without_semantic")),
            ("... without the feed-forward networks", percent("recurring_lost_without_feed_forward")),
        ]
    return rows + [
        ("step time: start, end", f"{out['step_ms_start']:.0f} ms  {out['step_ms_end']:.0f} ms"),
        ("training time, peak memory", f"{out['train_seconds']:.0f} s  {out['peak_memory_mb']:.0f} MB"),
    ]


def main(_) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    config, workdir = CONFIG.value, Path(WORKDIR.value)
    learner, run = build(config)
    claim_workdir(workdir, config)
    state, lines = loop.train(learner, run, config.seed, workdir, patterns=learner.task.data.patterns)
    out = finish(learner, run, config.seed, state, lines)
    (workdir / "summary.json").write_text(json.dumps(out, indent=1) + "\n")
    summary.show(f"SRCD, {config.model}, {run.length} events, seed {config.seed}", table(out))
    if learner.model.routes:
        figures.figure_2(lines, out, workdir / "figures" / "figure_2.png")
        print(f"figure: {workdir / 'figures' / 'figure_2.png'}")


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    launch(main)
