"""Whatever happens to the bytes of a file, its reader returns what was written, or names the file."""

import json
import shutil
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from lib import results
from ml_collections import ConfigDict

from cram_jax.models.mamba2_weights import load_mamba2
from cram_jax.tasks.text import open_corpus
from cram_jax.training import files
from cram_jax.training.metrics import Records
from cram_jax.training.settings import claim_workdir

GOLDEN = Path(__file__).parent / "golden"
FRESH = [hypothesis.HealthCheck.function_scoped_fixture]  # each example writes its files anew
some = lambda examples: hypothesis.settings(
    max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=FRESH
)
damages = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "drop", "insert", "replace"]), st.floats(0, 1), st.binary(max_size=40)),
    min_size=1,
    max_size=3,
)


def damaged(content: bytes, damage: list[tuple[str, float, bytes]]) -> bytes:
    """The content with some changes, each at a share of its length."""
    for how, share, new in damage:
        at = int(share * max(len(content) - 1, 0))
        if how == "flip" and content:
            content = content[:at] + bytes([content[at] ^ 1 << len(new) % 8]) + content[at + 1 :]
        elif how == "cut":
            content = content[:at]
        elif how == "drop":
            content = content[:at] + content[at + len(new) :]
        elif how == "insert":
            content = content[:at] + new + content[at:]
        elif how == "replace":
            content = content[:at] + new + content[at + len(new) :]
    return content


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A folder with a small Mamba-2."""
    folder = tmp_path_factory.mktemp("weights")
    for name, source in (("config.json", "mamba2.json"), ("model.safetensors", "mamba2.safetensors")):
        shutil.copy(GOLDEN / source, folder / name)
    return folder


@some(150)
@hypothesis.given(name=st.sampled_from(["config.json", "model.safetensors"]), damage=damages, within=st.booleans())
def test_weights_are_loaded_or_refused_by_the_name_of_their_folder(weights, tmp_path, name, damage, within):
    # Given damage anywhere, or at the beginning, where a safetensors file says what it holds
    whole, _ = load_mamba2(weights)
    shutil.copytree(weights, tmp_path, dirs_exist_ok=True)
    content = (weights / name).read_bytes()
    head = 2000 if within else len(content)
    (tmp_path / name).write_bytes(damaged(content[:head], damage) + content[head:])
    try:
        params, _ = load_mamba2(tmp_path)
    except (ValueError, FileNotFoundError) as error:  # "the config" and "tensors" are what the folder holds
        assert any(word in str(error) for word in (str(tmp_path), "the config", "must")), error
    else:  # other values, as they may be, or another size, if the config and the tensors agree
        assert jax.tree.structure(params) == jax.tree.structure(whole)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))


@some(150)
@hypothesis.given(damage=damages)
def test_a_line_of_metrics_is_as_it_was_written_or_none(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.unlink(missing_ok=True)
    for step in range(6):
        files.append(path, {"step": step, "loss": step / 7, "none": float("nan")})
    written = path.read_text().splitlines()
    path.write_bytes(damaged(path.read_bytes(), damage))
    good, bad = files.parse(path)
    # Lines may be lost and come twice, but hold nothing that was not written
    assert {files.as_line(line).strip() for line in good} <= set(written)
    # A run that goes on keeps the good ones, and the damaged file beside them
    records = Records(tmp_path, step=10)
    records.close()
    kept, still_bad = files.parse(path)
    assert [files.as_line(line) for line in kept] == [files.as_line(line) for line in good] and not still_bad
    assert not bad or path.with_name("metrics.jsonl.damaged").exists()


@some(150)
@hypothesis.given(damage=damages, launched=st.booleans())
def test_settings_are_taken_as_they_were_or_refused_by_name(tmp_path, damage, launched):
    config = ConfigDict({"seed": 0, "run": {"steps": 20, "length": 16}, "model": "cram"})
    path = tmp_path / "config.json"
    for name in ("config.json", "launches.jsonl"):
        (tmp_path / name).unlink(missing_ok=True)
    claim_workdir(tmp_path, config)
    before = path.read_text()
    if launched:
        files.append(tmp_path / "launches.jsonl", {"from_step": 0, "settings": files.settings_digest(before)})
    path.write_bytes(damaged(path.read_bytes(), damage))
    try:
        claim_workdir(tmp_path, config)
    except ValueError as error:
        assert str(tmp_path) in str(error) and "give the same settings" in str(error)
        assert not launched
    else:  # the same settings, however they are written
        assert json.loads(path.read_text()) == json.loads(before)


@some(100)
@hypothesis.given(damage=damages)
def test_a_result_follows_its_schema_or_is_refused(tmp_path, damage):
    source = next(iter(sorted(results.RESULTS.glob("*/result.json"), key=lambda path: path.stat().st_size)))
    path = tmp_path / source.parent.name / "result.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(damaged(source.read_bytes(), damage))
    try:
        found = results.load(source.parent.name, tmp_path)
    except ValueError as error:
        assert source.parent.name in str(error)
    else:
        assert found.keys() >= {"name", "question", "command"}


@some(60)
@hypothesis.given(
    content=st.lists(st.binary(max_size=60), min_size=1, max_size=4), length=st.integers(1, 70), emptied=st.booleans()
)
def test_any_bytes_are_text_or_too_short(tmp_path, content, length, emptied):
    folder = tmp_path / "text"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for i, text in enumerate(content):
        (folder / f"{i}.txt").write_bytes(text)
    try:
        corpus = open_corpus((str(folder),), 0.5)
        for path in folder.iterdir() if emptied else ():
            path.write_bytes(b"")
        windows = corpus.windows("train", 0, 0, length, 2)
    except ValueError as error:
        assert str(folder) in str(error) or "bytes" in str(error), error
    else:
        assert not emptied and all(
            any(bytes(window) in text for text in content) for window in np.asarray(windows, np.uint8)
        )
