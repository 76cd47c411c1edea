"""A language model: embedding, stack of layers, norm, and a read-out that is tied to the embedding."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.dims import Array, Float, Int, Key, Segments
from cram_jax.functional.checks import check_at_least_one
from cram_jax.functional.common import rms_norm
from cram_jax.kernels.checks import check_kinds
from cram_jax.models.stack import Stack


class LanguageParams(NamedTuple):
    """Attributes: token_AxD, embedding of A tokens; layers, parameters of the stack; norm_D, scale of the last norm."""

    token_AxD: Float[Array, "A D"]
    layers: tuple
    norm_D: Float[Array, "D"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """vocabulary: A, number of tokens.
    stack: the layers.
    epsilon: epsilon of the last norm.
    """

    vocabulary: int
    stack: Stack
    epsilon: float = 1e-5

    def __post_init__(self):
        check_at_least_one(self, "vocabulary")

    def init(self, key: Key) -> LanguageParams:
        """Draws parameters. Embeddings have standard deviation 0.02, as in the paper."""
        token, layers = jax.random.split(key)
        D = self.stack.D
        return LanguageParams(
            0.02 * jax.random.normal(token, (self.vocabulary, D)), self.stack.init(layers), jnp.ones(D)
        )

    def _embed(self, params: LanguageParams, name: str, token: Int[Array, "..."]) -> Float[Array, "... D"]:
        check_kinds(jnp.integer, **{name: token})
        if not isinstance(token, jax.core.Tracer) and np.any(outside := (token < 0) | (token >= self.vocabulary)):
            raise ValueError(
                f"{name} must be from 0 to {self.vocabulary - 1}, got {np.asarray(token)[np.asarray(outside)][0]}"
            )
        # A negative index would count from the end
        place = jnp.where(token < 0, self.vocabulary, token)
        return params.token_AxD.at[place].get(mode="fill", fill_value=jnp.nan)

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
        """Returns (logits_BxTxA, aux of the layers) for whole sequences.

        Raises:
          TypeError: if the tokens are not integers.
          ValueError: if one is not in the vocabulary. Under jit values are not checked, and its sequence becomes NaN.
        """
        x_BxTxD = self._embed(params, "token_BxT", token_BxT)
        y_BxTxD, aux = self.stack.apply(params.layers, states, x_BxTxD, key=key, train=train, segment_BxT=segment_BxT)
        return self._read_out(params, y_BxTxD), aux

    def step(self, params: LanguageParams, states, caches, token_B: Int[Array, "B"], *, key: Key | None = None):
        """Returns (logits_BxA, caches, aux) for the next token of a stream. Raises as `apply`."""
        x_BxD = self._embed(params, "token_B", token_B)
        y_BxD, caches, aux = self.stack.step(params.layers, states, caches, x_BxD, key=key)
        return self._read_out(params, y_BxD), caches, aux
