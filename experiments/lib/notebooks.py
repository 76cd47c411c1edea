"""The notebooks are committed as they were executed. A test holds what they show to what they would show today.

Cells that train or measure have the tag `rerun`: what they show is another each time, and they take long. All others
show what the committed results hold.
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
    """Of all notebooks."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name: str) -> NotebookNode:
    """A notebook as it is committed."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook: NotebookNode, *, rerun: bool = True) -> list[NotebookNode]:
    """The code cells; without those that train or measure if `rerun` is False."""
    tagged = lambda cell: RERUN in cell.metadata.get("tags", [])
    return [cell for cell in notebook.cells if cell.cell_type == "code" and (rerun or not tagged(cell))]


def cell(source: str) -> NotebookNode:
    """A new code cell."""
    return nbformat.v4.new_code_cell(source)


def digest(notebook: NotebookNode) -> str:
    """Of the sources of all code cells."""
    return hashlib.sha256(json.dumps([cell.source for cell in code(notebook)]).encode()).hexdigest()[:16]


def run(cells: list[NotebookNode]) -> None:
    """Runs cells in one fresh kernel, of this Python on the CPU, in the folder of the notebooks. They get the outputs.

    Raises:
      nbclient.exceptions.CellExecutionError: for a cell that fails.
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
    """An environment in which Jupyter finds the kernel of this Python, and leaves nothing in the user's folders."""
    with tempfile.TemporaryDirectory() as folder:
        ours = {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_RUNTIME_DIR": folder, "IPYTHONDIR": folder}
        with mock.patch.dict(os.environ, ours):
            yield {"JAX_PLATFORMS": "cpu", **os.environ}


def execute(name: str) -> None:
    """Runs a whole notebook, and writes it with its outputs.

    Raises:
      ValueError: for a cell that writes to stderr, since warnings name paths of this machine.
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
    """What a cell shows a reader: its texts, and for each picture the digest of the result that it was drawn from."""
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
