"""Trains a model on SRCD and shows how its demand for attention falls.

python experiments/srcd.py --config=experiments/configs/srcd.py:small --workdir=runs/srcd [--config.seed=1 ...]
"""

from pathlib import Path

import numpy as np

from cram_jax.analysis import figures, summary
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training import experiment, lesion, loop
from cram_jax.training.learner import Learner
from cram_jax.training.loop import RunConfig
from cram_jax.training.settings import from_config

CONFIG = experiment.config_flag("experiments/configs/srcd.py:small")
WORKDIR = experiment.workdir_flag("runs/srcd")


def build(config) -> tuple[Learner, RunConfig]:
    """What to train and for how long, from the settings."""
    return experiment.build(config, SRCDTask(from_config(SRCDConfig(), config.data), config.dynamics_weight))


def finish(learner: Learner, run: RunConfig, seed: int, state, lines: list[dict]) -> dict:
    """The run's summary: the last evaluation on many held-out tokens, lesions, the curve."""
    final = loop.evaluate(learner, run, state, seed, run.final_tokens)
    out = summary.summarise(lines, final, seed)
    out["dynamics_mse_excess"] = out["dynamics_mse"] - learner.task.data.noise**2
    out |= {"length": run.length, "length_start": run.shape(0)[0]}
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
        kept = percent("kept_share_busiest")
        curve = lambda unit: "  ".join(percent(f"{unit}_{when}") for when in ("start", "peak", "end"))
        peak = out["attention_tokens_peak_after_release"] or float("nan")
        fewer = lambda share: share / max(out["attention_tokens_end"], 1e-9)
        rows += [
            ("tokens that attend: start, peak, end", curve("attention_tokens")),
            ("(token, layer) pairs that attend: start, peak, end", curve("attention_utilisation")),
            ("tokens that attend in training at the end, audits included", percent("attention_tokens_training_end")),
            ("at the end, times fewer tokens attend than at the start (all, by design)", f"{fewer(1):.1f}x"),
            ("... than at the peak once the router was released", f"{fewer(peak):.1f}x"),
            ("... than if every query did and nothing else", f"{fewer(out['realised_query_share']):.1f}x"),
            (
                "router released by step, transition at step",
                f"{out['router_released_step']}  {out['transition_step']}",
            ),
            (f"events kept in layer {layer}, in all (event, layer) pairs", f"{kept}  {percent('kept_share')}"),
            (
                f"quality of recall, layer {layer}: recurring, new queries",
                "  ".join(percent(f"quality_query_{kind}_busiest") for kind in ("recurring", "new")),
            ),
            (
                f"q-hat calibration error, layer {layer}: queries, all events",
                "  ".join(f"{out[f'familiarity_calibration_error_{group}']:.3f}" for group in ("query", "all")),
            ),
            ("unattended recurring answers lost without semantic memory", percent("recurring_lost_without_semantic")),
            ("... without the feed-forward networks", percent("recurring_lost_without_feed_forward")),
        ]
    return rows + [
        (
            f"step time: start ({out['length_start']} events), end ({out['length']})",
            f"{out['step_ms_start']:.0f} ms  {out['step_ms_end']:.0f} ms",
        ),
        ("training time, peak memory", f"{out['train_seconds']:.0f} s  {out['peak_memory_mb']:.0f} MB"),
    ]


def main(_) -> None:
    config, workdir = CONFIG.value, Path(WORKDIR.value)
    learner, run = build(config)
    state, lines = experiment.train(config, learner, run, workdir, patterns=learner.task.data.patterns)
    out = finish(learner, run, config.seed, state, lines)
    experiment.report(workdir, f"SRCD, {config.model}, {run.length} events, seed {config.seed}", out, table(out))
    if learner.model.routes:
        path = workdir / "figures" / "figure_2.png"
        figures.figure_2(lines, out, path)
        print(f"figure: {path}")


if __name__ == "__main__":
    experiment.launch(main)
