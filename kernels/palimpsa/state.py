"""The state that a Palimpsa scan carries."""

from typing import NamedTuple

from jaxtyping import Array, Float


class PalimpsaState(NamedTuple):
    """Attributes:
    mean_BxHxVxK: M, decayed sum of the writes v k^T. The mean mu is M / (J + prior).
    importance_BxHxVxK: J, importance in addition to the prior; 0 where nothing was written.
    """

    mean_BxHxVxK: Float[Array, "B H V K"]
    importance_BxHxVxK: Float[Array, "B H V K"]
