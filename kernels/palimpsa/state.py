"""The state that a Palimpsa scan carries."""

from typing import NamedTuple

from jaxtyping import Array, Float


class PalimpsaState(NamedTuple):
    """Attributes:
    mean_BxHxVxK: M, the sum of what was written, each weighted by its certainty. The mean mu is M / (J + prior).
    importance_BxHxVxK: J, the precision gathered beyond the prior; 0 where nothing was written.
    """

    mean_BxHxVxK: Float[Array, "B H V K"]
    importance_BxHxVxK: Float[Array, "B H V K"]
