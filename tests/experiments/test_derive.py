"""Derived results: fits of Eq 14 and theorems on data with known answers, and statistics of a trained Palimpsa."""

from types import SimpleNamespace

import derive
import mqar
import numpy as np
import pytest
from configs import mqar as mqar_config
from lib import exposure, gather, plasticity, results, theorems, trained

from cram_jax.training import probes
from cram_jax.training import step as training
from cram_jax.training.checkpoints import Checkpoints


def lines(chance):
    """Logged lines of 20 steps with 100 queries a step in each bin of exposures; chance: share that attends, by bin."""
    bins = probes.OCTAVE * probes.OCTAVES
    count = np.where(np.arange(bins) < 18, 100.0, 0.0)
    line = {"train/exposed": count.tolist(), "train/exposed_episodic": (count * chance).tolist()}
    return [{"step": 0}, {"step": 10, **line}, {"step": 20, **line}]


def test_counts_are_those_of_the_whole_run_at_the_bins_middles():
    chance = np.linspace(1, 0, probes.OCTAVE * probes.OCTAVES)
    found = gather.exposures(lines(chance))
    assert found["count"] == [2000.0] * 18
    np.testing.assert_allclose(found["episodic"], 2000 * chance[:18], atol=1e-3)
    # Bins of k + 1 from 1, 1.4 (none), 2, 2.8 (that is 3), 4 (and 5), 5.7 (6 and 7), 8 (to 11) ... on
    assert found["k"][0] == 0 and found["k"][2:4] == [1, 2]
    np.testing.assert_allclose(found["k"][4:7], np.sqrt([4 * 5, 6 * 7, 8 * 11]) - 1, atol=1e-3)
    assert gather.exposures([{"step": 0}, {"step": 10}]) == {}


def test_a_power_law_is_found_over_seeds(monkeypatch):
    k = np.geomspace(1, 2000, 20)
    seed = lambda gamma: {"k": k.tolist(), "count": [500.0] * 20, "episodic": (500 * (k + 1) ** -gamma).tolist()}
    source = {"data": {"variant": "tiny"}, "entries": {"cram": {"exposures": [seed(0.4), seed(0.5)]}}}
    monkeypatch.setattr(exposure.results, "load", {"recurrence": source}.get)
    data = exposure.compute([("recurrence", "cram")])
    found = data["cram (tiny)"]
    np.testing.assert_allclose(found["exponent_by_seed"], [0.4, 0.5], atol=1e-6)
    assert 0.4 < found["exponent"] < 0.5 and found["seeds"] == 2
    assert found["goodness"]["power_law"] > max(found["goodness"]["exponential"], found["goodness"]["logistic"])
    ((label, row),) = [row for row in exposure.table(data) if "..." not in row[0]]
    assert label == "cram (tiny)" and "gamma 0.4" in row


@pytest.mark.parametrize(("weight", "above_half"), [(0.2, 1), (0.03, 0), (0.005, -1)])
def test_the_exponent_of_the_posterior_is_derived_beside_the_measured_one(weight, above_half, monkeypatch):
    # Given streams whose queries attend as often as the posterior's standard deviation says, and bins without queries
    k, count = np.arange(65), np.where(np.arange(65) < 40, 500, 0)
    chance = (1 + k * weight / 0.03) ** -0.5
    entry = {
        "settings": {},
        "deployed": {"posterior_cram.learning.first": weight, "posterior_cram.semantic.ridge": 0.03},
        "exposures": [{"k": k.tolist(), "count": count.tolist(), "episodic": (count * chance).tolist()}],
    }
    config = {"posterior_cram": {"semantic": {"ridge": 1.0}, "routing": {"known_below": 0.35}}}
    source = {"config": config, "data": {}, "entries": {"slow": entry}}
    monkeypatch.setattr(exposure.results, "load", {"streams_speeds": source}.get)
    found = exposure.in_streams()["slow"]
    assert found["exponent"] == pytest.approx(found["exponent_derived"], abs=1e-3)
    assert found["data"]["k"] == list(range(40))
    assert 0.03 / (0.03 + found["known_after"] * weight) == pytest.approx(0.35)
    # (1 + k w / lambda)^-1/2 is (1 + k)^-1/2 where a write weighs lambda; heavier ones fall faster at first
    assert np.sign(round(found["exponent"] - 0.5, 2)) == above_half


def test_exposures_at_which_all_attend_by_design_are_left_out_of_the_second_fit():
    k = np.geomspace(1, 2000, 20)
    free = np.where(k < 100, 1.0, (k / 100 + 1) ** -1.5)
    found = exposure.fitted([{"k": k.tolist(), "count": [500.0] * 20, "episodic": (500 * free).tolist()}])
    assert found["once_free"]["first_k"] == k[k >= 100][0] and found["once_free"]["bins"] == np.sum(k >= 100)
    assert found["once_free"]["goodness"]["power_law"] > 0.97 > found["goodness"]["power_law"] + 0.1
    early = {"k": k.tolist(), "count": [500.0] * 20, "episodic": [500.0] * 17 + [400.0, 300.0, 200.0]}
    assert exposure.fitted([early])["once_free"] is None


def test_patterns_that_fall_each_at_its_own_time_are_told_from_their_mean():
    one = {"settled": [700.0, 800.0, 900.0, None], "widths": [50.0, 100.0, None, 150.0], "width_of_mean": 400.0}
    found = exposure.transitions([one, one | {"width_of_mean": 600.0}])
    assert (found["width"], found["width_of_mean"], found["patterns"]) == (100, 500, 6)
    assert 700 <= found["settled"][0] < found["settled"][1] <= 900
    gone = one | {"width_of_mean": None}
    assert exposure.transitions([one, gone])["width_of_mean"] == 400


def run(seed: int, accuracy: float, attention: float, new: float = 0.05) -> dict:
    return {
        "seed": seed,
        "retrieval_accuracy": accuracy,
        "attention_tokens_end": attention,
        "realised_query_share": 0.05,
        "realised_new_share": new,
    }


STATIC = {
    "entries": {
        "random 25%, nothing recurs": {"runs": [run(0, 0.27, 0.25), run(1, 0.26, 0.25)]},
        "the event alone, nothing recurs": {"runs": [run(0, 0.99, 0.0496), run(1, 1.0, 0.0501)]},
        "the event alone, 70% recur": {"runs": [run(0, 1.0, 0.0155, 0.015), run(1, 0.99, 0.06, 0.015)]},
    }
}
RECURRENCE = {
    "entries": {
        "100% recur": {"runs": [run(0, 1.0, 0.001, 0.0)]},
        "70% recur": {"runs": [run(0, 1.0, 0.016, 0.015)]},
    }
}


def test_attention_below_the_bound_is_noticed_in_any_seed():
    found = theorems.theorem_1(STATIC)
    assert found["random 25%, nothing recurs"]["kept"] and found["the event alone, nothing recurs"]["kept"]
    assert not found["the event alone, 70% recur"]["kept"]
    first, second = found["the event alone, 70% recur"]["runs"]
    assert first["over_least"] == pytest.approx(0.0155 / 0.05) and second["over_least"] > 1


def test_epsilon_is_what_attention_exceeds_the_new_queries_by():
    found = theorems.theorem_3(RECURRENCE)
    (all_recur,), (most,) = found.values()
    assert all_recur["rho"] == 1 and all_recur["of_queries"] == pytest.approx(0.02) == all_recur["epsilon"]
    assert most["rho"] == pytest.approx(0.7) and most["of_queries"] == pytest.approx(0.32)
    assert most["of_queries"] == pytest.approx(1 - most["rho"] + most["epsilon"])


def test_gradient_descent_stays_below_the_bound_and_leaves_it_beyond_the_largest_step():
    found = theorems.theorem_2()
    for size in (0.1, 0.5, 1.0, 1.9):
        assert found[f"{size:g} / L^2"]["largest_share_of_bound"] <= 1
    beyond = found["2.1 / L^2"]
    assert beyond["error_end"] > 1e3 * beyond["error"][0] and beyond["largest_share_of_bound"] > 1


def test_a_result_and_its_figure_are_left_below_runs(tmp_path, monkeypatch, capsys):
    load = results.load
    monkeypatch.setattr(theorems.results, "load", {"static": STATIC, "recurrence": RECURRENCE}.get)
    derive.main(SimpleNamespace(name="theorems", run="", results=str(tmp_path)))
    result = load("theorems", tmp_path)
    assert result["data"]["theorem_1"] == theorems.theorem_1(STATIC)
    assert result["made_by"]["from"] == ["static", "recurrence"]
    assert (tmp_path / "theorems" / "figure.png").stat().st_size > 10_000
    assert "undercut; attention over A f: 0.31" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["exposure", "theorems", "plasticity"])
def test_a_committed_result_names_the_command_that_computes_it(name):
    assert results.load(name)["command"].endswith(f"python experiments/derive.py --name={name}")


def palimpsa_config(**layer):
    config = mqar_config.get_config("small")
    config.model, config.data.vocabulary, config.data.pairs, config.run.length = "palimpsa", 8, 2, 8
    config.palimpsa.update(D=32, heads=2, **layer)
    return config


def test_a_saved_palimpsa_is_looked_at_layer_by_layer(tmp_path):
    # Given the directory of a run that was saved after its initialisation
    config = palimpsa_config()
    learner, _ = mqar.build(config)
    saves = Checkpoints(tmp_path / "checkpoints")
    saves.save(0, training.init(learner, config.seed, 0))
    saves.close()
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    (tmp_path / "summary.json").write_text('{"seed": 0, "accuracy": 0.5}')
    # Then the state is found, with importances and learning rates that are each other's inverse
    data = plasticity.compute(trained.load(tmp_path, mqar.build, make="..."))
    assert data.keys() == {"seed", "accuracy", "changes_at", "layers"} and data["changes_at"] == 4
    for layer in data["layers"]:
        importance, rate = np.array(layer["importance_TxHx3"]), np.array(layer["learning_rate_TxHx3"])
        assert importance.shape == (8, 2, 3)
        # The median of an even number of synapses lies between two of them, so the product is 1 only nearly
        np.testing.assert_allclose(importance[..., 1] * rate[..., 1], 1, rtol=0.02)
    assert len(data["layers"]) == 2


def test_a_directory_without_a_run_and_a_model_without_importance_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no finished run; this makes one: python experiments/mqar.py"):
        derive.main(SimpleNamespace(name="plasticity", run=str(tmp_path), results=str(tmp_path)))
    config = palimpsa_config(rank=0)
    learner, run = mqar.build(config)
    found = trained.Trained({}, config, learner, run, 0, SimpleNamespace(params=None))
    with pytest.raises(ValueError, match="config.model=palimpsa has no importance"):
        plasticity.look(found)
