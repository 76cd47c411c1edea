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
