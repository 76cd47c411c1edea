"""A comparison trains each of its runs once, in parts or whole, chooses rates, and says what came of every seed."""

import jax
import numpy as np
import pytest
import srcd
import text
from commands import refused, run, written
from compare import MAINS
from configs import comparisons
from lib import results
from mqar_cases import SMALLEST

from cram_jax.analysis.accounting import state_bytes

SRCD = {
    "run.steps": 20, "run.log_every": 10, "run.checkpoint_every": 20, "run.length": 32, "run.batch": 4,
    "run.held_out_tokens": 256, "run.final_tokens": 512, "price.start": 5, "price.plateau": 1.0, "depth": 1,
}  # fmt: skip
TEXT = {
    "mamba2.D": 16, "mamba2.heads": 2, "mamba2.head_dim": 8, "mamba2.state": 4, "run.steps": 40, "run.log_every": 20,
    "run.checkpoint_every": 40, "run.length": 32, "run.batch": 8, "run.held_out_tokens": 1024, "run.final_tokens": 4096,
    "optimizer.warmup": 5,
}  # fmt: skip
MQAR = {name: value for name, value in SMALLEST.items() if "rate" not in name} | {"data.pairs": 2}
# What is left of three comparisons. Settings that are no part of what is compiled differ.
SMALL = {
    "recurrence": {"question": "Does it recur?", "variant": "tiny", "seeds": range(2), "entries": {
        "a transformer": SRCD | {"model": "transformer"},
        "the same, seen less": SRCD | {"model": "transformer", "run.held_out_tokens": 128},
    }},
    "mqar": {"rates": (1e-2, 1e-6), "entries": {"mamba2": MQAR | {"model": "mamba2"}}},
    "language": {"rates": (1e-2,), "entries": {"mamba2": {"model": "mamba2", "depth": 3} | TEXT}},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small_comparisons():
    """The three comparisons, small; all others are as they are."""
    with pytest.MonkeyPatch.context() as patch:
        for name, less in SMALL.items():
            patch.setitem(comparisons.COMPARISONS, name, comparisons.COMPARISONS[name]._replace(**less))
        for main in (srcd, text):
            patch.setattr(main, "draw", lambda *_: None)  # the figures of single runs, which their own tests look at
        yield


@pytest.fixture(scope="module")
def recurrence(tmp_path_factory):
    """(where it ran, its result, what it printed)."""
    at = tmp_path_factory.mktemp("runs") / "recurrence"
    part = run("compare", "--name=recurrence", f"--runs={at}", "--part=0/2")
    assert len(written(at)) == 2 and not (at / "result.json").exists()  # every other run, and no result yet
    assert "The command without --part gathers all parts" in part
    return at, *whole("recurrence", at)


def whole(name, at, *more):
    said = run("compare", f"--name={name}", f"--runs={at}", *more)
    return results.load(at.name, at.parent), said


def test_every_entry_has_all_its_seeds(recurrence):
    at, result, said = recurrence
    assert list(result["entries"]) == ["a transformer", "the same, seen less"]
    for label, found in result["entries"].items():
        assert [one["seed"] for one in found["runs"]] == [0, 1] and found["diverged"] == 0
        each = [one["retrieval_accuracy"] for one in found["runs"]]
        np.testing.assert_allclose(found["mean"]["retrieval_accuracy"], np.mean(each))
        np.testing.assert_allclose(found["sd"]["retrieval_accuracy"], np.std(each, ddof=1))
        assert [curve["step"] for curve in found["curves"]] == [[0, 10, 20]] * 2
        assert found["settings"] == SMALL["recurrence"]["entries"][label] and "machine" in found["runs"][0]
        assert not [name for name in found["mean"] if "_layer_" in name] and "chosen" not in found
    assert result["question"] == "Does it recur?" and result["made_by"]["commits"]
    assert result["data"]["variant"] == "tiny" and "compare.py --name=recurrence" in result["command"]
    assert (at / "figure.png").stat().st_size > 5000
    assert "a transformer" in said and "queries answered right" in said and "2 " in said


def test_one_row_is_run_by_itself_and_is_no_result(recurrence, tmp_path):
    at, result, _ = recurrence
    before = written(at), (at / "result.json").stat().st_mtime_ns
    said = run("compare", "--name=recurrence", "--entry=the same, seen less", f"--runs={at}", "--seeds=1")
    accuracy = result["entries"]["the same, seen less"]["runs"][0]["retrieval_accuracy"]
    assert f"{100 * accuracy:.2f}%" in said and "a transformer" not in said and "no result was written" in said
    # Finished runs, and the result of all, were left alone
    assert (written(at), (at / "result.json").stat().st_mtime_ns) == before and len(before[0]) == 4
    said = refused("compare", "--name=ablations", "--entry=no prize", f"--runs={tmp_path}")
    assert "--entry names ['no prize']; there are 'cram', 'no distillation'" in said and "'100 patterns'" in said


def test_rates_are_chosen_on_validation_data_and_finished_runs_are_kept(tmp_path):
    # Given one model of three seeds, and two rates of which one is hopeless
    result, said = whole("mqar", tmp_path / "mqar")
    found = result["entries"]["mamba2"]
    # Then the one that learns is taken, and its seeds are what is reported
    chosen = found["chosen"]
    assert chosen["learning_rate"] == 1e-2 and set(chosen["validation_accuracy"]) == {"0.01", "1e-06"}
    assert [one["seed"] for one in found["runs"]] == [0, 1, 2]
    # A small state holds two pairs of eight words, where guessing among the values of a sequence gives half
    for one in found["runs"]:
        assert one["accuracy"] > 0.9 and abs(one["validation_accuracy"] - one["accuracy"]) < 0.05
        assert one["accuracy_start"] < 0.7 and one["state_bytes"] == 2 * 2 * 8 * 4 * 4
    np.testing.assert_allclose(found["mean"]["accuracy"], np.mean([one["accuracy"] for one in found["runs"]]))
    assert found["settings"]["model"] == "mamba2" and found["settings"]["optimizer.learning_rate"] == 1e-2
    assert (tmp_path / "mqar" / "figure.png").stat().st_size > 5000 and "0.01" in said
    # And a second launch trains nothing
    before = written(tmp_path)
    again, _ = whole("mqar", tmp_path / "mqar")
    assert len(before) == 6 and again == result and written(tmp_path) == before


def test_language_models_read_the_same_text_and_the_result_says_nothing_of_the_machines_paths(tmp_path):
    folder, random = tmp_path / "text", np.random.default_rng(0)
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.txt").write_text(" ".join(random.choice(["alpha", "beta", "gamma"], 400)))
    result, said = whole("language", tmp_path / "out", f"--files={folder}")
    found = result["entries"]["mamba2"]
    assert str(tmp_path) not in results.text(result) and result["config"]["corpus"]
    # What would choose among rates has fallen from the 8 bits of a guess, and so has what is reported
    tried = found["chosen"]["training_bits_per_byte"]
    assert found["chosen"]["learning_rate"] == 1e-2 and found["mean"]["bits_per_byte"] < 6 and tried["0.01"][0] < 6
    (one,), (curve,) = found["runs"], found["curves"]
    assert curve["step"] == [0, 20, 40] and one["parameters"] > 1000
    assert one["bits_per_byte_3_gram"] < one["bits_per_byte_1_gram"] and "attention_tokens" not in one
    assert (tmp_path / "out" / "figure.png").stat().st_size > 5000 and "3-gram model" in said
    assert "--files is for comparisons on text" in refused("compare", f"--files={folder}")


def built(name: str) -> dict:
    """The learners of a comparison as it is listed, by label."""
    comparison = LISTED[name]
    return {
        label: MAINS[comparison.main].build(comparisons.settings(comparison, label, seed=1))[0]
        for label in comparison.entries
    }


LISTED = dict(comparisons.COMPARISONS)


@pytest.mark.parametrize("name", [name for name, comparison in LISTED.items() if comparison.main != "text"])
def test_all_that_is_listed_can_be_built(name):
    for learner in built(name).values():
        if LISTED[name].main == "srcd":
            assert learner.task.data.table_seed == 1, "another seed has other patterns"


def test_an_unknown_setting_is_named():
    unknown = LISTED["ablations"]._replace(entries={"x": {"cram.semantic.rang": 1}})
    with pytest.raises(KeyError, match="unknown setting 'cram.semantic.rang'"):
        comparisons.settings(unknown, "x", 0)


def test_what_is_called_equal_is_equal():
    stacks = {label: learner.model for label, learner in built("mqar").items()}
    state = {label: state_bytes(stack.init_cache(1)) for label, stack in stacks.items()}
    assert state["palimpsa"] == state["metamamba2"] == state["mamba2, twice the state"] == 2 * state["mamba2"]
    assert state["palimpsa, half the keys"] == state["mamba2"] == state["gated_linear"] == state["gated_delta"]
    assert {(stack.D, stack.depth) for stack in stacks.values()} == {(64, 2)}


def test_language_models_have_as_many_parameters(tmp_path):
    comparison, sizes = LISTED["language"], {}
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("word " * 100)
    for label, changes in comparison.entries.items():
        learner, _ = MAINS["text"].build(comparisons.configured(comparison, 0, changes | {"files": (str(tmp_path),)}))
        sizes[label] = sum(x.size for x in jax.tree.leaves(jax.eval_shape(learner.model.init, jax.random.key(0))))
    assert max(sizes.values()) < 1.06 * min(sizes.values()), sizes
