"""Executes the notebooks, which are committed with their outputs, and reads what they show for a test.

The test compares the committed outputs with new ones. Cells that train or measure have the tag `rerun`: they take long,
and their outputs differ each time. All other cells show committed results.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[2] / "notebooks"
RERUN = "rerun"
EXECUTED = "executed"  # metadata: digest of the sources whose outputs a notebook holds


def names() -> list[str]:
    """Returns the names of all notebooks."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name: str) -> NotebookNode:
    """Reads a notebook with its committed outputs."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook: NotebookNode, *, rerun: bool = True) -> list[NotebookNode]:
    """Returns the code cells. If `rerun` is False, it leaves out those that train or measure."""
    tagged = lambda cell: RERUN in cell.metadata.get("tags", [])
    return [cell for cell in notebook.cells if cell.cell_type == "code" and (rerun or not tagged(cell))]


def cell(source: str) -> NotebookNode:
    """Returns a new code cell."""
    return nbformat.v4.new_code_cell(source)


def digest(notebook: NotebookNode) -> str:
    """Returns a digest of the sources of all code cells."""
    return hashlib.sha256(json.dumps([cell.source for cell in code(notebook)]).encode()).hexdigest()[:16]


def run(cells: list[NotebookNode]) -> None:
    """Runs cells in one new kernel of this Python, on the CPU, in the folder of the notebooks. Outputs go to the cells.

    Raises:
      nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = nbformat.v4.new_notebook(cells=cells)
    with _jupyter() as environment:
        client = NotebookClient(
            notebook,
            timeout=1200,
            startup_timeout=600,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(FOLDER)}},
        )
        client.execute(env=environment)


@contextlib.contextmanager
def _jupyter() -> Iterator[dict[str, str]]:
    """Yields environment variables with which Jupyter uses this Python and writes nothing to the user's folders."""
    with tempfile.TemporaryDirectory() as folder:
        ours = {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_RUNTIME_DIR": folder, "IPYTHONDIR": folder}
        with mock.patch.dict(os.environ, ours):
            yield {"JAX_PLATFORMS": "cpu", **os.environ}


def execute(name: str) -> None:
    """Runs a whole notebook, and saves it with its outputs.

    Raises:
      ValueError: if a cell writes to stderr, because warnings contain paths of this machine.
    """
    notebook = read(name)
    cells = code(notebook)
    run(cells)
    for cell in cells:
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                raise ValueError(f"{name}, cell {cell.id} writes to stderr: {output.text}")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        EXECUTED: digest(notebook),
    }
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")


def shown(cell: NotebookNode) -> list[str]:
    """Returns what a cell shows: its texts, and for each picture the digest of the result that it was drawn from."""
    out = []
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            out.append(f"picture of {output.metadata.get('result')}")
        elif "text/markdown" in data:
            out.append(data["text/markdown"])
        else:
            out.append(output.get("text", data.get("text/plain", "")))
    return out
