"""Kernels: attention over a plan, which does no work for what a router skipped, and the recurrent scans."""

from .palimpsa import PalimpsaState, palimpsa_scan, shared_importance_scan
from .skip_attention import (
    SkipPlan,
    make_plan,
    on_ladder,
    read_cache,
    resolve,
    skip_attention,
    skip_attention_compact,
    write_cache,
)
from .ssd import ssd_scan

__all__ = [
    "PalimpsaState",
    "SkipPlan",
    "make_plan",
    "on_ladder",
    "palimpsa_scan",
    "read_cache",
    "resolve",
    "shared_importance_scan",
    "skip_attention",
    "skip_attention_compact",
    "ssd_scan",
    "write_cache",
]


def segment_starts(segment_BxT):
    import jax.numpy as jnp

    return jnp.diff(segment_BxT, axis=1, prepend=segment_BxT[:, :1]) != 0


def in_buckets(f, plan, *arrays, sizes):
    return on_ladder(f, plan, *arrays, rungs=tuple((round(1 / a), round(1 / b)) for a, b in sizes))
