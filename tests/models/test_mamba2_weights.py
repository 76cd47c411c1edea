"""Mamba-2 from Hugging Face's files computes what Hugging Face's code does (`tests/golden/make_mamba2.py`)."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cram_jax.functional import mamba2
from cram_jax.functional.common import rms_norm
from cram_jax.functional.metaplastic import make_metaplastic
from cram_jax.models.language import LanguageModel
from cram_jax.models.mamba2_weights import load_mamba2
from cram_jax.models.stack import Stack

GOLDEN = Path(__file__).parents[1] / "golden"
# Float32 through two layers, in another order of sums; the values are up to 6
TOLERANCE = 1e-5


@pytest.fixture
def folder(tmp_path) -> Path:
    shutil.copy(GOLDEN / "mamba2.json", tmp_path / "config.json")
    shutil.copy(GOLDEN / "mamba2.safetensors", tmp_path / "model.safetensors")
    return tmp_path


def layer_of(params, index: int):
    """One layer's parameters."""
    return jax.tree.map(lambda leaf: leaf[index], params.layers[0])


def assert_near(got, want):
    """Within the tolerance, relative to the size of what is compared."""
    assert np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)
    assert np.max(np.abs(got - want)) <= TOLERANCE * np.max(np.abs(want))


def test_the_whole_model_and_each_layer_agree_with_hugging_face(folder):
    golden = np.load(GOLDEN / "mamba2.npz")
    params, model = load_mamba2(folder)
    ids_BxT = jnp.asarray(golden["ids_BxT"])
    x_BxTxD = params.token_AxD[ids_BxT]
    for i in range(model.stack.depth):
        x_BxTxD, _ = mamba2.apply(layer_of(params, i), (), x_BxTxD, cfg=model.stack.layers[0])
        assert_near(x_BxTxD, golden[f"after_layer_{i}_BxTxd"])
    assert_near(rms_norm(params.norm_D, x_BxTxD, model.epsilon), golden["after_norm_BxTxd"])
    assert_near(jax.jit(model.apply)(params, model.stack.init_state(), ids_BxT)[0], golden["logits_BxTxV"])


def test_streaming_agrees_too(folder):
    golden = np.load(GOLDEN / "mamba2.npz")
    params, model = load_mamba2(folder)
    step, caches = jax.jit(model.step), model.stack.init_cache(len(golden["ids_BxT"]))
    states = model.stack.init_state()
    for t, token_B in enumerate(jnp.asarray(golden["ids_BxT"]).T):
        logits_BxA, caches, _ = step(params, states, caches, token_B)
        assert_near(logits_BxA, golden["logits_BxTxV"][:, t])


@pytest.mark.parametrize(("grouped", "name"), [(True, "mixer_output_BxTxd"), (False, "mixer_output_one_group_BxTxd")])
def test_a_mixer_alone_agrees_with_either_norm(folder, grouped, name):
    golden = np.load(GOLDEN / "mamba2.npz")
    params, model = load_mamba2(folder, grouped_norm=grouped)
    got = mixer(layer_of(params, 0), jnp.asarray(golden["mixer_input_BxTxd"]), model.stack.layers[0])
    assert_near(got, golden[name])


def mixer(params, x_BxTxD, cfg):
    """The layer without its norm and residual."""
    with pytest.MonkeyPatch.context() as patch:
        whole = mamba2.rms_norm
        patch.setattr(mamba2, "rms_norm", lambda s, x, e: x if s is params.norm_D else whole(s, x, e))
        y_BxTxD, _ = mamba2.apply(params, (), x_BxTxD, cfg=cfg)
    return y_BxTxD - x_BxTxD


def test_a_loaded_model_becomes_metaplastic_and_stays_the_same_function(folder):
    params, model = load_mamba2(folder)
    layers, cfg = make_metaplastic(params.layers[0], model.stack.layers[0], rank=2)
    twin = LanguageModel(model.vocabulary, Stack((cfg,), model.stack.depth), model.epsilon)
    ids_BxT = jnp.asarray(np.load(GOLDEN / "mamba2.npz")["ids_BxT"])
    logits_BxTxV = np.load(GOLDEN / "mamba2.npz")["logits_BxTxV"]  # Hugging Face's, of the model without importance
    assert_near(twin.apply(params._replace(layers=(layers,)), twin.stack.init_state(), ids_BxT)[0], logits_BxTxV)


def test_tensors_that_are_unknown_missing_or_of_another_shape_are_errors(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)

    save_file(tensors | {"backbone.layers.0.mixer.extra": np.zeros(3, np.float32)}, file)
    with pytest.raises(ValueError, match=r"unknown tensors \['backbone.layers.0.mixer.extra'\], missing \[\]"):
        load_mamba2(folder)
    save_file({n: x for n, x in tensors.items() if n != "backbone.layers.1.mixer.D"}, file)
    with pytest.raises(ValueError, match=r"missing \['backbone.layers.1.mixer.D'\]"):
        load_mamba2(folder)
    save_file(tensors | {"backbone.norm_f.weight": np.zeros(3, np.float32)}, file)
    with pytest.raises(ValueError, match=r"'backbone.norm_f.weight': \(\(3,\), \(32,\)\)"):
        load_mamba2(folder)
    save_file(tensors | {"lm_head.weight": tensors["backbone.embeddings.weight"] + 1}, file)
    with pytest.raises(ValueError, match="lm_head.weight differs from the embedding"):
        load_mamba2(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no \*.safetensors"):
        load_mamba2(folder)


def test_files_that_lie_are_named_before_a_tensor_is_read(folder):
    file, tensors = folder / "model.safetensors", load_file(folder / "model.safetensors")
    stale = folder / "old.safetensors"
    save_file({"backbone.norm_f.weight": 2 * tensors["backbone.norm_f.weight"]}, stale)
    with pytest.raises(ValueError, match="backbone.norm_f.weight is in .*model.safetensors and in .*old.safetensors"):
        load_mamba2(str(folder))
    stale.unlink()
    os.mkfifo(stale)  # to open it would wait for a writer for ever
    with pytest.raises(ValueError, match="old.safetensors is no regular file"):
        load_mamba2(folder)
    stale.unlink()
    save_file(
        {n: x for n, x in tensors.items() if n != "backbone.embeddings.weight"}
        | {"lm_head.weight": 1.0 * tensors["backbone.embeddings.weight"]},
        file,
    )
    with pytest.raises(ValueError, match=r"missing \['backbone.embeddings.weight'\]"):
        load_mamba2(folder)
    save_file(tensors | {"backbone.norm_f.weight": np.full(32, np.nan, np.float32)}, file)
    with pytest.raises(ValueError, match=r"values that are not finite: \['backbone.norm_f.weight'\]"):
        load_mamba2(folder)
    for damaged in (b"", b"\xff" * 100, (GOLDEN / "mamba2.safetensors").read_bytes()[:-7]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="model.safetensors cannot be read"):
            load_mamba2(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**8}, "asks for 100000000 layers, and .* has only"),
        ({"num_hidden_layers": 0}, "num_hidden_layers .* must be an integer, at least 1, got 0"),
        ({"hidden_size": 32.0}, "hidden_size .* must be an integer, at least 1, got 32.0"),
        ({"vocab_size": "9"}, "vocab_size .* must be an integer, at least 1, got '9'"),
        ({"head_dim": True}, "head_dim .* must be an integer, at least 1, got True"),
        ({"n_groups": None}, "n_groups .* must be an integer, at least 1, got None"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon .* must be above 0 and finite, got nan"),
        ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon .* must be above 0 and finite, got -1e-05"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon .* must be above 0 and finite, got '1e-5'"),
    ],
)
def test_a_config_out_of_range_is_named(folder, change, message):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_mamba2(folder)


@pytest.mark.parametrize(("text", "message"), [("{", "is no JSON"), ("[]", "must hold a JSON object, got list")])
def test_a_config_that_is_none_is_named(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_mamba2(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        load_mamba2(folder)


def test_tokens_outside_the_vocabulary_are_named_or_nan(folder, unchecked):
    params, model = load_mamba2(folder)
    state, A = model.stack.init_state(), model.vocabulary
    for bad in (A, -1):
        with pytest.raises(ValueError, match=f"token_BxT must be from 0 to {A - 1}, got {bad}"):
            model.apply(params, state, jnp.array([[1, 2], [1, bad]]))
        with pytest.raises(ValueError, match=f"token_B must be from 0 to {A - 1}, got {bad}"):
            model.step(params, state, model.stack.init_cache(2), jnp.array([1, bad]))
        logits_BxTxA, _ = jax.jit(model.apply)(params, state, jnp.array([[1, 2], [1, bad]]))
        assert np.all(np.isfinite(logits_BxTxA[0])) and np.all(np.isnan(logits_BxTxA[1, 1]))
    with pytest.raises(TypeError, match="token_B must be integers, got float32"):
        model.step(params, state, model.stack.init_cache(1), jnp.ones(1))


@pytest.mark.parametrize(
    "change", [{"hidden_act": "gelu"}, {"use_bias": True}, {"time_step_limit": [0.01, 0.1]}, {"model_type": "mamba"}]
)
def test_settings_this_model_does_not_have_are_errors(folder, change):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=f"asks for .*{next(iter(change))}"):
        load_mamba2(folder)


def test_infinity_is_read_however_it_is_written_and_a_tied_head_is_fine(folder):
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"time_step_limit": [0.0, float("inf")]}))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["backbone.embeddings.weight"]}, folder / "model.safetensors")
    params, _ = load_mamba2(folder)
    np.testing.assert_array_equal(params.token_AxD, tensors["backbone.embeddings.weight"])
