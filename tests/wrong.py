"""Wrong arguments, made from right ones: each must be refused by our own code, in a message that names the argument."""

import dataclasses
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp

ROOT = Path(__file__).parents[1]
OURS = [str(ROOT / folder) for folder in ("cram_jax", "kernels")]
NAN, INF = float("nan"), float("inf")


def of_scalar(value) -> dict[str, object]:
    """Wrong values, by what is wrong with them, for a setting or an argument that is no array."""
    if isinstance(value, bool):
        return {"text": "yes", "number": 2}
    if isinstance(value, int):
        return {"negative": -1, "fraction": 1.5, "text": "three", "nan": NAN, "none": None}
    if isinstance(value, float):
        return {"nan": NAN, "infinite": INF, "text": "x", "none": None}
    if isinstance(value, str):
        return {"unknown": "nonsense", "number": 3}
    if dataclasses.is_dataclass(value):
        return {"none": None, "number": 3, "another": Another()}
    return {"an object": object()}


@dataclasses.dataclass(frozen=True)
class Another:
    """Settings of nothing."""


def of_array(x: jax.Array) -> dict[str, jax.Array]:
    """The same for an array: numbers of other kinds, and other shapes."""
    kinds = [kind for kind in (jnp.float32, jnp.int32, jnp.bool_) if not jnp.issubdtype(x.dtype, kind)]
    wrong = {f"as {kind.__name__}": x.astype(kind) for kind in kinds}
    wrong |= {"an axis less": x[0], "an axis more": x[None], "one less on the first axis": x[:-1]}
    for axis in range(1, x.ndim):
        wrong[f"one less on axis {axis}"] = jnp.delete(x, 0, axis=axis)
    return wrong


def refusal(call, arguments: dict, name: str, value) -> tuple[str, Exception | None]:
    """(what is wrong with what happened, the error); "" if our own code refused the value by name."""
    try:
        call(**arguments | {name: value})
    except (ValueError, TypeError) as error:
        raised = traceback.extract_tb(error.__traceback__)[-1].filename
        if not any(raised.startswith(folder) for folder in OURS):
            return f"raised in {raised}: {error}", error
        return "" if name in str(error) else f"does not name {name}: {error}", error
    except Exception as error:
        return f"{type(error).__name__}: {error}", error
    return "accepted", None
