"""Checks of arguments: kinds of numbers, shapes from names, and sizes."""

import numbers

import jax
import jax.numpy as jnp

KINDS = {
    jnp.bool_: "marks, True or False (compare numbers first, as in x > 0)",
    jnp.integer: "integers",
    jnp.floating: "floating point",
}


def check_kinds(kind, **arrays: jax.Array | None) -> None:
    """Raises TypeError unless the dtypes are of this kind: jnp.bool_, jnp.integer or jnp.floating. None is left out."""
    for name, array in arrays.items():
        if array is not None and not jnp.issubdtype(array.dtype, kind):
            raise TypeError(f"{name} must be {KINDS[kind]}, got {array.dtype}")


def check_shapes(**arrays: jax.Array | None) -> dict[str, int]:
    """Checks that each array has the axes in its name, as in q_BxTxHxK, and equal letters stand for equal sizes.

    Returns:
      The size of each axis. An array that is None is left out.

    Raises:
      ValueError: if not. The message names the first array that does not fit those before it.
    """
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        if array is None:
            continue
        axes = name.rpartition("_")[2].split("x")
        fits = len(axes) == array.ndim and all(
            sizes.get(axis, size) == size for axis, size in zip(axes, array.shape, strict=True)
        )
        if not fits:
            others = ", ".join(f"{axis}={size}" for axis, size in sizes.items() if axis in axes)
            said = f" with {others}, as {', '.join(n for n in arrays if n != name)} have it" if others else ""
            raise ValueError(f"{name} must have shape ({', '.join(axes)}){said}, got {array.shape}")
        sizes |= dict(zip(axes, array.shape, strict=True))
    return sizes


def check_whole(least: int = 1, **given: int | None) -> None:
    """Raises TypeError unless these are whole numbers or None, ValueError if one is below the least that may be."""
    for name, number in given.items():
        if number is not None and (isinstance(number, bool) or not isinstance(number, numbers.Integral)):
            raise TypeError(f"{name} must be a whole number, or None, got {number!r}")
        if number is not None and number < least:
            raise ValueError(f"{name} must be at least {least} (or None), got {number}")
