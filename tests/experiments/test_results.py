"""Result files: one schema, one reader, one writer."""

import copy
import json

import pytest
from lib import results

ENTRY = {
    "settings": {"model": "cram"},
    "runs": [{"seed": 0, "accuracy": 0.5, "transition": None, "commit": "a1"}, {"seed": 1, "accuracy": 0.7}],
    "mean": {"accuracy": 0.6},
    "sd": {"accuracy": 0.14},
    "missing": {},
    "curves": [{"step": [0, 5], "loss": [None, 0.25]}, {"step": [0, 5], "loss": [1.5, 0.5]}],
}
RESULT = {
    "schema": 1,
    "name": "tried",
    "question": "How much?",
    "command": "python tried.py",
    "made_by": {"commits": ["a1"], "date": None, "machines": [], "versions": {}, "notes": ["One sentence. " * 9]},
    "config": {"seed": 0},
    "entries": {"cram, rate 0.5": ENTRY},
    "data": {"errors": {"gpu_0.25": {"error": 2e-7}, "few": [1, [2, 3]]}},
}


def test_what_is_written_is_read(tmp_path):
    results.write(tmp_path / "tried", RESULT)
    assert results.load("tried", tmp_path) == RESULT and results.names(tmp_path) == ["tried"]
    assert results.number("tried", "entries.cram, rate 0.5.runs.1.accuracy", tmp_path) == 0.7
    with pytest.raises(FileNotFoundError, match="no result 'other'.*there are tried"):
        results.load("other", tmp_path)


def test_a_list_of_numbers_takes_one_line_however_long():
    long = copy.deepcopy(RESULT)
    long["entries"]["cram, rate 0.5"]["curves"] = [{"step": list(range(500))}] * 2
    lines = results.text(long).split("\n")
    assert json.loads("\n".join(lines)) == long
    assert len(lines) < len(results.text(RESULT).split("\n"))
    assert sum(line.strip().startswith('"step"') for line in lines) == 2


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.errors.gpu_0.25.error", 2e-7),  # a name with a dot
        ("data.errors.few.1.0", 2),
        ("entries.cram, rate 0.5.curves.0.step.1", 5),
    ],
)
def test_a_path_leads_to_its_number(path, value):
    assert results.at(RESULT, path) == value


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("data.error", "data has no 'error'"),
        ("data.errors.few.2", "data.errors.few has no '2'"),
        ("data.errors.few.-1", "data.errors.few has no '-1'"),
        ("data.errors", "no number: dict"),
        ("entries.cram, rate 0.5.runs.0.transition", "no number: NoneType"),
        ("config.seed.0", "config.seed has no '0'"),
    ],
)
def test_a_path_that_leads_nowhere_says_how_far_it_goes(path, said):
    with pytest.raises(KeyError, match=said):
        results.at(RESULT, path)


def broken(**changes):
    return copy.deepcopy(RESULT) | changes


def changed(part, value):
    out = copy.deepcopy(RESULT)
    out["entries"]["cram, rate 0.5"][part] = value
    return out


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (broken(schema=2), "schema must be 1, got 2"),
        (broken(more=1), "keys must be"),
        (broken(question=" "), "question must be text"),
        (broken(config=[]), "config must be settings or null"),
        (broken(entries={}, data={}), "entries or data"),
        (broken(made_by={"commits": []}), r"made_by lacks \['date', 'machines', 'notes', 'versions'\]"),
        (broken(data={"loss": [1.0, float("nan")]}), r"data.loss.1 is not finite"),
        (changed("runs", [{"seed": 0, "curve": {}}, {}]), r"run 0 is not flat, see \['curve'\]"),
        (changed("runs", [{"seed": 0, "device": "cpu"}, {}]), r"run 0 is not flat, see \['device'\]"),
        (changed("mean", {"accuracy": None}), "mean holds no numbers"),
        (changed("curves", [{"step": [0, 1], "loss": [0.1]}] * 2), "the columns of curve 0 differ in length"),
        (changed("curves", [{"step": [0]}]), "curves must be as many as its 2 runs, got 1"),
        (changed("extra", 1), r"unknown \['extra'\]"),
        (changed("missing", None), "missing must be of another type"),
    ],
)
def test_what_breaks_the_schema_is_named_and_not_written(result, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        results.write(tmp_path / "tried", result)
    assert not (tmp_path / "tried").exists()
