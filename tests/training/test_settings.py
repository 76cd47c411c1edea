"""Settings become flags and return unchanged, and a run directory accepts only one set of settings."""

import json

import pytest
from ml_collections import ConfigDict

from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.consolidation import ConsolidationConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.routing import RoutingConfig
from cram_jax.functional.semantic import SemanticConfig
from cram_jax.functional.working import WorkingConfig
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.training import files
from cram_jax.training.controller import PriceConfig
from cram_jax.training.loop import RunConfig
from cram_jax.training.optimizer import OptimizerConfig
from cram_jax.training.settings import claim_workdir, from_config, to_config


def test_settings_survive_the_round_trip_and_one_override():
    settings = CRAMConfig(D=32, episodic=EpisodicConfig(heads=4))
    config = to_config(settings)
    assert from_config(CRAMConfig(), config) == settings
    config.episodic.memory = 7
    assert from_config(CRAMConfig(), config) == CRAMConfig(D=32, episodic=EpisodicConfig(heads=4, memory=7))
    assert hash(from_config(CRAMConfig(), config))


def test_a_setting_that_is_none_by_default_can_be_given():
    config = ConfigDict({"cram": to_config(CRAMConfig())})
    assert from_config(CRAMConfig(), config.cram) == CRAMConfig()
    assert json.loads(config.to_json())["cram"]["compute_dtype"] is None
    config.update_from_flattened_dict({"cram.compute_dtype": "bfloat16"})
    assert from_config(CRAMConfig(), config.cram) == CRAMConfig(compute_dtype="bfloat16")
    with pytest.raises(TypeError, match="compute_dtype.*3 is of original type <class 'int'>"):
        config.cram.compute_dtype = 3


def test_an_unknown_setting_is_named_with_those_there_are():
    config = to_config(EpisodicConfig())
    config.headz = 3
    with pytest.raises(KeyError, match="unknown setting 'headz'; EpisodicConfig has .*'heads'"):
        from_config(EpisodicConfig(), config)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_no_setting(value):
    config = to_config(PriceConfig())
    config.top = value
    with pytest.raises(ValueError, match=f"top must be finite, got {value} for PriceConfig"):
        from_config(PriceConfig(), config)


def test_a_directory_belongs_to_its_settings(tmp_path):
    config = to_config(RunConfig(steps=100))
    claim_workdir(tmp_path / "run", config)
    claim_workdir(tmp_path / "run", config)  # the same again goes on
    with pytest.raises(ValueError, match="holds a run with config.steps=100, this one has 200; give the same settings"):
        claim_workdir(tmp_path / "run", to_config(RunConfig(steps=200)))


def test_a_run_goes_on_with_other_evaluations_and_may_be_extended(tmp_path, caplog):
    # Given a directory with a run of 100 steps
    run = lambda **changed: ConfigDict({"run": to_config(RunConfig(**{"steps": 100} | changed)), "seed": 0})
    workdir, steps = (
        tmp_path / "run",
        lambda: json.loads((tmp_path / "run" / "config.json").read_text())["run"]["steps"],
    )
    claim_workdir(workdir, run())

    # Then other evaluations are taken where the caller evaluates anew, and named
    with pytest.raises(ValueError, match="config.run.final_tokens=1000000, this one has 5; give the same settings"):
        claim_workdir(workdir, run(final_tokens=5))
    claim_workdir(workdir, run(final_tokens=5), looks=True)
    assert "goes on with other settings: it had config.run.final_tokens=1000000, this one has 5" in caplog.text
    claim_workdir(workdir, run(final_tokens=5))  # they are the run's settings now

    # And more steps, but not fewer, where that is asked for
    with pytest.raises(ValueError, match="has 200; .* or --extend to train for more steps"):
        claim_workdir(workdir, run(steps=200, final_tokens=5), looks=True)
    assert steps() == 100
    claim_workdir(workdir, run(steps=200, final_tokens=5), looks=True, extend=True)
    assert steps() == 200
    with pytest.raises(ValueError, match="config.run.steps=200, this one has 100; .* another --workdir$"):
        claim_workdir(workdir, run(final_tokens=5), looks=True, extend=True)
    # Nor is a damaged file taken for a shorter run
    (workdir / "config.json").write_text('{"run": {"steps": null}, "seed": 0}')
    with pytest.raises(ValueError, match="config.run.steps=None, this one has 300; .* another --workdir$"):
        claim_workdir(workdir, run(steps=300, final_tokens=5), looks=True, extend=True)
    (workdir / "config.json").write_text("{")
    with pytest.raises(ValueError, match="a damaged config.json; .* another --workdir$"):
        claim_workdir(workdir, run(steps=300, final_tokens=5), looks=True, extend=True)
    files.write_whole(workdir / "config.json", json.dumps(run(steps=200, final_tokens=5).to_dict()))
    # And nothing that is learned from
    with pytest.raises(ValueError, match="config.run.batch=16, this one has 8; .* another --workdir$"):
        claim_workdir(workdir, run(steps=300, batch=8, final_tokens=5), looks=True, extend=True)


def test_lengths_and_steps_are_set_in_one_place():
    from configs.srcd import get_config

    config = get_config("small")
    config.run.length, config.run.steps, config.seed = 512, 5000, 3
    assert config.data.length == config.transformer.context == 512
    assert config.optimizer.steps == 5000 and config.data.table_seed == 3


def test_the_curriculum_gives_way_to_full_length():
    run = RunConfig(steps=100, length=64, batch=2, curriculum=((10, 8, 16), (20, 16, 8)))
    assert [run.shape(step) for step in (0, 9, 10, 29, 30, 99)] == [(8, 16)] * 2 + [(16, 8)] * 2 + [(64, 2)] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 70}, "must be multiples of log_every.*steps=70"),
        ({"checkpoint_every": 75}, "must be multiples of log_every.*checkpoint_every=75"),
        ({"curriculum": ((10, 0, 3),)}, r"curriculum stages must be \(steps, length, batch\).*\(10, 0, 3\)"),
    ],
)
def test_a_run_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**wrong)


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        *((RunConfig, name, 0) for name in ("steps", "length", "batch", "log_every", "checkpoint_every")),
        *((PriceConfig, name, 0) for name in ("ramp", "smoothing")),
        *((OptimizerConfig, name, 0) for name in ("steps", "clip")),
        *((SRCDConfig, name, 0) for name in ("length", "batch", "answers", "new_key_ids", "gap_tail")),
        *((CRAMConfig, name, 0) for name in ("D", "F")),
        *((AttentionConfig, name, 0) for name in ("D", "F", "heads", "head_dim", "context")),
        *((EpisodicConfig, name, 0) for name in ("heads", "head_dim", "memory", "width", "write_audit_rate")),
        *((RoutingConfig, name, 0) for name in ("width", "temperature", "audit_rate")),
        *((WorkingConfig, name, 0) for name in ("width", "steps")),
        *((ConsolidationConfig, name, value) for name, value in (("width", 0), ("decay", 1.0))),
        (SemanticConfig, "rank", -1),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(settings, field, value):
    with pytest.raises(ValueError, match=rf"{field}.* (must|leave).*got .*{value}"):
        settings(**{field: type(getattr(settings, field))(value)})
