"""Logged lines: means are total sum / total count, and no line is written twice."""

import json
import logging
import tracemalloc

import numpy as np

from cram_jax.training import metrics
from cram_jax.training.files import read
from cram_jax.training.metrics import Records, means


def test_means_weigh_by_counts_and_say_when_nothing_was_counted():
    sums = [{"a": (1.0, 2.0), "b": (0.0, 0.0)}, {"a": (5.0, 8.0), "b": (0.0, 0.0)}]
    out = means(sums)
    assert out["a"] == 0.6 and np.isnan(out["b"])
    bins = means([{"h": (np.array([1.0, 2.0]), 1.0)}, {"h": (np.array([3.0, 2.0]), 1.0)}])
    assert bins["h"] == [2.0, 2.0]


def test_going_on_cuts_what_will_be_written_again(tmp_path):
    records = Records(tmp_path, -1)
    for step in (0, 10, 20, 30):
        records.write({"step": step, "seconds": float(step), "loss": 1.0})
    records.close()
    # a process killed while writing leaves half a line
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 40, "se')
    assert [line["step"] for line in read(path)] == [0, 10, 20, 30]

    again = Records(tmp_path, 20)
    assert again.seconds == 20.0
    again.write({"step": 30, "seconds": 31.0, "loss": 2.0})
    again.close()
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(0, 1.0), (10, 1.0), (20, 1.0), (30, 2.0)]


def test_what_is_written_is_json(tmp_path):
    records = Records(tmp_path, -1)
    records.write({"step": 0, "seconds": 0.0, "never": float("nan"), "bins": [1.0, float("inf")]})
    records.close()

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = json.loads(text, parse_constant=refuse)
    assert len(found.pop("check")) == 8
    assert found == {"step": 0, "seconds": 0.0, "never": None, "bins": [1.0, None]}
    (line,) = read(tmp_path / "metrics.jsonl")
    assert np.isnan(line["never"]) and np.isnan(line["bins"][1])


def test_a_fresh_run_starts_from_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "seconds": 1.0}\n')
    records = Records(tmp_path, -1)
    records.close()
    assert records.last is None and read(tmp_path / "metrics.jsonl") == []


def test_lines_take_no_memory(tmp_path):
    # Given a run whose lines have thirty numbers
    records = Records(tmp_path, -1)
    write = lambda step: records.write({"step": step, "seconds": 0.0} | {f"number {i}": i + 0.5 for i in range(30)})
    tracemalloc.start()
    try:
        for step in range(5):
            write(step)
        before, _ = tracemalloc.get_traced_memory()
        # When it writes 50 more
        for step in range(5, 55):
            write(step)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        records.close()
    # Then it holds hardly more than before: one line is 3.4 kB
    assert len(read(tmp_path / "metrics.jsonl")) == 55 and after - before < 20_000


def test_what_takes_long_says_how_far_it_is(monkeypatch, caplog):
    times = iter([0.0, 10.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(times))
    with caplog.at_level(logging.INFO):
        assert list(metrics.watched(4, "evaluation")) == [0, 1, 2, 3]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["evaluation: 2 of 4 batches, 0:20 left", "evaluation: 4 of 4 batches, 0:00 left"]
