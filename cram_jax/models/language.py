"""A language model around a stack of layers: embedding before, norm and the same embedding after."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float, Int, Key, Segments
from cram_jax.functional.common import check_at_least_one, rms_norm
from cram_jax.models.stack import Stack


class LanguageParams(NamedTuple):
    """Attributes: the embedding of A tokens, the layers' parameters, and the last norm."""

    token_AxD: Float[Array, "A D"]
    layers: tuple
    norm_D: Float[Array, "D"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """vocabulary: A. stack: the layers, whose residual is that of the tokens. epsilon: of the last norm."""

    vocabulary: int
    stack: Stack
    epsilon: float = 1e-5

    def __post_init__(self):
        check_at_least_one(self, "vocabulary")

    def init(self, key: Key) -> LanguageParams:
        """Embeddings at the paper's 0.02."""
        token, layers = jax.random.split(key)
        D = self.stack.D
        return LanguageParams(
            0.02 * jax.random.normal(token, (self.vocabulary, D)), self.stack.init(layers), jnp.ones(D)
        )

    def _read_out(self, params: LanguageParams, y: Float[Array, "... D"]) -> Float[Array, "... A"]:
        return rms_norm(params.norm_D, y, self.epsilon) @ params.token_AxD.T

    def apply(
        self,
        params: LanguageParams,
        states,
        token_BxT: Int[Array, "B T"],
        *,
        key: Key | None = None,
        train: bool = False,
        segment_BxT: Segments | None = None,
    ):
        """(logits_BxTxA, the layers' aux) of whole sequences.

        Raises:
          TypeError: for tokens that are not integers.
        """
        if not jnp.issubdtype(token_BxT.dtype, jnp.integer):
            raise TypeError(f"token_BxT must be integers, got {token_BxT.dtype}")
        x_BxTxD = params.token_AxD[token_BxT]
        y_BxTxD, aux = self.stack.apply(params.layers, states, x_BxTxD, key=key, train=train, segment_BxT=segment_BxT)
        return self._read_out(params, y_BxTxD), aux

    def step(self, params: LanguageParams, states, caches, token_B: Int[Array, "B"], *, key: Key | None = None):
        """(logits_BxA, caches, aux) of one token, streaming."""
        y_BxD, caches, aux = self.stack.step(params.layers, states, caches, params.token_AxD[token_B], key=key)
        return self._read_out(params, y_BxD), caches, aux
