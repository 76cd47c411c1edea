"""A restored state equals the saved one; damaged saves and other models are refused."""

import logging
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.training import checkpoints
from cram_jax.training.checkpoints import Checkpoints, to_host


class State(NamedTuple):
    weight: jax.Array
    step: jax.Array
    key: jax.Array
    empty: jax.Array = np.zeros((0,), np.float32)  # a task without patterns has no exposures


def state(value: float, width: int = 64) -> State:
    step = int(np.nan_to_num(value))
    return State(jnp.full((width, 3), float(value)) + jnp.arange(3), jnp.asarray(step), jax.random.key(step))


@pytest.fixture
def saved(tmp_path):
    """Returns saves of steps 1 and 2."""
    saves = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (1, 2):
        saves.save(step, state(step))
    saves.close()
    return tmp_path / "checkpoints"


def same(a: State, b: State) -> None:
    np.testing.assert_equal(to_host(a), to_host(b))


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_the_newest_save_comes_back_key_and_all(saved):
    step, restored = Checkpoints(saved).restore(state(0))
    assert step == 2
    same(restored, state(2))
    assert jax.random.uniform(restored.key) == jax.random.uniform(state(2).key)


def test_nothing_saved_is_nothing_restored(tmp_path):
    assert Checkpoints(tmp_path / "none").restore(state(0)) is None


@pytest.mark.parametrize("damage", ["flip a bit", "truncate", "remove"])
def test_a_damaged_save_is_passed_over_and_named(saved, damage, caplog):
    # Given the array data of the newest save damaged
    for path in [p for p in (saved / "2" / "state").rglob("*") if p.is_file()]:
        data = bytearray(path.read_bytes())
        if damage == "remove":
            path.unlink()
        elif damage == "truncate":
            path.write_bytes(bytes(data[: len(data) // 2]))
        elif path == largest_file(saved / "2" / "state") and data:
            data[len(data) // 2] ^= 1
            path.write_bytes(bytes(data))
    # When it is restored, then the older one comes back, and the log says why
    with caplog.at_level(logging.WARNING):
        step, restored = Checkpoints(saved).restore(state(0))
    assert step == 1
    same(restored, state(1))
    assert "checkpoint 2" in caplog.text and "older" in caplog.text

    # And a run that goes on from there can save again
    again = Checkpoints(saved)
    again.save(2, state(20))
    again.close()
    step, restored = Checkpoints(saved).restore(state(0))
    assert step == 2
    same(restored, state(20))


def test_a_save_with_the_digest_of_earlier_versions_comes_back(tmp_path, monkeypatch):
    saves = Checkpoints(tmp_path / "checkpoints")
    with monkeypatch.context() as earlier:
        earlier.setattr(checkpoints.digests, "digest", checkpoints.digests.sha256)
        saves.save(1, state(1))
        assert saves.close()
    same(Checkpoints(tmp_path / "checkpoints").restore(state(0))[1], state(1))
    # When one number of it is changed, it does not
    monkeypatch.setattr(checkpoints.digests, "sha256", lambda arrays: "0" * 64)
    with pytest.raises(ValueError, match="intact"):
        Checkpoints(tmp_path / "checkpoints").restore(state(0))


@pytest.mark.parametrize(("kind", "said"), [(1, "checkpoint 2 is damaged (another process"), (2, "cannot be read")])
def test_what_one_of_several_processes_cannot_read_none_takes(saved, monkeypatch, caplog, kind, said):
    of_others = [kind, *[0] * 10] if kind == 1 else [kind] * 10

    def gathered(number):
        return np.stack([number, number * 0 + (of_others.pop(0) if number.ndim == 0 else 0)])

    monkeypatch.setattr(checkpoints.processes, "gathered", gathered)
    monkeypatch.setattr(checkpoints, "RETRIES", ())
    if kind == 1:
        step, restored = Checkpoints(saved).restore(state(0))
        assert step == 1 and said in caplog.text
        return same(restored, state(1))
    with pytest.raises(OSError, match=said):
        Checkpoints(saved).restore(state(0))


def read_error(monkeypatch, where: str, times: int):
    """Files whose path has `where` in it cannot be read, so many times."""
    left, usual = [times], Path.open

    def opened(path, *args, **how):
        if where in str(path) and left[0]:
            left[0] -= 1
            raise OSError(5, "Input/output error", str(path))
        return usual(path, *args, **how)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(checkpoints, "RETRIES", (0.0, 0.0))


def test_what_cannot_be_read_stops_and_nothing_is_deleted(saved, monkeypatch):
    before = sorted(saved.rglob("*"))
    read_error(monkeypatch, "/2/state/", times=100)
    with pytest.raises(OSError, match=r"checkpoint 2 .* cannot be read .*Input/output error.*nothing was changed"):
        Checkpoints(saved).restore(state(0))
    assert sorted(saved.rglob("*")) == before


def test_a_read_error_that_goes_away_costs_nothing(saved, monkeypatch):
    read_error(monkeypatch, "/2/state/", times=2)
    assert Checkpoints(saved).restore(state(0))[0] == 2


def test_where_no_save_is_intact_it_stops(saved):
    for path in saved.rglob("*"):
        if path.is_file() and "/facts/" in str(path):
            path.write_text("null")
    before = sorted(saved.rglob("*"))
    with pytest.raises(ValueError, match=r"none of the checkpoints \[1, 2\] in .* is intact; put back a copy"):
        Checkpoints(saved).restore(state(0))
    assert sorted(saved.rglob("*")) == before


@pytest.mark.parametrize("facts", ["null", "{}", "[]", "3", "{", "flips"])
def test_a_save_with_damaged_facts_is_passed_over(saved, facts):
    path = saved / "2" / "facts" / "metadata"
    whole = path.read_bytes()
    if facts != "flips":
        path.write_text(facts)
        return same(Checkpoints(saved).restore(state(0))[1], state(1))
    rng = np.random.default_rng(0)
    for at in rng.choice(len(whole), 40, replace=False):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(flipped))
        same(Checkpoints(saved).restore(state(0))[1], state(1))


def test_a_damaged_save_is_kept_beside_the_one_that_takes_its_place(saved):
    damaged = largest_file(saved / "2" / "state")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    saves = Checkpoints(saved)
    assert saves.restore(state(0))[0] == 1
    saves.save(2, state(20))
    assert saves.close()
    (aside,) = (saved.parent / "damaged").iterdir()
    assert aside.name == "checkpoint_2.0" and (aside / damaged.relative_to(saved / "2")).read_bytes()[-1:] == b"?"
    same(Checkpoints(saved).restore(state(0))[1], state(20))


def test_a_save_that_fails_is_named_and_costs_no_other(saved, monkeypatch, caplog):
    saves = Checkpoints(saved)

    def full(*args, **how):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(saves.manager, "save", full)
        saves.save(3, state(3))
        assert not saves.wait() and "checkpoint 3 could not be saved" in caplog.text
    saves.save(4, state(4))
    assert saves.close()
    same(Checkpoints(saved).restore(state(0))[1], state(4))


def test_a_state_with_nan_is_never_saved(saved):
    saves = Checkpoints(saved)
    with pytest.raises(FloatingPointError, match=r"step 3 is not saved: \.weight has NaN"):
        saves.save(3, state(np.nan))
    saves.close()
    assert Checkpoints(saved).restore(state(0))[0] == 2


def test_all_later_saves_make_room(saved):
    # Given saves that were passed over, one of the step to come and one beyond it
    saves = Checkpoints(saved, keep=3)
    saves.save(4, state(4))
    saves.save(2, state(20))
    saves.close()
    step, restored = Checkpoints(saved).restore(state(0))
    assert step == 2
    same(restored, state(20))


def test_a_folder_with_a_number_is_not_a_save(saved, caplog):
    (saved / "7").mkdir()
    step, _ = Checkpoints(saved).restore(state(0))
    assert step == 2


def test_another_model_is_refused_by_name(saved):
    with pytest.raises(
        ValueError, match=r"checkpoint 2 .* of another model: \.weight is float32\[64, 3\] there .*\[32, 3\] here"
    ):
        Checkpoints(saved).restore(state(0, width=32))
