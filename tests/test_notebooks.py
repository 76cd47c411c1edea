"""Notebooks are committed with what they show, and that is what today's code and results would show."""

import pytest
from lib import notebooks

NAMES = notebooks.names()


def test_there_is_a_notebook_for_each_figure_or_table():
    of_cram = {"figure_2", "table_1", "ablations", "exposure", "theorems", "transfer", "change", "working_memory"}
    assert of_cram | {"kernels", "recall", "conversion"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_belong_to_the_present_cells(name):
    notebook = notebooks.read(name)
    assert notebook.metadata[notebooks.EXECUTED] == notebooks.digest(notebook), "run `make notebooks`"
    pictures = [text for cell in notebooks.code(notebook) for text in notebooks.shown(cell) if "picture" in text]
    assert pictures and (notebooks.FOLDER / f"{name}.ipynb").stat().st_size < 300_000


@pytest.mark.parametrize("name", NAMES)
def test_cells_that_read_results_show_today_what_is_committed(name):
    committed = [notebooks.shown(cell) for cell in notebooks.code(notebooks.read(name), rerun=False)]
    cells = notebooks.code(notebooks.read(name), rerun=False)
    notebooks.run(cells)
    assert [notebooks.shown(cell) for cell in cells] == committed
    assert any("|" in text for texts in committed for text in texts)  # what was measured stands in a table
