"""Kernels with a plan: attention that does no work for what a router skipped."""

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

__all__ = [
    "SkipPlan",
    "make_plan",
    "on_ladder",
    "read_cache",
    "resolve",
    "skip_attention",
    "skip_attention_compact",
    "write_cache",
]
