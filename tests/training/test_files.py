"""The files of a run: locked, written whole, checked line by line; what is damaged is named and set aside."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from cram_jax.training import files
from cram_jax.training.files import append, held, read, write_whole
from cram_jax.training.loop import RunConfig
from cram_jax.training.metrics import Records
from cram_jax.training.settings import claim_workdir, to_config

HOLD = """
import sys, time
from pathlib import Path
from cram_jax.training.files import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_says_who_holds_a_directory_and_a_crash_lets_go(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"is in use by process {other.pid} on .*; wait until it has ended"):
        with held(tmp_path):
            pass
    other.kill()
    other.communicate()
    with held(tmp_path):  # the kernel let go
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"), held(tmp_path):
            pass
    with held(tmp_path):
        pass


@pytest.fixture
def lines(tmp_path):
    """A file of ten lines."""
    path = tmp_path / "metrics.jsonl"
    for step in range(10):
        append(path, {"step": step, "loss": 0.5 + step, "none": float("nan")})
    return path


def test_lines_come_back(lines):
    found = read(lines)
    assert [line["step"] for line in found] == list(range(10)) and found[3]["loss"] == 3.5
    assert all(np.isnan(line["none"]) and "check" not in line for line in found)


def test_no_flip_of_a_bit_is_believed(lines, caplog):
    # Given any bit of the fifth line flipped, its end apart
    texts = lines.read_bytes().splitlines(keepends=True)
    for at in range(len(texts[4]) - 1):
        for bit in (0, 3, 6):
            flipped = bytearray(texts[4])
            flipped[at] ^= 1 << bit
            if chr(flipped[at]) in "\n\r\v\f\x1c\x1d\x1e\x85":
                continue  # two bad lines instead of one
            lines.write_bytes(b"".join([*texts[:4], bytes(flipped), *texts[5:]]))
            good, bad = files.parse(lines)
            assert [line["step"] for line in good] == [0, 1, 2, 3, 5, 6, 7, 8, 9] and bad == [5], bytes(flipped)
    with caplog.at_level(logging.WARNING):
        read(lines)
    assert "damaged at line 5; the others are used" in caplog.text


def test_a_line_cut_in_the_middle_costs_no_other(lines):
    texts = lines.read_text().splitlines(keepends=True)
    lines.write_text("".join([*texts[:3], texts[3][:20], *texts[4:]]))  # it runs into the next one
    assert [line["step"] for line in read(lines)] == [0, 1, 2, 5, 6, 7, 8, 9]


def test_what_a_crash_left_does_not_spoil_the_next_line(lines):
    lines.write_text(lines.read_text() + '{"step": 10, "lo')
    append(lines, {"step": 10})
    assert [line["step"] for line in read(lines)] == list(range(11))


@pytest.mark.parametrize("written", ["nothing", "a part"])
def test_a_full_disk_is_named_with_the_file(lines, monkeypatch, written):
    def full(file, line):
        if written == "nothing":
            raise OSError(28, "No space left on device")
        return usual(file, line[:5])

    usual = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left on device: .*metrics.jsonl"):
            append(lines, {"step": 10})
    append(lines, {"step": 10})
    assert [line["step"] for line in read(lines)] == list(range(11))


def test_lines_without_sums_are_read_if_no_line_has_one(tmp_path):
    path = tmp_path / "old.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n[3]\n{"st')
    assert files.parse(path) == ([{"step": 0}, {"step": 1}], [3, 4])
    append(path, {"step": 2})
    assert [line["step"] for line in read(path)] == [2]


def test_going_on_keeps_good_lines_and_sets_a_damaged_file_aside(lines, caplog):
    before = lines.read_text().replace("3.5", "9.5")
    lines.write_text(before)
    with caplog.at_level(logging.WARNING):
        records = Records(lines.parent, 8)
    records.close()
    assert [line["step"] for line in read(lines)] == [0, 1, 2, 4, 5, 6, 7, 8] and records.last["step"] == 8
    assert lines.with_name("metrics.jsonl.damaged").read_text() == before
    assert "damaged at line 4; a copy is in metrics.jsonl.damaged" in caplog.text


def test_a_file_is_old_or_new_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_whole(path, "old")

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: .*summary.json"):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "null"])
def test_damaged_settings_are_written_again_if_a_launch_had_them(tmp_path, damage, caplog):
    # Given a run that was launched
    config, path = to_config(RunConfig(steps=100)), tmp_path / "config.json"
    claim_workdir(tmp_path, config)
    records = Records(tmp_path, -1)
    records.launch({"commit": "1"})
    records.close()
    text = path.read_text()
    damaged = {"truncated": text[:40], "empty": "", "flipped": text.replace("100", "101"), "null": "null"}[damage]
    # When the settings are damaged, then the same command goes on
    path.write_text(damaged)
    with caplog.at_level(logging.WARNING):
        claim_workdir(tmp_path, config)
    assert path.read_text() == text and "it is written again" in caplog.text
    # and another one is refused, as it is where no launch tells
    path.write_text(damaged)
    with pytest.raises(ValueError, match="holds a run with "):
        claim_workdir(tmp_path, to_config(RunConfig(steps=200)))
    (tmp_path / "launches.jsonl").unlink()
    with pytest.raises(ValueError, match="holds a run with "):
        claim_workdir(tmp_path, config)
    assert path.read_text() == damaged


def test_settings_are_written_once(tmp_path):
    config = to_config(RunConfig(steps=100))
    claim_workdir(tmp_path, config)
    written = (tmp_path / "config.json").stat()
    claim_workdir(tmp_path, config)
    assert (tmp_path / "config.json").stat() == written and json.loads((tmp_path / "config.json").read_text())
