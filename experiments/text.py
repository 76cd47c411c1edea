"""Trains a model on the bytes of real files, compares it with n-gram models, and shows which bytes attend.

python experiments/text.py [--files=FOLDER --files='src/**/*.c' ...] [--config.model=transformer] [--workdir=runs/text]
"""

from pathlib import Path

import numpy as np
from lib import gather, launch, runs, summary
from lib.figures import text as text_figures

from cram_jax.analysis import ngram
from cram_jax.tasks import text
from cram_jax.tasks.text_task import KINDS, TextTask
from cram_jax.training import processes
from cram_jax.training.loop import RunConfig
from cram_jax.training.step import Learner


def build(config) -> tuple[Learner, RunConfig]:
    """Returns what to train, and for how long, from the settings. Checks that the files are long enough.

    Raises:
      ValueError, KeyError: if settings are out of range, or the files cannot be used.
    """
    task = TextTask(tuple(config.files), config.held_out_share)
    learner, run = runs.build(config, task)
    longest = max([run.length, *(length for _, length, _ in run.curriculum)])
    for split in text.SPLITS:
        task.corpus.windows(split, config.seed, 0, longest, 1)
    return learner, run


def finish(learner: Learner, run: RunConfig, seed: int, state, lines: list[dict]) -> dict:
    """Returns the run's summary, with the scores of n-gram models on the same held-out bytes."""
    corpus = learner.task.corpus
    out = runs.finish(learner, run, seed, state, lines)
    batches = range(run.held_out_batches(run.final_tokens))
    windows = [corpus.windows("held_out", seed, index, run.length, run.batch) for index in batches]
    grams = ngram.fit(corpus.contents("train"), corpus.train.bytes)
    out |= {f"bits_per_byte_{n}_gram": bits for n, bits in ngram.bits_per_byte(grams, windows).items()}
    out |= {"training_bits_per_byte": lines[-1]["train/bits_per_byte"]}
    return out | {"text_megabytes": corpus.bytes / 1e6, "text_files": len(corpus.train.paths + corpus.held_out.paths)}


def table(out: dict) -> list[tuple[str, ...]]:
    """Returns the printed table: rows of (what, number)."""
    grams = {f"n = {n}": out[f"bits_per_byte_{n}_gram"] for n in ngram.ORDERS}
    rows = [
        ("Task",),
        ("text", f"{out['text_files']} files, {out['text_megabytes']:.1f} MB"),
        ("bits per byte of held-out files", f"{out['bits_per_byte']:.3f}"),
        ("  of n-gram models of the same text", "  ".join(f"{name}: {bits:.3f}" for name, bits in grams.items())),
        ("  saved against the best of these", f"{min(grams.values()) - out['bits_per_byte']:.3f}"),
    ]
    if "attention_tokens" in out:
        rows += [("Attention",), *summary.attention_rows(out, "byte")]
        calibration = out["familiarity_calibration_error_all"]
        rows.append(("calibration error of the guess of recall's quality", f"{calibration:.3f}"))
    seen = [kind for kind in KINDS if np.isfinite(out[f"bits_per_byte_{kind}"])]
    rows.append(("After reading",))
    for kind in sorted(seen, key=lambda kind: -out.get(f"attention_{kind}", 0.0)):
        attends = f"attends {summary.percent(out[f'attention_{kind}'])}  " if f"attention_{kind}" in out else ""
        rows.append((KINDS[kind], f"{attends}{out[f'bits_per_byte_{kind}']:.2f} bits"))
    return [*rows, ("Cost",), *summary.time_rows(out, "byte")]


def opened(config, files: tuple[str, ...]):
    """Opens the files and returns the settings with their names and fingerprint."""
    config.files = files or tuple(config.files) or text.python_sources()
    config.corpus = TextTask(config.files, config.held_out_share).corpus.fingerprint
    print(f"text: {config.corpus}")
    return config


def train(config, workdir: Path) -> dict:
    """Trains or resumes one run; prints, writes and returns its summary, and draws its figure."""
    learner, run = build(config)
    title = f"Text, {run.length} bytes a window"
    out, lines = runs.complete(config, workdir, learner, run, finish=finish, table=table, title=title)
    if processes.first():
        draw(
            gather.of_run("text", f"How does {config.model} learn real text?", config, out, lines), workdir / "figures"
        )
    return out


def draw(result: dict, folder: Path) -> None:
    """Draws the figure of a run."""
    print(f"figure: {text_figures.one(result, folder)}")


def main(args) -> None:
    args.config = opened(args.config, tuple(args.files))
    runs.one(args, train, *build(args.config))


FILES = launch.Flag([], "Files, folders or globs; the Python standard library by default. May be repeated.")

if __name__ == "__main__":
    launch.run(
        main,
        config="text.py:small",
        workdir="runs/text",
        files=FILES,
        takes="3 minutes on two CPU cores",
        **launch.ONE_RUN,
    )
