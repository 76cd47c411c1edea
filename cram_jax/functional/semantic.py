"""Semantic memory: a small parametric stand-in for episodic retrieval (CRAM, Eq 4 and 5)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float, Key, Marks, Scalar, Tokens
from cram_jax.functional.checks import check_fields
from cram_jax.functional.common import normal, total, wide


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SemanticConfig:
    """rank: hidden units R. The paper's D/16 cannot hold 100 random values at width 64; twice the width can. With 0 the
    memory recalls the same vector for every token.
    """

    rank: int = 128

    def __post_init__(self):
        check_fields(self)
        if self.rank < 0:
            raise ValueError(f"rank must be at least 0, got {self.rank}")


class SemanticParams(NamedTuple):
    """Attributes:
    down_DxR, bias_R: W_down, from the token to hidden units.
    up_RxD, mean_D: W_up, from hidden units to what a retrieval would have returned.
    """

    down_DxR: Float[Array, "D R"]
    bias_R: Float[Array, "R"]
    up_RxD: Float[Array, "R D"]
    mean_D: Float[Array, "D"]


def init(key: Key, D: int, cfg: SemanticConfig) -> SemanticParams:
    """Hidden units at unit variance; before training the memory recalls zero."""
    return SemanticParams(normal(key, (D, cfg.rank), D), jnp.zeros(cfg.rank), jnp.zeros((cfg.rank, D)), jnp.zeros(D))


def recall(params: SemanticParams, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """W_up ReLU(W_down x), biases included: what the memory believes attention would return (Eq 4)."""
    return jax.nn.relu(x @ params.down_DxR + params.bias_R) @ params.up_RxD + params.mean_D


def distillation(recalled_BxTxD: Tokens, retrieved_BxTxD: Tokens, retrieved_BxT: Marks, sigma2: Scalar) -> Scalar:
    """Sum of |recall - retrieval|^2 / sigma^2 over tokens that retrieved, gradient into the memory only (Eq 5).

    The division is ours: it makes the weight gamma of this loss mean the same in every layer and at every time.

    Tokens that did not retrieve carry no information; whatever stands in their row of `retrieved_BxTxD`, NaN
    included, is not looked at.
    """
    target_BxTxD = jax.lax.stop_gradient(jnp.where(retrieved_BxT[..., None], retrieved_BxTxD, 0))
    squared_error_BxT = jnp.sum((wide(recalled_BxTxD) - wide(target_BxTxD)) ** 2, axis=-1)
    return total(squared_error_BxT, where=retrieved_BxT) / sigma2
