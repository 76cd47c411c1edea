"""Kernels with a plan: attention that does no work for what a router skipped."""

from .skip_attention import *  # noqa: F403
from .skip_attention import __all__ as __all__
