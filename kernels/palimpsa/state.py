"""What a Palimpsa scan carries."""

from typing import NamedTuple

from jaxtyping import Array, Float


class PalimpsaState(NamedTuple):
    """Attributes:
    mean_BxHxVxK: M, what was written, each weighted by how sure it was: the mean mu is M / (J + prior).
    importance_BxHxVxK: J, the precision gathered beyond the prior; 0 where nothing was written.
    """

    mean_BxHxVxK: Float[Array, "B H V K"]
    importance_BxHxVxK: Float[Array, "B H V K"]
