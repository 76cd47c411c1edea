"""Committed results are of this code's settings and meet the marks they stand for, every run of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from configs import change as change_config
from configs import comparisons
from configs import conversion as conversion_config
from configs import language as language_config
from configs import mqar as mqar_config
from configs import srcd as srcd_config
from configs import text as text_config
from configs import transfer as transfer_config

from cram_jax.analysis.transition import transition_step
from cram_jax.kernels.skip_attention import tpu
from cram_jax.training import experiment

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
TRANSFORMER = {"model": "transformer", "optimizer.weight_decay": 0.01}
RUNS = {  # file: (config, variant, settings given on the command line, seeds)
    "srcd_small.json": (srcd_config, "small", {}, 5),
    "srcd_small_10k.json": (srcd_config, "small", {"run.steps": 10_000, "run.log_every": 250}, 3),
    "srcd_small_shared.json": (srcd_config, "small", {"data.new_keys": "shared"}, 5),
    "srcd_small_transformer.json": (srcd_config, "small", TRANSFORMER, 3),
    "srcd_paper.json": (srcd_config, "paper", {}, 5),
    "srcd_paper_transformer.json": (srcd_config, "paper", TRANSFORMER, 1),
    "srcd_paper_10k.json": (srcd_config, "paper", {"run.steps": 10_000}, 1),
    "srcd_paper_10k_gpu.json": (srcd_config, "paper", {"run.steps": 10_000}, 3),
    "text.json": (text_config, "small", {}, 1),
}
# What every run has to reach: (at least, at most). After 2400 steps at 256 events two of five seeds stand at 99.8%,
# below the 99.9% that 10,000 steps and the paper's size reach: CLAIMS.md names them.
MARKS = {
    "srcd_small.json": {
        "retrieval_accuracy": (0.997, 1),
        "retrieval_accuracy_new": (0.98, 1),
        "attention_tokens_end": (0, 0.0165),
        "attention_tokens_rise_last_fifth": (0, 0.10),
        "kept_share": (0, 0.20),
        "kept_share_busiest": (0, 0.20),
        "recurring_lost_without_semantic": (0.5, 1),
        "held_out_tokens": (1_000_000, 2_000_000),
    },
    "srcd_small_transformer.json": {"retrieval_accuracy": (0.99, 1)},
    "srcd_paper_transformer.json": {"retrieval_accuracy": (0.99, 1)},
    "srcd_paper.json": {
        "length": (2048, 2048),
    },
    "srcd_paper_10k.json": {"train_seconds": (0, 3600), "length": (2048, 2048), "steps": (10_000, 10_000)},
    # One of three misses the 99.9% that the runs on a CPU reach: CLAIMS.md says so.
    "srcd_paper_10k_gpu.json": {"length": (2048, 2048), "steps": (10_000, 10_000), "retrieval_accuracy": (0.998, 1)},
}


# Settings that came after some of these results, at the values that leave everything as it was
LATER = {
    "routing.decide": "learned",
    "routing.budget": 0.05,
    "optimizer.semantic_rate": 1.0,
    "optimizer.frozen": [],
    "data.changed": 0,
}


def flat(settings: dict, at: str = "") -> dict:
    """Settings by their dotted names."""
    parts = ((f"{at}{name}", value) for name, value in settings.items())
    return {
        name: value
        for path, inner in parts
        for name, value in (flat(inner, f"{path}.") if isinstance(inner, dict) else {path: inner}).items()
    }


def assert_settings(found: dict, wanted: dict) -> None:
    """Raises where they differ in more than what came later and changes nothing."""
    found, wanted = flat(found), flat(wanted)
    added = {name: wanted.pop(name) for name in wanted.keys() - found.keys()}
    assert found == wanted
    for name, value in added.items():
        assert (".".join(name.split(".")[-2:]), value) in LATER.items(), name


def test_a_schedule_may_be_longer_than_a_run():
    config = srcd_config.get_config("small")
    config.optimizer.steps = 5000
    assert config.run.steps == 2400
    config = srcd_config.get_config("small")
    config.run.steps = 9000
    assert config.optimizer.steps == 9000 and config.price.ramp == 3000


def load(file: str) -> dict:
    return json.loads((RESULTS / file).read_text())


@pytest.mark.parametrize("file", RUNS)
def test_settings_are_those_of_the_config_but_for_what_is_named(file):
    module, variant, changes, seeds = RUNS[file]
    config = module.get_config(variant)
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        (config[section] if section else config)[field] = value
    runs = load(file)["runs"]
    config.seed = runs[0]["seed"]
    left_out = {"files", "corpus", *experiment.MODELS} - {config.model}  # of the machine, and of other models
    wanted, found = (
        {name: value for name, value in settings.items() if name not in left_out}
        for settings in (json.loads(config.to_json()), load(file)["config"])
    )
    assert_settings(found, wanted)
    assert [run["seed"] for run in runs] == list(range(seeds))


@pytest.mark.parametrize("file", RUNS)
def test_one_clean_commit_trained_them(file):
    (commits,) = {tuple(run["trained_by"]) for run in load(file)["runs"]}
    assert len(commits) == 1 and not commits[0].endswith("+")


@pytest.mark.parametrize("file", ["srcd_paper.json", "srcd_paper_10k.json", "srcd_paper_10k_gpu.json"])
def test_release_and_transition_are_those_of_the_curves(file):
    result = load(file)
    for run, curve in zip(result["runs"], result["curves"], strict=True):
        attend = curve["held_out/attention_tokens"]
        first = next(i for i, share in enumerate(attend) if share < 1)  # before the release all attend
        assert run["router_released_step"] == curve["step"][first]
        assert run["attention_tokens_peak_after_release"] == pytest.approx(max(attend[first:]), rel=1e-4)
        assert run["transition_step"] == transition_step(curve["step"][first:], attend[first:])


@pytest.mark.parametrize("file", MARKS)
def test_every_run_reaches_its_marks(file):
    for run in load(file)["runs"]:
        for name, (low, high) in MARKS[file].items():
            assert low <= run[name] <= high, (run["seed"], name)


@pytest.mark.parametrize("file", ["srcd_small_10k.json", "srcd_paper.json", "srcd_paper_10k.json"])
def test_attention_stays_near_the_least_there_is(file):
    for run in load(file)["runs"]:
        assert run["retrieval_accuracy"] >= 0.999
        assert run["attention_tokens_end"] <= 1.07 * run["realised_new_share"]
        assert run["held_out_tokens"] >= 1_000_000


def test_on_a_gpu_attention_ends_near_the_least_there_is_too():
    for run in load("srcd_paper_10k_gpu.json")["runs"]:
        assert run["attention_tokens_end"] <= 1.07 * run["realised_new_share"]


def test_the_papers_size_takes_at_most_ten_minutes():
    """From the first step to the marks above: the whole run, or else the last line logged by then."""
    result = load("srcd_paper.json")
    for run, curve in zip(result["runs"], result["curves"], strict=True):
        if run["train_seconds"] <= 600:
            continue
        by_then = [i for i, seconds in enumerate(curve["seconds"]) if seconds <= 600][-1]
        then = {name: curve[f"held_out/{name}"][by_then] for name in ("retrieval_accuracy", "attention_tokens")}
        assert then["retrieval_accuracy"] >= 0.999, run["seed"]
        assert then["attention_tokens"] <= 1.07 * curve["held_out/realised_new_share"][by_then], run["seed"]


@pytest.mark.parametrize("size", ["small", "paper"])
def test_dynamics_are_learned_as_well_as_by_the_transformer(size):
    transformer = load(f"srcd_{size}_transformer.json")["mean"]["dynamics_mse_excess"]
    for run in load(f"srcd_{size}.json")["runs"]:
        assert 0 < run["dynamics_mse_excess"] <= 1.05 * transformer


def test_at_the_papers_size_all_of_it_costs_less_than_baselines_that_retrieve_but_not_than_without_consolidation():
    transformer = load("srcd_paper_transformer.json")["mean"]
    jamba = load("jamba_paper_size.json")["entries"]["jamba"]["mean"]
    bare = load("paper_size.json")["entries"]["cram without consolidation"]["mean"]
    assert min(one["retrieval_accuracy"] for one in (transformer, jamba, bare)) >= 0.999
    for run in load("srcd_paper.json")["runs"]:
        for what in ("total_flops", "training_teraflops"):
            assert bare[what] < run[what] < 0.5 * min(transformer[what], jamba[what])
        assert run["dynamics_mse_excess"] <= 1.05 * min(
            transformer["dynamics_mse_excess"], jamba["dynamics_mse_excess"]
        )


def test_text_is_below_its_n_grams():
    (run,) = load("text.json")["runs"]
    assert run["bits_per_byte"] < min(run[f"bits_per_byte_{n}_gram"] for n in (1, 2, 3))
    assert run["text_megabytes"] >= 20 and run["train_seconds"] <= 300


def test_language_models_had_one_budget_and_learned_the_text():
    result = load("language.json")
    wanted = json.loads(language_config.get_config("small").to_json())
    left_out = {"files", "corpus"}
    without = lambda settings: {name: value for name, value in settings.items() if name not in left_out}
    assert_settings(without(result["config"]), without(wanted))
    assert set(result["models"]) == set(wanted["depths"])
    runs = [run for model in result["models"].values() for run in model["runs"]]
    (commits,) = {tuple(run["trained_by"]) for run in runs}
    assert len(commits) == 1 and not commits[0].endswith("+")
    assert {run["steps"] for run in runs} == {wanted["run"]["steps"]}
    assert max(run["parameters"] for run in runs) < 1.1 * min(run["parameters"] for run in runs)
    assert all(run["bits_per_byte"] < run["bits_per_byte_3_gram"] for run in runs)


@pytest.mark.parametrize("name", comparisons.COMPARISONS)
def test_a_comparison_is_the_one_that_was_written_down(name):
    result, comparison = load(f"{name}.json"), comparisons.COMPARISONS[name]
    assert_settings(result["config"], json.loads(srcd_config.get_config(comparison.variant).to_json()))
    assert result["settings"] == json.loads(json.dumps(comparison.entries))
    (commit,) = result["trained_by"]
    assert not commit.endswith("+")
    for found in result["entries"].values():
        assert [run["seed"] for run in found["runs"]] == list(comparison.seeds) and not found["diverged"]


def test_the_baselines_of_table_1_have_what_the_searches_found_best():
    tried = load("tuning.json"), load("tuning_mamba2.json"), load("tuning_jamba.json")
    entries = {label: found for one in tried for label, found in one["entries"].items()}
    settings = {label: of for one in tried for label, of in one["settings"].items()}
    table = comparisons.TABLE_1 | comparisons.JAMBA
    for model in (*comparisons.BASELINES, "jamba"):
        own = [label for label in entries if label.startswith(f"{model}, ")]
        best = max(own, key=lambda label: entries[label]["mean"]["retrieval_accuracy"])
        chosen = {name: value for name, value in settings[best].items() if name != "run.steps"}
        assert chosen == table[model], model


def test_table_1_baselines_that_can_retrieve_do_and_attention_falls_without_consolidation_too():
    entries = load("table_1.json")["entries"] | load("jamba.json")["entries"]
    for model in ("transformer", "jamba", "cram", "cram without consolidation"):
        for run in entries[model]["runs"]:
            assert run["retrieval_accuracy"] >= 0.999, (model, run["seed"])
    for run in entries["cram"]["runs"]:
        assert run["attention_tokens_end"] <= 1.1 * run["realised_new_share"]
    (bare,) = load("paper_size.json")["entries"]["cram without consolidation"]["runs"]
    for run in (*entries["cram without consolidation"]["runs"], bare):
        assert run["attention_tokens_end"] < 2 * run["realised_new_share"]
    best = min(entries[model]["mean"]["dynamics_mse_excess"] for model in ("transformer", "jamba", "mamba2", "seqboat"))
    assert entries["cram"]["mean"]["dynamics_mse_excess"] <= 1.05 * best


def test_what_was_transferred_is_what_was_written_down():
    result = load("transfer.json")
    assert_settings(result["config"], json.loads(transfer_config.get_config().to_json()))
    (commit,) = result["trained_by"]
    assert not commit.endswith("+") and len(result["targets"]) == 3
    for models in result["targets"].values():
        assert set(models) == {"cram", "seqboat"}
        for ways in models.values():
            for found in ways.values():
                assert [run["seed"] for run in found["runs"]] == [0, 1, 2]
            for way in ("frozen", "head alone"):  # against scratch's own attention, not against all tokens
                own, scratch = ways[way]["attention_tokens_end"], ways["from scratch"]["attention_tokens_end"]
                assert ways[way]["reduction"] == pytest.approx(1 - own / scratch)


@pytest.mark.parametrize(("file", "seed"), [("change.json", 0), ("change_seed_1.json", 1), ("change_seed_2.json", 2)])
def test_a_changed_pattern_is_learned_again_without_a_restart(file, seed):
    result, config = load(file), change_config.get_config("small")
    config.seed = seed
    assert_settings(result["config"], json.loads(config.to_json()))
    assert not result["trained_by"][0].endswith("+") and len(result["trained_by"]) == 1
    assert result["accuracy_changed_lowest"] < 0.05, "the change was one"
    assert result["steps_to_99_for_good"] <= 200 and result["accuracy_changed_end"] >= 0.99
    # Attention came back to what changed, and went again; in seed 1 that was not seen: CLAIMS.md says so.
    queries, came_back = result["curves"]["after"]["held_out/attention_query_changed"], {0: 0.2, 2: 0.1}
    assert queries[0] < 0.02 and queries[-1] < 0.02
    assert seed not in came_back or max(queries) > came_back[seed]
    assert result["attention_tokens_end"] <= 1.1 * result["attention_tokens_before"]


def test_both_ways_of_fine_tuning_had_equal_effort():
    result = load("conversion.json")
    assert_settings(result["config"], json.loads(conversion_config.get_config("small").to_json()))
    ways = result["ways"]
    runs = [run for way in ways.values() for run in way["runs"]] + result["trained"]
    (commits,) = {tuple(run["trained_by"]) for run in runs}
    assert len(commits) == 1 and not commits[0].endswith("+")
    assert min(run["accuracy"] for run in result["trained"]) >= 0.95
    for way in ways.values():
        assert [run["seed"] for run in way["runs"]] == [0, 1, 2]
        assert set(way["validation_accuracy"]) == {"0.001", "0.00215", "0.00464", "0.01"}
    for old, new, gain in zip(ways["as it is"]["runs"], ways["metaplastic"]["runs"], result["gain"], strict=True):
        assert old["accuracy_start"] == new["accuracy_start"] < 0.95, "the same function, on more than it holds"
        assert gain == new["accuracy"] - old["accuracy"]


def test_recall_was_compared_with_equal_effort():
    result = load("mqar.json")
    assert_settings(result["config"], json.loads(mqar_config.get_config("small").to_json()))
    assert len(result["models"]) == 9
    runs = [run for model in result["models"].values() for run in model["runs"]]
    (commits,) = {tuple(run["trained_by"]) for run in runs}
    assert len(commits) == 1 and not commits[0].endswith("+")
    assert {run["steps"] for run in runs} == {3000}
    for label, model in result["models"].items():
        assert [run["seed"] for run in model["runs"]] == [0, 1, 2]
        tried = [4.64e-3] if label == "cram" else [4.64e-3, 1e-2, 2.15e-2]
        by_rate = {float(rate): np.mean(values) for rate, values in model["validation_accuracy"].items()}
        assert sorted(by_rate) == sorted(tried) and model["learning_rate"] == max(by_rate, key=by_rate.get)
    # At this size Mamba-2 fails, and with twice the state it does not: what the verdict rests on
    assert result["models"]["mamba2"]["accuracy"] < 0.9 < result["models"]["mamba2, twice the state"]["accuracy"]


@pytest.mark.parametrize("batch", [1, 16])
def test_streaming_takes_the_same_time_and_memory_however_long_the_context(batch):
    result = load("kernels/stream.json")["result"]
    at = [result[f"batch_{batch}_context_{context}"] for context in (1024, 4096, 16384, 32768)]
    times = [one["cram"]["ms"] for one in at]
    assert max(times) < 1.2 * min(times)
    assert len({one["cram"]["megabytes"] for one in at}) == 1 and at[-1]["cheaper"] >= 10


def test_the_tiles_of_the_chips_are_those_whose_schedules_were_compared():
    result = load("kernels/tpu_tiles.json")["result"]
    kinds = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
    assert set(result) == {f"{chip}, head dimension {K}" for chip in kinds for K in (64, 128, 256)}
    for label, rows in result.items():
        chip, K = label.split(", head dimension ")
        (shipped,) = [row for row in rows if row["shipped"]]
        assert tuple(shipped[name] for name in tpu.Tiles._fields) == tpu.best_tiles(kinds[chip], int(K))
        # Fewer instructions for a pair of row and key than with half the rows, in all three kernels
        fewer = next(row for row in rows if row["rows"] == 128)
        assert all(
            shipped[f"{way}_per_1024_pairs"] < fewer[f"{way}_per_1024_pairs"] for way in ("forward", "dq", "dkv")
        )


def test_scans_are_as_fast_and_as_small_as_the_pages_say():
    result = load("kernels/scans.json")["result"]
    for name in ("ssd", "palimpsa"):
        assert result[f"{name}_forward_backward_faster_than_tokens"] >= 5
        megabytes = result["gradient_megabytes"][name]
        assert megabytes["8192"] < 2.1 * megabytes["4096"]
    assert result["ssd_forward_faster_than_mamba2_jax"] >= 1
    assert result["ssd_forward_backward_faster_than_mamba2_jax"] >= 1


def test_attention_costs_what_is_used():
    result = load("kernels/attention.json")["result"]
    for way in ("forward_4096", "forward_backward_4096"):
        times = result[way]
        dense = min(times["dense"][name]["ms"] for name in ("naive", "jax_nn"))
        assert times["dense"]["ours"]["ms"] <= dense and times["random_0"]["ms"] < 0.05 * dense
    assert result["forward_4096"]["random_16"]["cheaper"] >= 24
    for share in (50, 125, 250, 500):
        assert result["forward_backward_4096"][f"random_{share}"]["efficiency"] >= 0.6


def test_a_gpu_gains_by_skipping_and_its_numbers_are_right():
    result = load("kernels/gpu.json")["result"]
    for backend, found in result["errors"].items():
        assert found["repeats"] and found["error"] < (3e-3 if backend.startswith(("gpu", "xla_bfloat16")) else 1e-6)
    for length in (2048, 8192):
        for times in result[f"times_{length}"].values():
            assert times["gpu_16"]["cheaper_than_dense"] > 1 and times["kernel_16"]["cheaper_than_dense"] > 2
    assert result["times_8192"]["forward_backward"]["gpu_16"]["cheaper_than_dense"] >= 2.9
    others = result["others_2048"]  # why `auto` takes "reference" where rows and keys are not many
    assert others["reference_16"]["ms"] < 0.5 * others["xla_16"]["ms"]
