"""The text experiment from the command line, on generated files, and on files that it must refuse."""

import json

import numpy as np
import pytest
from commands import refused, run

from cram_jax.tasks.text_task import KINDS
from cram_jax.training.files import read

SMALLEST = {
    "depth": 1, "run.steps": 80, "run.log_every": 20, "run.checkpoint_every": 80, "run.length": 32, "run.batch": 8,
    "run.held_out_tokens": 1024, "run.final_tokens": 4096, "cram.D": 32, "cram.F": 32,
    "optimizer.warmup": 5, "price.start": 20, "price.ramp": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files whose lines are a few words in random order."""
    folder = tmp_path_factory.mktemp("text")
    random = np.random.default_rng(0)
    words = ["alpha", "beta2", "gamma", "'delta'", "eps = 10;", "\n    zeta"]
    for i in range(10):
        (folder / f"{i}.txt").write_text(" ".join(random.choice(words, 400)))
    return folder


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """Returns (directory of a trained CRAM, what the training printed)."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, run("text", f"--workdir={workdir}", f"--files={folder}", **SMALLEST)


def test_a_run_sets_the_network_beside_ngrams_and_says_what_attends(finished, folder):
    workdir, out = finished
    summary = json.loads((workdir / "summary.json").read_text())
    # Six words at random: a byte is worth 0.43 bit (log2(6) over 6 bytes). A unigram cannot know the word.
    assert summary["bits_per_byte_3_gram"] < summary["bits_per_byte_2_gram"] < summary["bits_per_byte_1_gram"] < 8
    assert 0.4 < summary["bits_per_byte_3_gram"] < 1
    # The network read them too: it begins with 8 bits for a byte, and 80 steps halve them.
    bits = [line["held_out/bits_per_byte"] for line in read(workdir / "metrics.jsonl")]
    assert 7 < bits[0] < 9 and bits[-1] < 4
    assert summary["text_files"] == 10
    assert summary["text_megabytes"] == sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    assert (workdir / "figures" / "figure.png").stat().st_size > 10_000
    assert summary["attention_tokens_start"] == 1.0  # every byte attends before the release
    assert {f"attention_{kind}" for kind in KINDS} <= summary.keys()
    assert "n-gram models of the same text" in out and "n = 3: " in out
    assert "first letter of a word" in out and "attends" in out


def test_a_run_does_not_go_on_with_other_text(finished, folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes() + b"more")
    said = refused("text", f"--workdir={finished[0]}", f"--files={tmp_path}", **SMALLEST)
    assert "holds a run with config.corpus=" in said


def too_short(at):
    for name in ("a.txt", "b.txt"):
        (at / name).write_text("short")
    return "no file of the train split holds a window of 32 + 1 bytes; the longest, "


def unreadable(at):
    too_short(at)
    (at / "c.txt").symlink_to(at / "gone")
    fix = "make it readable, or give patterns that do not match it"
    return f"{at / 'c.txt'} cannot be read (No such file or directory); {fix}"


def empty(at):
    return f"the folder {at} holds no files"


@pytest.mark.parametrize("case", [too_short, unreadable, empty])
def test_files_that_cannot_serve_end_the_run_before_the_first_step_in_one_line(case, tmp_path):
    (tmp_path / "text").mkdir()
    message = case(tmp_path / "text")
    said = refused("text", f"--workdir={tmp_path / 'run'}", f"--files={tmp_path / 'text'}", **SMALLEST)
    assert said.startswith(f"error: {message}") and "\n" not in said
    assert not (tmp_path / "run").exists()
