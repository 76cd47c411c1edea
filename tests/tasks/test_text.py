"""Text from real files: windows, the split, errors for files that cannot be used, and the task."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.tasks import text
from cram_jax.tasks.text_task import KINDS, TextBatch, TextTask


def write(folder, sizes: dict[str, int], seed: int = 0):
    """Files of random bytes."""
    random = np.random.default_rng(seed)
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(random.integers(0, 256, size, np.uint8).tobytes())


def read(files: text.Files) -> list[bytes]:
    return [Path(path).read_bytes() for path in files.paths]


@pytest.fixture
def folder(tmp_path):
    """Twenty files; a window of 9 bytes or more is in one place only."""
    write(tmp_path, {f"part{i % 3}/{i}.txt": 50 + 20 * i for i in range(20)})
    return tmp_path


@pytest.mark.parametrize("split", text.SPLITS)
def test_a_window_is_a_stretch_of_one_file_of_its_split(folder, split):
    corpus = text.open_corpus((str(folder),))
    other = "train" if split == "held_out" else "held_out"
    for window in corpus.windows(split, seed=3, index=5, length=40, size=50):
        assert sum(window.tobytes() in data for data in read(getattr(corpus, split))) == 1
        assert sum(window.tobytes() in data for data in read(getattr(corpus, other))) == 0


def test_windows_are_a_function_of_their_arguments(folder):
    corpus = text.open_corpus((str(folder),))
    again = text.open_corpus.__wrapped__((str(folder),))  # opened a second time, not the cached one
    base = ("train", 0, 0, 16, 8)
    np.testing.assert_array_equal(corpus.windows(*base), again.windows(*base))
    for other in (("train", 1, 0, 16, 8), ("train", 0, 1, 16, 8), ("held_out", 0, 0, 16, 8)):
        assert np.any(corpus.windows(*other) != corpus.windows(*base))


def test_every_window_is_equally_likely(tmp_path):
    # Given files that hold 1 to 4 windows, and one that holds none
    write(tmp_path, {"a": 11, "b": 13, "c": 12, "d": 14, "e": 10})
    corpus = text.open_corpus((str(tmp_path),), 0.01)
    windows = [data[i : i + 11] for data in read(corpus.train) for i in range(len(data) - 10)]
    assert len(windows) >= 6  # whichever file is held out

    # When 4000 are drawn, then each comes with its share, within five standard deviations
    drawn = [window.tobytes() for window in corpus.windows("train", 0, 0, 10, 4000)]
    p = 1 / len(windows)
    for window in windows:
        assert abs(drawn.count(window) / 4000 - p) <= 5 * np.sqrt(p * (1 - p) / 4000)


def test_neither_the_place_of_the_folder_nor_the_order_of_patterns_moves_a_file_to_the_other_split(tmp_path):
    names = {f"{i % 4}/{i}.txt": 30 for i in range(40)}
    write(tmp_path / "here", names)
    write(tmp_path / "over" / "there", names)
    held_out = lambda *patterns: [
        "/".join(path.split("/")[-2:]) for path in text.open_corpus(patterns, 0.25).held_out.paths
    ]
    here = held_out(str(tmp_path / "here"))
    assert len(here) == 10  # a quarter of 40
    assert here == held_out(str(tmp_path / "over" / "there"))
    assert here == held_out(str(tmp_path / "here" / "**" / "*.txt"))
    # A file named twice is one file.
    assert here == held_out(str(tmp_path / "here"), str(tmp_path / "here" / "0" / "*.txt"))


def test_held_out_windows_do_not_see_the_training_text(folder):
    before = text.open_corpus.__wrapped__((str(folder),))
    windows = before.windows("held_out", 0, 0, 30, 20)
    for path in before.train.paths:  # longer, and other bytes
        Path(path).write_bytes(b"x" * 3000)
    after = text.open_corpus.__wrapped__((str(folder),))
    assert after.held_out.paths == before.held_out.paths and after.fingerprint != before.fingerprint
    np.testing.assert_array_equal(after.windows("held_out", 0, 0, 30, 20), windows)


def test_other_bytes_of_the_same_number_are_another_corpus(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode() * 500)
    opened = lambda: text.open_corpus.__wrapped__((str(tmp_path),)).fingerprint
    before, path = opened(), tmp_path / "b"
    assert opened() == before
    path.write_bytes(b"b" * 499 + b"c")
    assert opened() != before


def test_a_file_larger_than_memory_is_sampled(tmp_path):
    # Given two sparse files of 64 GiB that read as zeros but for their last byte
    for name in ("a", "b"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(64 << 30)
    corpus = text.open_corpus((str(tmp_path),))
    assert corpus.bytes == 128 << 30
    np.testing.assert_array_equal(corpus.windows("train", 0, 0, 256, 16), 0)


def test_hidden_files_caches_and_installed_packages_are_left_out(tmp_path):
    inside = {"a.py": 20, "sub/b.py": 20}
    outside = {".git/c.py": 20, "sub/__pycache__/d.py": 20, "site-packages/e.py": 20, ".hidden.py": 20}
    write(tmp_path, inside | outside)
    for pattern in (tmp_path, tmp_path / "**" / "*.py"):
        corpus = text.open_corpus((str(pattern),))
        paths = {*corpus.train.paths, *corpus.held_out.paths}
        assert paths == {str(tmp_path / name) for name in inside}
    # What the pattern itself names is not.
    assert len(text._matches(str(tmp_path / "site-packages"))) == 1


def test_python_sources_hold_twenty_megabytes_with_the_library_stripped_or_not():
    assert text.open_corpus(text.python_sources()).bytes > 20e6
    assert len(text.python_sources(at_least=1)) == 1
    assert len(text.python_sources(at_least=1 << 60)) == 2


def empty_folder(at):
    (at / "empty").mkdir()
    return at / "empty", f"the folder {at / 'empty'} holds no files"


def no_match(at):
    return at / "*.nothing", f"no file matches {at / '*.nothing'}; check the path"


def all_empty(at):
    write(at, {"a": 0, "b": 0})
    return at, f"all 2 files of {at} are empty"


def one_file(at):
    write(at, {"a": 100})
    return at, f"{at / 'a'} is the only file with text in {at}, so one split would be empty"


def broken_link(at):
    write(at, {"a": 100, "b": 100})
    (at / "c").symlink_to(at / "gone")
    return at, f"{at / 'c'} cannot be read (No such file or directory); make it readable"


def pipe(at):
    write(at, {"a": 100, "b": 100})
    os.mkfifo(at / "c")
    return at, f"{at / 'c'} is not a regular file"


@pytest.mark.parametrize("case", [empty_folder, no_match, all_empty, one_file, broken_link, pipe])
def test_files_that_cannot_serve_are_named_with_the_fix(case, tmp_path):
    pattern, message = case(tmp_path)
    with pytest.raises(ValueError) as error:
        text.open_corpus((str(pattern),))
    assert str(error.value).startswith(message)


def test_a_file_without_permission_is_named(folder, monkeypatch):
    def refuse(path, mode):  # root may read everything, so the refusal is played
        if path == str(folder / "part0" / "0.txt"):
            raise PermissionError(13, "Permission denied", path)
        return open(path, mode)

    monkeypatch.setattr(text, "open", refuse, raising=False)
    with pytest.raises(ValueError, match=r"part0/0\.txt cannot be read \(Permission denied\); make it readable, or"):
        text.open_corpus.__wrapped__((str(folder),))


def test_files_too_short_for_a_window_are_reported_with_the_longest(tmp_path):
    write(tmp_path, {"a": 9, "b": 9})
    corpus = text.open_corpus((str(tmp_path),), 0.5)
    assert corpus.windows("train", 0, 0, 8, 2).shape == (2, 9)
    for split in text.SPLITS:
        message = rf"no file of the {split} split holds a window of 9 \+ 1 bytes; the longest, .*[ab], has 9"
        with pytest.raises(ValueError, match=message):
            corpus.windows(split, 0, 0, 9, 2)


def test_a_file_that_shrinks_under_a_run_is_reported(tmp_path):
    write(tmp_path, {"a": 100, "b": 100})
    corpus = text.open_corpus((str(tmp_path),))
    write(tmp_path, {"a": 50, "b": 50})
    with pytest.raises(ValueError, match="has 50 bytes and had 100 when the run began"):
        corpus.windows("train", 0, 0, 10, 2)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_that_leaves_a_split_nothing_is_refused(folder, share):
    with pytest.raises(ValueError, match="held_out_share must lie between 0 and 1"):
        text.open_corpus((str(folder),), share)


def batch_of(rows: list[bytes]) -> TextBatch:
    window = jnp.array([list(row) for row in rows])
    return TextBatch(window[:, :-1], window[:, 1:])


def test_each_byte_is_followed_by_the_one_to_predict(folder):
    task = TextTask((str(folder),))
    batch = task.batch("train", 0, 0, 12, 4)
    window = task.corpus.windows("train", 0, 0, 12, 4)
    np.testing.assert_array_equal(batch.byte_BxT, window[:, :12])
    np.testing.assert_array_equal(batch.next_BxT, window[:, 1:])


def test_an_embedding_hears_four_bytes_and_none_that_follow():
    # Given two windows that differ at place 5 alone
    task, T, D = TextTask(()), 12, 8
    params = task.init(jax.random.key(0), D)
    one, other = bytearray(b"abcdefghijklm"), bytearray(b"abcdefghijklm")
    other[5] = ord("Z")
    x_BxTxD, gap = task.embed(params, batch_of([bytes(one), bytes(other)]))

    # Then exactly places 5 to 8 differ, and by what the convolution says
    assert gap is None and x_BxTxD.shape == (2, T, D)
    difference_TxD = x_BxTxD[1] - x_BxTxD[0]
    changed = [t for t in range(T) if np.any(difference_TxD[t] != 0)]
    assert changed == [5, 6, 7, 8]
    byte_D = params.byte_256xD[ord("Z")] - params.byte_256xD[ord("f")]
    np.testing.assert_allclose(difference_TxD[5:9], byte_D * params.local_4xD, rtol=1e-5, atol=1e-5)  # float32 sums


def test_bits_per_byte_are_the_cross_entropy_of_the_next_byte():
    task, B, T, D = TextTask(()), 2, 30, 6
    params = task.init(jax.random.key(0), D)
    random = np.random.default_rng(1)
    batch = batch_of([random.integers(0, 256, T + 1, np.uint8).tobytes() for _ in range(B)])
    y_BxTxD = jax.random.normal(jax.random.key(1), (B, T, D))
    loss, metrics = task.score(params, y_BxTxD, batch)

    y = np.asarray(y_BxTxD, np.float64)
    logits = y / np.sqrt(np.mean(y**2, -1, keepdims=True)) @ np.asarray(params.next_Dx256, np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    bits = -np.log2(np.take_along_axis(p, np.asarray(batch.next_BxT)[..., None], -1))
    total, count = metrics["bits_per_byte"]
    np.testing.assert_allclose(total / count, bits.mean(), rtol=1e-5)  # float32 against float64
    np.testing.assert_allclose(loss / np.log(2), bits.mean(), rtol=1e-5)
    # The kinds of bytes share them out.
    by_kind = [metrics[f"bits_per_byte_{kind}"] for kind in KINDS]
    np.testing.assert_allclose(sum(bits for bits, _ in by_kind), total, rtol=1e-5)
    assert sum(count for _, count in by_kind) == B * T

    silent = params._replace(next_Dx256=jnp.zeros((D, 256)))  # knows nothing: a byte is 8 bits
    np.testing.assert_allclose(task.score(silent, y_BxTxD, batch)[0] / np.log(2), 8, rtol=1e-6)


def test_every_byte_is_of_one_kind():
    batch = batch_of([bytes(range(256)) + b"\n", bytes(range(255, -1, -1)) + b" "])
    kinds = TextTask(()).groups(batch)
    assert list(kinds) == list(KINDS)
    np.testing.assert_array_equal(sum(marks.astype(jnp.int32) for marks in kinds.values()), 1)


def test_the_kinds_of_a_line_of_code():
    line = "if _x1 == 'é':\n\t return 20 \n\n".encode()
    letters = dict(
        zip(KINDS, "SLD_>N'.?", strict=True)  # start, letter, digit, space, indentation, newline, quote, mark, other
    )
    marks = TextTask(()).groups(batch_of([line + b"x"]))
    found = "".join(next(letters[k] for k in KINDS if marks[k][0, t]) for t in range(len(line)))
    assert found == "SL_SLD_.._'??'.N>>SLLLLL_DD_NN"


def test_text_has_no_list_of_patterns():
    assert np.all(TextTask(()).asked(batch_of([b"abc"])) == -1)
