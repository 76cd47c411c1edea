"""Loads Mamba-2 language models from a Hugging Face folder: `config.json` and `model.safetensors`."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from cram_jax.functional.mamba2 import Mamba2Config, Mamba2Params
from cram_jax.functional.recurrence import Decay
from cram_jax.models.language import LanguageModel, LanguageParams
from cram_jax.models.stack import Stack

EMBEDDING, LAST_NORM, HEAD = "backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight"
# Settings that are numbers of something
COUNTS = (
    "hidden_size", "num_heads", "head_dim", "state_size", "n_groups", "conv_kernel", "vocab_size", "num_hidden_layers",
)  # fmt: skip
# Tensors of a layer: (our name, how to transform the stored tensor).
TENSORS = {
    "norm.weight": ("norm_D", lambda x: x),
    "mixer.in_proj.weight": ("in_DxX", lambda x: x.T),
    "mixer.conv1d.weight": ("conv_WxX", lambda x: x[:, 0].T),
    "mixer.conv1d.bias": ("conv_bias_X", lambda x: x),
    "mixer.A_log": ("log_rate_H", lambda x: x),
    "mixer.dt_bias": ("bias_H", lambda x: x),
    "mixer.D": ("skip_H", lambda x: x),
    "mixer.norm.weight": ("out_norm_X", lambda x: x),
    "mixer.out_proj.weight": ("out_XxD", lambda x: x.T),
}


def load_mamba2(folder: str | Path, *, grouped_norm: bool = True) -> tuple[LanguageParams, LanguageModel]:
    """Returns (params, model) of a pretrained Mamba-2.

    Args:
      folder: folder with `config.json`, and `model.safetensors` or several `*.safetensors`.
      grouped_norm: whether the gated norm normalises each group separately, as mamba_ssm does, and Hugging Face's code
        since version 5.23. Older versions normalise all groups together. With one group there is no difference.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file cannot be read, the config asks for what this model does not have, or a tensor is unknown,
        missing, of a wrong shape, in two files, or not finite.
    """
    folder = Path(folder)
    model = _model(_settings(folder / "config.json"), grouped_norm)
    found = _headers(folder)
    (cfg,), depth = model.stack.layers, model.stack.depth
    tied = {HEAD: (model.vocabulary, cfg.D)} if HEAD in found else {}
    wanted = tied | {EMBEDDING: (model.vocabulary, cfg.D), LAST_NORM: (cfg.D,)}
    if depth > len(found):  # before as many names are made
        raise ValueError(f"the config asks for {depth} layers, and {folder} has only {len(found)} tensors")
    wanted |= {f"backbone.layers.{i}.{n}": shape for i in range(depth) for n, shape in _shapes(cfg).items()}
    if set(found) != set(wanted):
        raise ValueError(
            f"the tensors in {folder} do not fit its config: unknown tensors {sorted(set(found) - set(wanted))}, "
            f"missing {sorted(set(wanted) - set(found))}"
        )
    wrong = {n: (one.shape, wanted[n]) for n, one in found.items() if one.shape != wanted[n]}
    if wrong:
        raise ValueError(f"tensors in {folder} have wrong shapes for its config: (found, expected) {wrong}")
    tensors = {name: _tensor(one) for name, one in found.items()}
    if bad := [name for name, tensor in tensors.items() if not np.all(np.isfinite(tensor))]:
        raise ValueError(f"tensors in {folder} have values that are not finite: {bad}")
    if tied and not np.array_equal(tensors[HEAD], tensors[EMBEDDING]):
        raise ValueError("lm_head.weight differs from the embedding, but the read-out is tied to it here")
    stacked = {
        ours: jnp.stack([turn(tensors[f"backbone.layers.{i}.{name}"]) for i in range(depth)])
        for name, (ours, turn) in TENSORS.items()
    }
    decay = Decay(stacked.pop("log_rate_H"), stacked.pop("bias_H"))
    layers = Mamba2Params(**stacked, decay=decay, importance=())
    return LanguageParams(jnp.asarray(tensors[EMBEDDING]), (layers,), jnp.asarray(tensors[LAST_NORM])), model


def _model(settings: dict, grouped_norm: bool) -> LanguageModel:
    low, high = (math.inf if isinstance(x, dict) else float(x) for x in settings.get("time_step_limit", (0, math.inf)))
    # The only settings that this model supports
    fixed = {"model_type": "mamba2", "hidden_act": "silu", "use_bias": False, "use_conv_bias": True}
    other = {n: settings.get(n, value) for n, value in fixed.items() if settings.get(n, value) != value}
    if (low, high) != (0.0, math.inf):
        other["time_step_limit"] = settings["time_step_limit"]
    if other:
        raise ValueError(f"the config asks for {other}; supported is {fixed | {'time_step_limit': (0.0, math.inf)}}")
    groups = settings["n_groups"]
    layer = Mamba2Config(
        D=settings["hidden_size"],
        heads=settings["num_heads"],
        head_dim=settings["head_dim"],
        state=settings["state_size"],
        groups=groups,
        conv=settings["conv_kernel"],
        norm_groups=groups if grouped_norm else 1,
        epsilon=settings["layer_norm_epsilon"],
    )
    return LanguageModel(
        settings["vocab_size"], Stack((layer,), settings["num_hidden_layers"]), settings["layer_norm_epsilon"]
    )


def _shapes(cfg: Mamba2Config) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's stored tensors."""
    return {
        "norm.weight": (cfg.D,),
        "mixer.in_proj.weight": (cfg.inner + cfg.convolved + cfg.heads, cfg.D),
        "mixer.conv1d.weight": (cfg.convolved, 1, cfg.conv),
        "mixer.conv1d.bias": (cfg.convolved,),
        "mixer.A_log": (cfg.heads,),
        "mixer.dt_bias": (cfg.heads,),
        "mixer.D": (cfg.heads,),
        "mixer.norm.weight": (cfg.inner,),
        "mixer.out_proj.weight": (cfg.D, cfg.inner),
    }


def _settings(path: Path) -> dict:
    """Reads the config, and checks that what the model is built from is there and in range.

    Raises:
      FileNotFoundError: if there is no such file. ValueError: for anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, or no regular file")
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(settings).__name__}")
    for name in COUNTS:
        value = settings.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} in {path} must be an integer, at least 1, got {value!r}")
    epsilon = settings.get("layer_norm_epsilon")
    if not isinstance(epsilon, int | float) or not 0 < epsilon < math.inf:
        raise ValueError(f"layer_norm_epsilon in {path} must be above 0 and finite, got {epsilon!r}")
    return settings


class _Stored(NamedTuple):
    """Attributes: file; name of the tensor there; shape."""

    file: Path
    name: str
    shape: tuple[int, ...]


def _headers(folder: Path) -> dict[str, _Stored]:
    """Where each tensor is, by our name for it. Tensors themselves are not read.

    Raises:
      FileNotFoundError: if there are no files. ValueError: if one cannot be read, or two have a tensor of one name.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors")
    found: dict[str, _Stored] = {}
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is no regular file")
        try:
            with safe_open(file, framework="flax") as opened:
                stored = [_Stored(file, name, tuple(opened.get_slice(name).get_shape())) for name in opened.keys()]
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        for one in stored:
            # Some files say "embedding" instead of "embeddings"
            ours = one.name.replace("backbone.embedding.", "backbone.embeddings.")
            if ours in found:
                raise ValueError(f"{ours} is in {found[ours].file} and in {file}; take the stale file away")
            found[ours] = one
    return found


def _tensor(one: _Stored) -> np.ndarray:
    with safe_open(one.file, framework="flax") as opened:
        return np.asarray(opened.get_tensor(one.name).astype(jnp.float32))
