"""Importance, learning rate and memory window in a trained Palimpsa, over one sequence."""

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.analysis import metaplasticity
from cram_jax.functional import palimpsa
from lib.trained import Trained

QUESTION = "Where do importance, learning rate and memory go in a trained Palimpsa?"
MAKE = (
    "python experiments/mqar.py --config.model=palimpsa --config.palimpsa.value_dim=16 "
    "--config.optimizer.learning_rate=1e-2 --config.seed=1 --workdir=runs/palimpsa"
)


def look(trained: Trained) -> list[metaplasticity.Plasticity]:
    """Returns the statistics of each layer on the first held-out sequence.

    Raises:
      ValueError: if the model has no importance.
    """
    learner, run, params = trained.learner, trained.run, trained.state.params
    cfg, *others = learner.model.layers
    if others or not isinstance(cfg, palimpsa.PalimpsaConfig) or not cfg.rank:
        model = trained.config.model
        raise ValueError(f"config.model={model} has no importance to look at; give palimpsa, with rank above 0")
    batch = learner.task.batch("held_out", trained.config.seed, 0, run.length, run.batch)
    x_BxTxD, _ = learner.task.embed(params.task, jax.tree.map(lambda x: x[:1], batch))
    out = []
    for i in range(learner.model.repeats):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params.model[0])
        writes = palimpsa.writes(layer, x_BxTxD, cfg=cfg)
        out.append(metaplasticity.plasticity(writes, jnp.exp(layer.decay.log_rate_H), jnp.ones(cfg.heads)))
        x_BxTxD, _ = palimpsa.apply(layer, (), x_BxTxD, cfg=cfg)
    return out


def compute(trained: Trained) -> dict:
    """Returns the result's data, from a run of experiments/mqar.py."""
    digits = lambda x: np.vectorize(lambda value: float(f"{value:.5g}"))(x).tolist()
    layers = [jax.tree.map(digits, one._asdict()) for one in look(trained)]
    data = {name: trained.summary[name] for name in ("seed", "accuracy")}
    return data | {"changes_at": 2 * trained.config.data.pairs, "layers": layers}
