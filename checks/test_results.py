"""Every committed result agrees with itself, and says honestly what made it. Nothing here looks at today's code."""

import datetime
import re

import numpy as np
import pytest
from lib import results
from marks import SEEDS

RESULTS = {name: results.load(name) for name in results.names()}
ENTRIES = [(name, label) for name, result in RESULTS.items() for label in result["entries"]]
CURVED = [(name, label) for name, label in ENTRIES if "curves" in RESULTS[name]["entries"][label]]
FIGURE_ALONE = {"srcd"}  # all results on SRCD side by side
COMMIT = re.compile(r"[0-9a-f]{12}\+?")


def entry_of(name, label):
    return RESULTS[name]["entries"][label]


def settings_of(name, label) -> dict:
    """An entry's whole settings, flat."""
    entry = entry_of(name, label)
    return flat(RESULTS[name]["config"] or {}) | entry["settings"] | entry.get("deployed", {})


def flat(settings: dict, at: str = "") -> dict:
    """Settings by their dotted names."""
    out = {}
    for name, value in settings.items():
        out |= flat(value, f"{at}{name}.") if isinstance(value, dict) else {f"{at}{name}": value}
    return out


@pytest.mark.parametrize("name", RESULTS)
def test_a_file_is_what_the_writer_makes_of_it(name):
    folder = results.RESULTS / name
    result = results.load(name)  # which holds it to the schema
    assert result["name"] == name
    assert (folder / "result.json").read_text() == results.text(result) + "\n"


def test_there_is_nothing_beside_results_and_their_figures():
    folders = [folder for folder in results.RESULTS.iterdir() if folder.is_dir()]
    assert {folder.name for folder in folders} - RESULTS.keys() == FIGURE_ALONE
    known = re.compile(r"result\.json|(figure|details)\.(png|svg)")
    assert not [path for folder in folders for path in folder.iterdir() if not known.fullmatch(path.name)]
    assert not [path for path in results.RESULTS.iterdir() if path.is_file()]


@pytest.mark.parametrize("name", RESULTS)
def test_no_path_of_one_machine_is_in_a_result(name):
    text = (results.RESULTS / name / "result.json").read_text()
    assert not re.search(r"/(home|root|tmp|Users|work|mnt|data)/", text)


@pytest.mark.parametrize("name", RESULTS)
def test_one_clean_commit_made_a_result_or_its_notes_say_why_not(name):
    made, result = RESULTS[name]["made_by"], RESULTS[name]
    commits = made["commits"]
    assert commits and all(map(COMMIT.fullmatch, commits)), commits
    notes = " ".join(made["notes"])
    if any(commit.endswith("+") for commit in commits):
        assert "uncommitted changes" in notes or "was not committed yet" in notes
    if len(commits) > 1:
        assert all(commit in notes for commit in commits)
    of_runs = {run["commit"] for entry in result["entries"].values() for run in entry["runs"] if "commit" in run}
    assert of_runs <= set(commits)


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_says_when_on_what_and_with_which_versions(name):
    made = RESULTS[name]["made_by"]
    datetime.date.fromisoformat(made["date"])
    assert made["machines"] and {"python", "jax", "flax", "optax"} <= made["versions"].keys()
    assert all(other in RESULTS for other in made.get("from", []))
    assert RESULTS[name]["question"].endswith("?")
    assert RESULTS[name]["command"].startswith(("python experiments/", "make "))


@pytest.mark.parametrize(("name", "label"), ENTRIES)
def test_seeds_are_different_and_as_many_as_are_said(name, label):
    entry = entry_of(name, label)
    seeds = [run["seed"] for run in entry["runs"]]
    assert len(set(seeds)) == len(seeds) == SEEDS.get(name, 1)
    assert entry.get("diverged", 0) == 0


@pytest.mark.parametrize(("name", "label"), ENTRIES)
def test_means_and_deviations_are_those_of_the_runs(name, label):
    entry, runs = entry_of(name, label), entry_of(name, label)["runs"]
    named = {n for run in runs for n, value in run.items() if not isinstance(value, str) and n != "seed"}
    for number in named:
        values = [run[number] for run in runs if run.get(number) is not None]
        lacking = len(runs) - len(values)
        if lacking or not values:
            assert number not in entry["mean"] and number not in entry["sd"]
            # Of a number that every run lacks nothing is counted; nor of a single run's.
            assert entry["missing"].get(number) == (lacking if values and len(runs) > 1 else None), number
            continue
        assert entry["mean"][number] == pytest.approx(np.mean(values), rel=1e-9), number
        if len(values) > 1:
            assert entry["sd"][number] == pytest.approx(np.std(values, ddof=1), rel=1e-6, abs=1e-12), number
    assert entry["sd"].keys() == (entry["mean"].keys() if len(runs) > 1 else set())
    assert not entry["mean"].keys() & entry["missing"].keys()


def check_curves_over_changes(entry: dict, settings: dict) -> None:
    """Numbers of a run are those of its curve, in blocks of five visits."""
    first = [*range(0, settings["deployment.change.visits"], 5)]
    before = first.index(settings["deployment.change.visit"])
    for run, curve in zip(entry["runs"], entry["curves"], strict=True):
        assert curve["first_visit"] == first
        assert run["over_least_before"] == curve["over_least"][before - 1]
        assert run["over_least_highest"] == max(curve["over_least"][before:])
        assert run["over_least_end"] == curve["over_least"][-1]
        if "retrieval_accuracy" in run:  # older results do not have it
            assert run["retrieval_accuracy"] == min(curve["retrieval_accuracy"][:before])
        assert run["retrieval_accuracy_changed_end"] == curve["retrieval_accuracy_changed"][-1]


def check_curves_over_visits(entry: dict, visits: int) -> None:
    """Numbers of a run are the first, the last, the highest and the lowest of its curve, in blocks of ten visits."""
    for run, curve in zip(entry["runs"], entry["curves"], strict=True):
        assert curve["first_visit"] == list(range(0, visits, 10))
        assert run["attention_tokens_first"] == curve["attention_tokens"][0]
        assert run["attention_tokens_end"] == curve["attention_tokens"][-1]
        assert run["over_least_highest"] == max(curve["over_least"])
        assert run["retrieval_accuracy_lowest"] == min(curve["retrieval_accuracy"])
        assert run["retrieval_accuracy_new_lowest"] == min(curve["retrieval_accuracy_new"])


def check_curves_of_probes(entry: dict, retire: int) -> None:
    """What a run says of its memories before patterns retire, and at last, is in its curve over every fifth visit."""
    for run, curve in zip(entry["runs"], entry["curves"], strict=True):
        for when, end in (("before", curve["visit"].index(retire)), ("end", len(curve["visit"]))):
            assert run[f"free_{when}"] == curve["free_share"][end - 1]
            for kind in ("retired", "others", "new"):
                pooled = sorted(curve[f"answered_{kind}"][end - 4 : end])
                assert pooled[0] <= run[f"{kind}_{when}"] <= pooled[-1]


@pytest.mark.parametrize(("name", "label"), CURVED)
def test_curves_are_those_of_the_runs(name, label):
    entry, steps = entry_of(name, label), settings_of(name, label)["run.steps"]
    assert len(entry["curves"]) == len(entry["runs"])
    close = lambda value: pytest.approx(value, rel=2e-4)
    if "visit" in entry["curves"][0]:
        return check_curves_of_probes(entry, settings_of(name, label)["deployment.retire.visit"])
    if "over_least_before" in entry["runs"][0]:
        return check_curves_over_changes(entry, settings_of(name, label))
    if "first_visit" in entry["curves"][0]:
        return check_curves_over_visits(entry, settings_of(name, label)["deployment.visits"])
    for run, curve in zip(entry["runs"], entry["curves"], strict=True):
        assert curve["step"][-1] == steps == run.get("steps", steps)
        if name != "change":  # where the second training begins at the step at which the first ended
            assert curve["step"][0] == 0 and all(np.diff(curve["step"]) > 0)
        if "seconds" in curve and "train_seconds" in run:
            assert run["train_seconds"] == close(curve["seconds"][-1])
        if "held_out/accuracy" in curve and "accuracy_start" in run:
            assert run["accuracy_start"] == curve["held_out/accuracy"][0]
    of = lambda column, pick: [pick(curve[column]) for curve in entry["curves"]]
    for number, pick in (("attention_tokens_start", lambda c: c[0]), ("attention_tokens_peak", max)):
        if number in entry["mean"] and "held_out/attention_tokens" in entry["curves"][0]:
            assert entry["mean"][number] == close(np.mean(of("held_out/attention_tokens", pick)))


@pytest.mark.parametrize(("name", "label"), [one for one in CURVED if "training_teraflops" in entry_of(*one)["mean"]])
def test_what_a_training_cost_is_what_its_steps_did(name, label):
    entry, settings = entry_of(name, label), settings_of(name, label)
    costs = []
    for curve in entry["curves"]:
        step, cost = np.array(curve["step"]), np.array(curve["train/total_flops"], float)
        tokens = np.concatenate([[0], np.cumsum(tokens_of_steps(settings))])[step]
        costs.append(np.nansum(np.diff(tokens) * cost[1:]) / 1e12)
    assert entry["mean"]["training_teraflops"] == pytest.approx(np.mean(costs), rel=2e-4)


def tokens_of_steps(settings) -> list[int]:
    """Of each training step."""
    stages = [*settings["run.curriculum"], (settings["run.steps"], settings["run.length"], settings["run.batch"])]
    return [length * batch for steps, length, batch in stages for _ in range(steps)][: settings["run.steps"]]


# The release is dated one logged line late in these; notes of their results say so.
LATE = {
    ("ablations", "buffer of 64"),
    ("recurrence", "100% recur"),
    ("mqar", "cram"),
    ("transfer", "copy: cram, from scratch"),
}


def released_in_its_curves(name, label) -> bool:
    """Not where there is no router, where it was trained before, or where it makes all tokens attend for ever."""
    entry = entry_of(name, label)
    ever = "router_released_step" in entry["mean"] and (name != "transfer" or (name, label) in LATE)
    return ever and min(min(curve["held_out/attention_tokens"]) for curve in entry["curves"]) < 1


@pytest.mark.parametrize(("name", "label"), [one for one in CURVED if released_in_its_curves(*one)])
def test_release_and_transition_are_those_of_the_curves(name, label):
    entry = entry_of(name, label)
    late = (name, label) in LATE
    if late:
        assert any(
            f"'{label}'" in note and "one logged line late" in note for note in RESULTS[name]["made_by"]["notes"]
        )
    released, peaks = [], []
    for run, curve in zip(entry["runs"], entry["curves"], strict=True):
        attend = curve["held_out/attention_tokens"]
        first = next(i for i, share in enumerate(attend) if share < 1)  # before the release all attend
        released.append(curve["step"][first])
        peaks.append(max(attend[first:]))
        if not late:
            assert run.get("router_released_step", released[-1]) == released[-1]
            assert run.get("transition_step") == transition(curve["step"][first:], attend[first:])
    assert (entry["mean"]["router_released_step"] != pytest.approx(np.mean(released))) == late
    if not late and "attention_tokens_peak_after_release" in entry["mean"]:
        peak = entry["mean"]["attention_tokens_peak_after_release"]
        assert peak == pytest.approx(np.mean(peaks), rel=2e-4)


def transition(steps: list[int], attention: list[float]) -> int | None:
    """First step from which attention, as a running median of five, stays below the geometric mean of its peak and
    its end; None where it never fell to half of its peak."""
    smooth = [max(np.median(attention[max(0, i - 2) : i + 3]), 1e-6) for i in range(len(attention))]
    if smooth[-1] > max(smooth) / 2:
        return None
    above = [i for i, share in enumerate(smooth) if share >= np.sqrt(max(smooth) * smooth[-1])]
    return steps[above[-1] + 1]


@pytest.mark.parametrize(("name", "label"), [(n, e) for n, e in CURVED if "quality" in RESULTS[n]["entries"][e]])
def test_quality_is_that_of_logged_steps(name, label):
    entry = entry_of(name, label)
    for found, curve in zip(entry["quality"], entry["curves"], strict=True):
        assert set(found["step"]) <= set(curve["step"]) and found["step"][-1] == curve["step"][-1]
        mean = [curve["probe/quality_query_recurring_busiest"][curve["step"].index(step)] for step in found["step"]]
        assert found["recurring"] == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("name", [name for name, result in RESULTS.items() if "chosen" in str(result["entries"])])
def test_the_rate_is_the_one_that_its_scores_chose(name):
    for label, entry in RESULTS[name]["entries"].items():
        if "chosen" not in entry:
            continue
        (by,) = entry["chosen"].keys() - {"learning_rate", "at_edge"}
        score = {float(rate): np.mean(values) for rate, values in entry["chosen"][by].items()}
        best = min if by.endswith("bits_per_byte") else max
        rate = best(score, key=score.get)
        assert entry["chosen"]["learning_rate"] == rate == settings_of(name, label)["optimizer.learning_rate"]
        assert entry["chosen"]["at_edge"] == (rate in (min(score), max(score)))
        assert [run[by] for run in entry["runs"]] == np.ravel(entry["chosen"][by][f"{rate:g}"]).tolist()


def test_what_a_changed_pattern_took_is_in_its_curves():
    for entry in RESULTS["change"]["entries"].values():
        (run,), (curve,) = entry["runs"], entry["curves"]
        before, after = ([i for i, changed in enumerate(curve["changed"]) if changed == now] for now in (0, 1))
        pick = lambda column, places, curve=curve: [curve[f"held_out/{column}"][i] for i in places]
        assert curve["step"][before[-1]] == curve["step"][after[0]] == run["at"]
        accuracy, attention = pick("retrieval_accuracy_changed", after), pick("attention_tokens", after)
        close = lambda value: pytest.approx(value, rel=2e-4)
        assert run["accuracy_changed_lowest"] == min(accuracy) and run["accuracy_changed_end"] == accuracy[-1]
        assert run["attention_tokens_highest"] == close(max(attention))
        assert run["attention_tokens_end"] == close(attention[-1])
        assert run["attention_tokens_before"] == close(np.mean(pick("attention_tokens", before)[-5:]))
        first = next(i for i, share in enumerate(accuracy) if share >= 0.99)
        assert run["steps_to_99"] == curve["step"][after[first]] - run["at"]


def test_reductions_are_against_the_same_from_scratch():
    result = RESULTS["transfer"]
    assert len(result["data"]["targets"]) == 3
    pairs = {(entry["settings"].get("target"), entry["settings"]["model"]) for entry in result["entries"].values()}
    assert len(pairs) == 3 * 2 + 2  # the targets, and training on SRCD
    for label, found in result["data"]["reduction"].items():
        ends = lambda which: [run["attention_tokens_end"] for run in result["entries"][which]["runs"]]
        own, scratch = ends(label), ends(label.rpartition(", ")[0] + ", from scratch")
        assert found["mean"] == pytest.approx(1 - np.mean(own) / np.mean(scratch))
        assert found["by_seed"] == pytest.approx([1 - a / b for a, b in zip(own, scratch, strict=True)])
    assert len(result["data"]["reduction"]) == 3 * 2 * 2


def test_gains_of_a_conversion_are_between_runs_of_the_same_start():
    entries = RESULTS["conversion"]["entries"]
    pairs = zip(entries["as it is"]["runs"], entries["metaplastic"]["runs"], strict=True)
    for (old, new), gain in zip(pairs, RESULTS["conversion"]["data"]["gain"], strict=True):
        assert old["accuracy_start"] == new["accuracy_start"], "the same function at first"
        assert gain == new["accuracy"] - old["accuracy"]


def test_what_was_fitted_is_what_its_sources_counted():
    for found in RESULTS["exposure"]["data"].values():
        name, label = found["from"]
        assert name in RESULTS["exposure"]["made_by"]["from"]
        source = entry_of(name, label)
        total = {}
        for run in source["exposures"]:
            for k, count, episodic in zip(run["k"], run["count"], run["episodic"], strict=True):
                total[k] = np.add(total.get(k, (0, 0)), (count, episodic))
        data = found["data"]
        assert data["k"] == sorted(total) and found["seeds"] == len(source["exposures"])
        np.testing.assert_allclose(np.transpose([data["count"], data["episodic"]]), [total[k] for k in data["k"]])
        settled = [step for run in source["patterns"] for step in run["settled"] if step is not None]
        assert found["transitions"]["settled"] == pytest.approx(np.quantile(settled, (0.05, 0.95)))


def test_theorems_are_about_the_runs_of_their_sources():
    data = RESULTS["theorems"]["data"]
    for label, found in data["theorem_1"].items():
        for run, source in zip(found["runs"], entry_of("static", label)["runs"], strict=True):
            least = source["retrieval_accuracy"] * source["realised_query_share"]
            assert run["over_least"] == pytest.approx(source["attention_tokens_end"] / least)
        assert found["kept"] == all(run["over_least"] >= 1 for run in found["runs"])
    for label, runs in data["theorem_3"].items():
        for run, source in zip(runs, entry_of("recurrence", label)["runs"], strict=True):
            assert run["of_queries"] == pytest.approx(source["attention_tokens_end"] / source["realised_query_share"])
