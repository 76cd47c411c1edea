"""Wrong arguments and settings are refused by our own code, by name: no compiler trace, no NaN, no wrong number."""

import dataclasses
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest
from layer_cases import LAYERS, sequence
from wrong import of_array, of_scalar, refusal

import cram_jax
from cram_jax import kernels
from cram_jax.functional import layer as contract

B, T, H, G, K, V = 2, 8, 4, 2, 3, 5


def settings() -> list[type]:
    """Every dataclass of settings: those whose name ends in Config."""
    packages = (cram_jax.functional, cram_jax.training, cram_jax.tasks)
    names = [m.name for p in packages for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    found = {cls for name in names for cls in vars(importlib.import_module(name)).values() if isinstance(cls, type)}
    ours = [cls for cls in found if cls.__module__ in names and cls.__name__.endswith("Config")]
    return sorted(filter(dataclasses.is_dataclass, ours), key=lambda cls: cls.__name__)


# What looks wrong, and is not: offsets of either sign, seeds, and None where it means "not limited" or "the default".
FREE = {"write_bias", "need_bias", "drive", "frequency", "table_seed"}
SETTINGS = [
    pytest.param(cls, field.name, value, id=f"{cls.__name__}.{field.name}: {why}")
    for cls in settings()
    for field in dataclasses.fields(cls)
    for why, value in of_scalar(getattr(cls(), field.name)).items()
    if not (why == "negative" and field.name in FREE) and not (why == "none" and getattr(cls(), field.name) is None)
]


@pytest.mark.parametrize(("cls", "name", "value"), SETTINGS)
def test_a_wrong_setting_is_named(cls, name, value, unchecked):
    said, _ = refusal(cls, {}, name, value)
    assert not said


def test_all_settings_are_there():
    assert len(settings()) >= 20 and {"CRAMConfig", "RunConfig", "StreamsConfig"} <= {c.__name__ for c in settings()}


def floats(*shape: int) -> jax.Array:
    return 0.1 + jnp.arange(1, 1 + jnp.prod(jnp.array(shape)), dtype=jnp.float32).reshape(shape) / 100


MARKS, NUMBERS = jnp.ones((B, T), bool), jnp.zeros((B, T), jnp.int32)
SCANNED = {"q_BxTxGxK": floats(B, T, G, K), "k_BxTxGxK": floats(B, T, G, K), "v_BxTxHxV": floats(B, T, H, V)}
SCAN = {"scale": 0.5, "segment_BxT": NUMBERS, "backend": "xla"}
RATES = {"rate_H": floats(H), "prior_H": floats(H)}
CALLS = {
    "make_plan": {
        "routed_BxT": MARKS, "kept_BxT": MARKS, "score_BxT": floats(B, T), "segment_BxT": NUMBERS,
        "window": 3, "memory": 3, "capacity": 4, "kept_capacity": 4,
    },
    "skip_attention": {
        "q_BxTxHxK": floats(B, T, H, K), "k_BxTxGxK": floats(B, T, G, K), "v_BxTxGxV": floats(B, T, G, V),
        "scale": 0.5, "backend": "xla",
    },
    "skip_attention_compact": {
        "q_BxCxHxK": floats(B, T, H, K), "k_BxSxGxK": floats(B, T, G, K), "v_BxSxGxV": floats(B, T, G, V),
        "scale": 0.5, "backend": "xla",
    },
    "ssd_scan": SCANNED | SCAN | {"log_decay_BxTxH": -floats(B, T, H), "state": floats(B, H, V, K), "chunk": 4},
    "palimpsa_scan": SCANNED | SCAN | RATES | {
        "beta_BxTxHxV": floats(B, T, H, V), "dt_BxTxH": floats(B, T, H), "chunk": 4,
    },
    "shared_importance_scan": SCANNED | SCAN | RATES | {"beta_BxTxH": floats(B, T, H), "dt_BxTxH": floats(B, T, H)},
    "read_cache": {
        "q_BxHxK": floats(B, H, K), "k_NxSxK": floats(B * G, T, K), "v_NxSxV": floats(B * G, T, V),
        "end_B": jnp.array([3, 4]), "scale": 0.5,
    },
    "write_cache": {
        "cache_NxSxX": floats(B * G, T, K), "new_BxGxX": floats(B, G, K), "place_B": jnp.array([3, 4]),
    },
    "segment_starts": {"segment_BxT": NUMBERS},
    "segment_firsts": {"segment_BxT": NUMBERS},
    "resolve": {"backend": "auto", "rows": 8, "keys": 8},
}  # fmt: skip
NO_LIMIT = ("window", "memory", "capacity", "kept_capacity", "scale", "chunk")  # or the default, if None
# Sizes that nothing else fixes: values of a head, slots of a cache, and the only array there is
FIT = {("v_BxTxGxV", 3), ("v_BxSxGxV", 3), ("v_NxSxV", 2), ("cache_NxSxX", 1)}
ARGUMENTS = [
    pytest.param(call, name, wrong, id=f"{call}, {name}: {why}")
    for call, arguments in CALLS.items()
    for name, value in arguments.items()
    for why, wrong in (of_array(value) if isinstance(value, jax.Array) else of_scalar(value)).items()
    if not (why == "none" and name in NO_LIMIT)
    and not (why.startswith("one less on") and (name, int(why[-1]) if why[-1].isdigit() else 0) in FIT)
    and not (call, name, why) == ("shared_importance_scan", "v_BxTxHxV", "one less on axis 3")
    and not (call.startswith("segment_") and why.startswith("one less on"))
]


@pytest.mark.parametrize(("call", "name", "value"), ARGUMENTS)
def test_a_wrong_argument_is_named(call, name, value, unchecked):
    plan = {"plan": kernels.make_plan(MARKS)} if call.startswith("skip_attention") else {}
    said, _ = refusal(getattr(kernels, call), CALLS[call] | plan, name, value)
    assert not said


GIVEN = dict(zip(("x_BxTxD", "gap_BxT"), sequence(), strict=True))
GIVEN |= {"segment_BxT": jnp.zeros(GIVEN["gap_BxT"].shape, int)}
TOKENS = [
    pytest.param(cfg, name, wrong, id=f"{layer}, {name}: {why}")
    for layer, cfg in LAYERS.items()
    for name, value in GIVEN.items()
    for why, wrong in of_array(value).items()
    # Fewer tokens mean that there are too many gaps, and whole numbers are gaps, too
    if not (name == "x_BxTxD" and why in ("one less on the first axis", "one less on axis 1"))
    and not (name == "gap_BxT" and why == "as int32")
]


@pytest.mark.parametrize(("cfg", "name", "value"), TOKENS)
def test_wrong_tokens_gaps_and_segments_are_named(cfg, name, value, unchecked):
    call = lambda x_BxTxD, **more: contract.apply((), (), x_BxTxD, cfg=cfg, **more)
    said, _ = refusal(call, GIVEN, name, value)
    assert not said


def test_there_are_three_hundred_cases_and_more():
    assert len(SETTINGS) + len(ARGUMENTS) + len(TOKENS) > 900
