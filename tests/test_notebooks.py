"""Notebooks run from top to bottom, and are committed without what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    of_cram = {"figure_2", "table_1", "ablations", "exposure", "theorems", "transfer", "change", "working_memory"}
    assert of_cram | {"kernels", "recall", "conversion"} == {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path):
    # Figures and numbers are those of the results, which change; what is committed here shows only what was written
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_draws(path, tmp_path):
    # The kernel of this environment, not one that the user has installed; and nothing left in the user's folders
    jupyter = {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_RUNTIME_DIR": str(tmp_path), "IPYTHONDIR": str(tmp_path)}
    done = tmp_path / path.name
    command = [sys.executable, "-m", "jupyter", "execute", str(path), f"--output={done}", "--timeout=900"]
    ran = subprocess.run(command, env=os.environ | jupyter, capture_output=True, text=True, timeout=1000)
    assert ran.returncode == 0, ran.stderr[-3000:]
    outputs = [out for cell in json.loads(done.read_text())["cells"] for out in cell.get("outputs", [])]
    shown = [out.get("data", {}) for out in outputs]
    assert sum("image/png" in data for data in shown) >= 2  # of the result, and of the rerun or a second result
    measured = next("".join(data["text/markdown"]) for data in shown if "text/markdown" in data)
    assert measured.startswith("|") and "nan" not in measured
