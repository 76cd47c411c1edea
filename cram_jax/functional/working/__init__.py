"""Working memory: cheap local dynamics (CRAM, Eq 2), and recurrent bodies behind the same signature.

A body is one file of this folder, listed in BODIES. It has the functions of `Body`.
"""

import dataclasses
import importlib
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float, Gap, Gaps, Key, Segments, Token, Tokens
from cram_jax.functional.checks import check_at_least_one, check_fields

BODIES = (
    "ct_ode",  # carries nothing: Euler steps of the paper's gap-gated dynamics, for each event by itself
    "gated_scan",  # W numbers: a gated linear recurrence whose decay follows the time gap
    "ssd",  # 16 W numbers: a matrix a head, written by keys and values
    "palimpsa",  # 32 W numbers: the same with an importance for each
)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class WorkingConfig:
    """body: one of BODIES.
    width: W, numbers that are read from the state.
    steps: Euler steps K of ct_ode over one unit of time; other bodies ignore it.
    """

    body: str = "ct_ode"
    width: int = 64
    steps: int = 2

    def __post_init__(self):
        check_fields(self)
        if self.body not in BODIES:
            raise ValueError(f"working memory body must be one of {BODIES}, got {self.body!r}")
        check_at_least_one(self, "width", "steps")
        body(self).numbers(self)


@runtime_checkable
class Body(Protocol):
    """What the file of a body defines."""

    def init(self, key: Key, D: int, cfg: WorkingConfig) -> Any:
        """Parameters, a NamedTuple."""

    def numbers(self, cfg: WorkingConfig) -> int:
        """Numbers that are carried from token to token. Raises ValueError for a width it cannot have."""

    def apply(self, params, x_BxTxD: Tokens, gap_BxT: Gaps, segment_BxT: Segments | None, cfg: WorkingConfig):
        """Whole sequences: (f_CT = W_o h + x, the dynamics h (B T W)), causal."""

    def step(self, params, cache_BxN: Array, x_BxD: Token, gap_B: Gap, cfg: WorkingConfig):
        """One token: (f_CT, cache, h); equals `apply` at that position."""

    def operations(self, D: int, cfg: WorkingConfig) -> int:
        """Operations a token, forward."""


def body(cfg: WorkingConfig) -> Body:
    """The file of the configured body."""
    return importlib.import_module(f"{__name__}.{cfg.body}")


def init(key: Key, D: int, cfg: WorkingConfig):
    """Fresh parameters of the body."""
    return body(cfg).init(key, D, cfg)


def init_cache(cfg: WorkingConfig, batch: int) -> Float[Array, "B N"]:
    """What the body carries from token to token; N = 0 for a body that carries nothing."""
    return jnp.zeros((batch, body(cfg).numbers(cfg)))


def apply(
    params, x_BxTxD: Tokens, gap_BxT: Gaps, segment_BxT: Segments | None, cfg: WorkingConfig
) -> tuple[Tokens, Float[Array, "B T"]]:
    """Whole sequences: (f_CT, root mean square of the dynamics h), causal (Eq 2)."""
    f_BxTxD, h_BxTxW = body(cfg).apply(params, x_BxTxD, gap_BxT, segment_BxT, cfg)
    return f_BxTxD, _magnitude(h_BxTxW)


def step(
    params, cache_BxN: Float[Array, "B N"], x_BxD: Token, gap_B: Gap, cfg: WorkingConfig
) -> tuple[Token, Float[Array, "B N"], Float[Array, "B"]]:
    """One token: (f_CT, cache, magnitude); equals `apply` at that position."""
    f_BxD, cache_BxN, h_BxW = body(cfg).step(params, cache_BxN, x_BxD, gap_B, cfg)
    return f_BxD, cache_BxN, _magnitude(h_BxW)


def operations(D: int, cfg: WorkingConfig) -> int:
    """Operations a token, forward."""
    return body(cfg).operations(D, cfg)


def _magnitude(h: Float[Array, "... W"]) -> Float[Array, "..."]:
    return jnp.sqrt(jnp.mean(h**2, axis=-1) + 1e-12)
