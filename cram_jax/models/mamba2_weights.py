"""Loads Mamba-2 language models from a Hugging Face folder: `config.json` and `model.safetensors`."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from cram_jax.functional.mamba2 import Mamba2Config, Mamba2Params
from cram_jax.functional.recurrence import Decay
from cram_jax.models.language import LanguageModel, LanguageParams
from cram_jax.models.stack import Stack

EMBEDDING, LAST_NORM = "backbone.embeddings.weight", "backbone.norm_f.weight"
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
      ValueError: if the config asks for what this model does not have, or a tensor is unknown, missing or of a wrong
        shape.
    """
    folder = Path(folder)
    settings = json.loads((folder / "config.json").read_text())
    model = _model(settings, grouped_norm)
    tensors = _tensors(folder)
    (cfg,), depth = model.stack.layers, model.stack.depth
    if "lm_head.weight" in tensors and not np.array_equal(tensors.pop("lm_head.weight"), tensors[EMBEDDING]):
        raise ValueError("lm_head.weight differs from the embedding, but the read-out is tied to it here")
    wanted = {EMBEDDING: (model.vocabulary, cfg.D), LAST_NORM: (cfg.D,)}
    wanted |= {f"backbone.layers.{i}.{n}": shape for i in range(depth) for n, shape in _shapes(cfg).items()}
    if set(tensors) != set(wanted):
        raise ValueError(
            f"the tensors in {folder} do not fit its config: unknown tensors {sorted(set(tensors) - set(wanted))}, "
            f"missing {sorted(set(wanted) - set(tensors))}"
        )
    wrong = {n: (x.shape, wanted[n]) for n, x in tensors.items() if x.shape != wanted[n]}
    if wrong:
        raise ValueError(f"tensors in {folder} have wrong shapes for its config: (found, expected) {wrong}")
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


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors")
    tensors = {}
    for file in files:
        with safe_open(file, framework="flax") as opened:
            # Some files say "embedding" instead of "embeddings"
            names = {n: n.replace("backbone.embedding.", "backbone.embeddings.") for n in opened.keys()}
            tensors |= {ours: np.asarray(opened.get_tensor(n).astype(jnp.float32)) for n, ours in names.items()}
    return tensors
