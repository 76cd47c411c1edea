"""Checks of configurations, which all have: kinds of fields from their annotations, and ranges."""

import dataclasses
import functools
import math
import numbers
import types
import typing
from typing import Any, Literal


def check_fields(cfg) -> None:
    """Checks that each field of a configuration is what its annotation says, and numbers are finite.

    Raises:
      TypeError, ValueError: if not. The message names the field and its value.
    """
    for name, kind in _kinds(type(cfg)).items():
        value, where = getattr(cfg, name), f"{type(cfg).__name__}.{name}"
        if not _is(value, kind):
            raise TypeError(f"{where} must be {_said(kind)}, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where} must be finite, got {value}")


@functools.cache
def _kinds(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


NUMBERS = {int: numbers.Integral, float: numbers.Real}


def _is(value, kind) -> bool:
    """Whether a value is what a type annotation says. A whole number is a float, too, and True is no number."""
    of, inner = typing.get_origin(kind), typing.get_args(kind)
    if of in (typing.Union, types.UnionType):
        return any(_is(value, one) for one in inner)
    if of is Literal:
        return value in inner
    if of is tuple:
        each = inner[:1] * len(value) if isinstance(value, tuple) and inner[-1] is ... else inner
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_is, value, each))
    if kind in NUMBERS:
        return isinstance(value, NUMBERS[kind]) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


def _said(kind) -> str:
    if kind in NUMBERS:
        return "a whole number" if kind is int else "a number"
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def check_at_least_one(cfg, *names: str) -> None:
    """Raises ValueError, naming the field, if one of these fields of a configuration is below 1."""
    for name in names:
        if getattr(cfg, name) < 1:
            raise ValueError(f"{type(cfg).__name__}.{name} must be at least 1, got {getattr(cfg, name)}")


def check_not_negative(cfg, *names: str) -> None:
    """Raises ValueError, naming the field, if one of these fields of a configuration is below 0."""
    for name in names:
        if getattr(cfg, name) < 0:
            raise ValueError(f"{type(cfg).__name__}.{name} must be at least 0, got {getattr(cfg, name)}")


def check_shares(cfg, *names: str) -> None:
    """Raises ValueError, naming the field, unless these fields of a configuration are between 0 and 1."""
    for name in names:
        if not 0 <= getattr(cfg, name) <= 1:
            raise ValueError(f"{type(cfg).__name__}.{name} must be a share between 0 and 1, got {getattr(cfg, name)}")


COMPUTE_DTYPES = ("float32", "bfloat16")


def check_compute_dtype(dtype: str | None) -> None:
    """Raises ValueError unless `dtype` is None or one of COMPUTE_DTYPES."""
    if dtype is not None and dtype not in COMPUTE_DTYPES:
        raise ValueError(
            f"compute_dtype must be one of {COMPUTE_DTYPES}, or None for that of the tokens, got {dtype!r}"
        )
