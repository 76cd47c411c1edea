"""Metrics of the layers' routes: which tokens attended, how that depends on exposure, and the quality of recall."""

import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Int
from cram_jax.functional.common import total
from cram_jax.functional.layer import LayerAux
from cram_jax.models.stack import Stack
from cram_jax.training.task import Sums

OCTAVE, OCTAVES = 2, 16  # bins of exposures in an octave (a factor of 2), and number of octaves
BINS = 20  # bins of quality, from 0 to 1


def _share(marks: Array, among: Array | None = None) -> tuple[Array, Array]:
    """(sum, count) of marks over the places in `among`, all by default."""
    ones = jnp.ones_like(marks)
    return jnp.sum(marks, where=among, dtype=jnp.float32), jnp.sum(ones, where=among, dtype=jnp.float32)


def routed(model: Stack, aux: tuple[LayerAux, ...], groups: dict[str, Array]) -> Sums:
    """Returns the shares of tokens that attended and that were kept, in the layers with routes; {} without such layers.

    Audits count as attention.

    Args:
      groups: marks (B T) of the kinds of tokens that are also reported separately, by name.
    """
    routes = [one for _, one in model.routes(aux)]
    if not routes:
        return {}
    attended_LxBxT = jnp.stack([one.attended_BxT for one in routes])
    kept_LxBxT = jnp.stack([one.kept_BxT for one in routes])
    anywhere_BxT = jnp.any(attended_LxBxT, axis=0)
    metrics = {
        "attention_tokens": _share(anywhere_BxT),
        "attention_utilisation": _share(attended_LxBxT),
        "kept_share": _share(kept_LxBxT),
    }
    for layer, (attended_BxT, kept_BxT) in enumerate(zip(attended_LxBxT, kept_LxBxT, strict=True)):
        metrics[f"attention_layer_{layer}"] = _share(attended_BxT)
        metrics[f"kept_share_layer_{layer}"] = _share(kept_BxT)
    for name, among_BxT in groups.items():
        metrics[f"attention_{name}"] = _share(anywhere_BxT, among_BxT)
        for layer, kept_BxT in enumerate(kept_LxBxT):
            metrics[f"kept_{name}_layer_{layer}"] = _share(kept_BxT, among_BxT)
    return metrics


def exposed(
    model: Stack, aux: tuple[LayerAux, ...], asked_BxT: Int[Array, "B T"], exposures_P: Int[Array, "P"]
) -> Sums:
    """Counts queries of recurring patterns, and those that chose attention in some layer (Eq 14). Audits do not count.

    Returns:
      `exposed`: counts by exposure k, the number of earlier queries of the pattern. Bin i holds the queries with
      k + 1 >= 2^(i / OCTAVE), up to the next bin. `asked_by_pattern`: counts for each of the P patterns. Both also with
      `_episodic` appended: those queries that chose attention. {} without patterns, or if no layer consolidates.
    """
    if not (exposures_P.size and model.consolidates):
        return {}
    asks_BxT = asked_BxT >= 0
    k_BxT = exposures_P[jnp.maximum(asked_BxT, 0)]
    bin_BxT = jnp.floor(OCTAVE * jnp.log2(k_BxT + 1.0)).astype(jnp.int32)
    chose_BxT = jnp.any(jnp.stack([routes.chose_BxT for _, routes in model.routes(aux)]), axis=0) & asks_BxT
    count = lambda size, place_BxT, among_BxT: jnp.zeros(size).at[place_BxT].add(among_BxT, mode="drop")
    sums = {}
    for name, size, place_BxT in (
        ("exposed", OCTAVE * OCTAVES, bin_BxT),
        ("asked_by_pattern", exposures_P.size, asked_BxT),
    ):
        sums[name], sums[f"{name}_episodic"] = count(size, place_BxT, asks_BxT), count(size, place_BxT, chose_BxT)
    return {name: (total, jnp.ones(())) for name, total in sums.items()}


def _histogram(where: Bool[Array, "B T"], values: Array, weights: Array) -> Array:
    """Sums of the weights in BINS equal bins of the values, from 0 to 1."""
    place = jnp.where(where, jnp.clip((values * BINS).astype(jnp.int32), 0, BINS - 1), BINS)
    return jnp.zeros(BINS).at[place].add(weights, mode="drop")


def quality(model: Stack, aux: tuple[LayerAux, ...], groups: dict[str, Array]) -> Sums:
    """Returns statistics of quality q and familiarity q-hat, in each layer that consolidates.

    They are over tokens that retrieved, because q is known only for them.

    - For each group of tokens and for "all": `quality_*`, `familiarity_*`, and `familiarity_error_*`, |q-hat - q|.
    - For the first group: `quality_bins_*`, the histogram of q.
    - For "all" and the first group: `reliability_*`, counts, sums of q-hat and sums of q in bins of q-hat.
    """
    first_name, first_BxT = next(iter(groups.items()))
    over = lambda what, where: (total(what, where=where), total(where))
    one, out = jnp.ones(()), {}
    for index, (layer, routes) in enumerate(model.routes(aux)):
        if not layer.consolidates:
            continue
        q_BxT, q_hat_BxT, known_BxT = routes.quality_BxT, routes.familiarity_BxT, routes.retrieved_BxT
        for name, among_BxT in {"all": jnp.ones_like(known_BxT), **groups}.items():
            among_BxT = among_BxT & known_BxT
            out[f"quality_{name}_layer_{index}"] = over(q_BxT, among_BxT)
            out[f"familiarity_{name}_layer_{index}"] = over(q_hat_BxT, among_BxT)
            out[f"familiarity_error_{name}_layer_{index}"] = over(jnp.abs(q_hat_BxT - q_BxT), among_BxT)
        ones_BxT = jnp.ones_like(q_BxT)
        out[f"quality_bins_layer_{index}"] = (_histogram(first_BxT & known_BxT, q_BxT, ones_BxT), one)
        for group, among_BxT in (("all", known_BxT), (first_name, first_BxT & known_BxT)):
            for name, weights in (("count", ones_BxT), ("familiarity", q_hat_BxT), ("quality", q_BxT)):
                binned = _histogram(among_BxT, q_hat_BxT, weights)
                out[f"reliability_{group}_{name}_layer_{index}"] = (binned, one)
    return out
