"""Trains a model on the bytes of real files, beside n-gram models of the same text, and shows which bytes attend.

python experiments/text.py [--files=FOLDER --files='src/**/*.c' ...] [--config.model=transformer] [--workdir=runs/text]
"""

from pathlib import Path

import numpy as np
from lib import gather, launch, runs, summary
from lib.figures import text as text_figures

from cram_jax.analysis import ngram
from cram_jax.tasks import text
from cram_jax.tasks.text_task import KINDS, TextTask
from cram_jax.training.loop import RunConfig
from cram_jax.training.step import Learner


def build(config) -> tuple[Learner, RunConfig]:
    """What to train and for how long, from the settings; the text is opened, and found long enough.

    Raises:
      ValueError, KeyError: for settings out of range, or files that cannot be trained on.
    """
    task = TextTask(tuple(config.files), config.held_out_share)
    learner, run = runs.build(config, task)
    longest = max([run.length, *(length for _, length, _ in run.curriculum)])
    for split in text.SPLITS:
        task.corpus.windows(split, config.seed, 0, longest, 1)
    return learner, run


def finish(learner: Learner, run: RunConfig, seed: int, state, lines: list[dict]) -> dict:
    """The run's summary, and the n-grams' on the same held-out bytes."""
    corpus = learner.task.corpus
    out = runs.finish(learner, run, seed, state, lines)
    batches = range(run.held_out_batches(run.final_tokens))
    windows = [corpus.windows("held_out", seed, index, run.length, run.batch) for index in batches]
    grams = ngram.fit(corpus.contents("train"), corpus.train.bytes)
    out |= {f"bits_per_byte_{n}_gram": bits for n, bits in ngram.bits_per_byte(grams, windows).items()}
    out |= {"training_bits_per_byte": lines[-1]["train/bits_per_byte"]}
    return out | {"text_megabytes": corpus.bytes / 1e6, "text_files": len(corpus.train.paths + corpus.held_out.paths)}


def table(out: dict) -> list[tuple[str, str]]:
    """Rows of (what, figure) for a person."""
    best = min(out[f"bits_per_byte_{n}_gram"] for n in ngram.ORDERS)
    grams = "  ".join(f"{out[f'bits_per_byte_{n}_gram']:.3f}" for n in ngram.ORDERS)
    rows = [
        ("text: files, size", f"{out['text_files']}  {out['text_megabytes']:.1f} MB"),
        ("bits per byte, held-out files", f"{out['bits_per_byte']:.3f}"),
        ("... of n-gram models of the same text, n = 1, 2, 3", grams),
        ("... saved against the best of these", f"{best - out['bits_per_byte']:.3f}"),
    ]
    if "attention_tokens" in out:
        rows += summary.attention_rows(out, "byte")
        rows.append(
            (
                "calibration error of familiarity, the router's guess of quality",
                f"{out['familiarity_calibration_error_all']:.3f}",
            )
        )
    seen = [kind for kind in KINDS if np.isfinite(out[f"bits_per_byte_{kind}"])]
    for kind in sorted(seen, key=lambda kind: -out.get(f"attention_{kind}", 0.0)):
        attends = f"attends {summary.percent(out[f'attention_{kind}'])}  " if f"attention_{kind}" in out else ""
        rows.append((f"after reading: {KINDS[kind]}", f"{attends}{out[f'bits_per_byte_{kind}']:.2f} bits"))
    return rows + summary.time_rows(out, "byte")


def opened(config, files: tuple[str, ...]):
    """The settings with the text they are about, which is opened."""
    config.files = files or tuple(config.files) or text.python_sources()
    config.corpus = TextTask(config.files, config.held_out_share).corpus.fingerprint
    print(f"text: {config.corpus}")
    return config


def train(config, workdir: Path) -> dict:
    """One run, or what is left of it: its summary, which is shown, drawn and written into the directory."""
    learner, run = build(config)
    title = f"Text, {run.length} bytes a window"
    out, lines = runs.complete(config, workdir, learner, run, finish=finish, table=table, title=title)
    draw(gather.of_run("text", f"How does {config.model} learn real text?", config, out, lines), workdir / "figures")
    return out


def draw(result: dict, folder: Path) -> None:
    """The figure of a run."""
    print(f"figure: {text_figures.one(result, folder)}")


def main(args) -> None:
    train(opened(args.config, tuple(args.files)), Path(args.workdir))


FILES = launch.Flag([], "Files, folders or globs; the Python standard library by default. May be repeated.")

if __name__ == "__main__":
    launch.run(main, config="text.py:small", workdir="runs/text", files=FILES, takes="3 minutes on two CPU cores")
