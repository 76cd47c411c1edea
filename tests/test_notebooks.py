"""Committed outputs of the notebooks equal those of a new execution."""

import copy
import json
import re

import pytest
from lib import notebooks

NAMES = notebooks.names()
COMMITTED = {name: notebooks.read(name) for name in NAMES}
IN_FULL = "recall"  # runs to the end: its short training, too


@pytest.fixture(scope="module")
def today() -> dict:
    """Returns newly executed code cells, by notebook. Cells that train are executed in the notebook IN_FULL only."""
    ran = {name: copy.deepcopy(notebooks.code(COMMITTED[name], rerun=name == IN_FULL)) for name in NAMES}
    forget = lambda: notebooks.cell("%reset -f")  # what one notebook defines is not there for the next
    notebooks.run([cell for cells in ran.values() for cell in (*cells, forget())])
    return ran


def test_there_are_notebooks():
    of_cram = {"figure_2", "table_1", "ablations", "exposure", "theorems", "transfer", "change", "working_memory"}
    assert of_cram | {"kernels", "recall", "conversion"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_committed_as_it_was_executed(name):
    notebook = COMMITTED[name]
    run_again = f"its code changed after it was executed: experiments/notebooks.py --name={name}"
    assert notebook.metadata[notebooks.EXECUTED] == notebooks.digest(notebook), run_again
    cells = notebooks.code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [cell.outputs for cell in cells[1:]].count([]) == 0  # the first one imports
    kinds = [out.output_type for cell in cells for out in cell.outputs]
    assert set(kinds) <= {"display_data", "execute_result", "stream"}, "a cell failed"
    assert any("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs)


def test_notebooks_are_small_and_name_no_path_of_one_machine():
    size = {name: (notebooks.FOLDER / f"{name}.ipynb").stat().st_size for name in NAMES}
    assert sum(size.values()) < 2_000_000, size
    for name, notebook in COMMITTED.items():
        for cell in notebooks.code(notebook):
            for out in cell.outputs:
                assert len(out.get("data", {}).get("image/png", "")) < 100_000, name
                text = json.dumps({kind: data for kind, data in out.get("data", {}).items() if kind != "image/png"})
                text += out.get("text", "")
                assert not re.search(r"/(home|root|tmp|Users|work|mnt)/", text), name
                assert out.get("name") != "stderr" and "nan" not in text, name


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_what_the_results_hold_today(name, today):
    reading = {cell.id for cell in notebooks.code(COMMITTED[name], rerun=False)}
    shown = lambda cells: {cell.id: notebooks.shown(cell) for cell in cells if cell.id in reading}
    then, now = shown(notebooks.code(COMMITTED[name])), shown(today[name])
    assert now == then, f"run it again: experiments/notebooks.py --name={name}"


def test_a_short_training_runs_to_the_end(today):
    last, committed = today[IN_FULL][-1], notebooks.code(COMMITTED[IN_FULL])[-1]
    assert notebooks.RERUN in last.metadata.tags
    assert [out.data.keys() for out in last.outputs] == [out.data.keys() for out in committed.outputs]


def test_another_number_is_noticed():
    # Given a cell with a table and a picture, and the same with a changed cell of the table, or of another result
    cell = notebooks.code(COMMITTED["theorems"])
    table, figures = ([one for one in cell if kind in str(one.outputs)][0] for kind in ("text/markdown", "image/png"))
    for one, path in ((table, "text"), (figures, "result")):
        other = copy.deepcopy(one)
        if path == "text":
            other.outputs[0].data["text/markdown"] = other.outputs[0].data["text/markdown"].replace("kept", "broken", 1)
        else:
            other.outputs[0].metadata["result"] = "0" * 16
        assert notebooks.shown(other) != notebooks.shown(one)


def test_a_changed_source_is_noticed():
    changed = copy.deepcopy(COMMITTED["theorems"])
    notebooks.code(changed)[-1].source += "\n"
    assert notebooks.digest(changed) != COMMITTED["theorems"].metadata[notebooks.EXECUTED]
