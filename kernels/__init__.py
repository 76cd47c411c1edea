"""Kernels with a plan: attention that does no work for what a router skipped."""

from .skip_attention import SkipPlan, make_plan, on_ladder, one_row, resolve, skip_attention, skip_attention_compact

__all__ = ["SkipPlan", "make_plan", "on_ladder", "one_row", "resolve", "skip_attention", "skip_attention_compact"]
