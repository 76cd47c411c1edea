"""Kernels: attention that computes only what a plan selects, and scans over a recurrent state."""

from .backends import NotSupported
from .common import segment_firsts, segment_starts
from .meshes import varying_like
from .palimpsa import PalimpsaState, palimpsa_scan, shared_importance_scan
from .skip_attention import (
    SkipPlan,
    in_buckets,
    in_smallest,
    make_plan,
    read_cache,
    resolve,
    skip_attention,
    skip_attention_compact,
    write_cache,
)
from .ssd import ssd_scan

__all__ = [
    "NotSupported",
    "PalimpsaState",
    "SkipPlan",
    "in_buckets",
    "in_smallest",
    "make_plan",
    "palimpsa_scan",
    "read_cache",
    "resolve",
    "segment_firsts",
    "segment_starts",
    "shared_importance_scan",
    "skip_attention",
    "skip_attention_compact",
    "ssd_scan",
    "varying_like",
    "write_cache",
]
