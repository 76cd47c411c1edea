"""The theorems on results whose verdict is known."""

import pytest
import theorems
from lib import results


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


def test_a_result_and_its_figure_are_left_below_runs(tmp_path, monkeypatch):
    load = results.load
    monkeypatch.setattr(theorems.results, "load", {"static": STATIC, "recurrence": RECURRENCE}.get)
    monkeypatch.setattr(theorems, "TARGET", tmp_path / "theorems")
    theorems.main()
    result = load("theorems", tmp_path)
    assert result["data"]["theorem_1"] == theorems.theorem_1(STATIC)
    assert result["made_by"]["from"] == ["static", "recurrence"]
    assert (tmp_path / "theorems" / "figure.png").stat().st_size > 10_000
