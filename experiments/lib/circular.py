"""An ablation that takes Eq 7 literally: the router sees the quality q itself, so every token must retrieve.

All these retrievals count as attention.
"""

import dataclasses

import jax
import jax.numpy as jnp

from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.routing import Gates


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CircularCRAMConfig(CRAMConfig):
    """A CRAM layer whose router gets the quality q (Eq 6) instead of the familiarity, its estimate."""

    def _route(self, params, state, z, gap, magnitude, novelty, uniform, position, train: bool, retrieve) -> Gates:
        quality = retrieve(jnp.ones(z.shape[:-1], bool)).quality
        gates = super()._route(params, state, z, gap, magnitude, 1 - quality, uniform, position, train, retrieve)
        return gates._replace(audited_BxT=~gates.routed_BxT, audit_weight_BxT=jnp.ones_like(gates.audit_weight_BxT))
