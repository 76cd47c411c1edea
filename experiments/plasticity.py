"""What metaplasticity does in a trained Palimpsa: importance, learning rate and memory window over one sequence.

python experiments/plasticity.py --workdir=runs/mqar/palimpsa/rate_0.00464_seed_0

Takes the last state of a finished run of experiments/mqar.py with model=palimpsa, alone or one of
experiments/mqar_grid.py, and looks at its first held-out sequence. Result and figure go to --results, with .json and
.png.
"""

import json
from pathlib import Path

import grid
import jax
import jax.numpy as jnp
import mqar
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from cram_jax.analysis import metaplasticity, plasticity_figures
from cram_jax.functional import palimpsa
from cram_jax.training import experiment
from cram_jax.training import learner as learning
from cram_jax.training.checkpoints import Checkpoints
from cram_jax.training.learner import Learner
from cram_jax.training.loop import RunConfig

RESULTS = flags.DEFINE_string("results", "", "Where result and figure go; below the workdir by default.")


def look(learner: Learner, run: RunConfig, seed: int, params) -> list[metaplasticity.Plasticity]:
    """Layer by layer, on the first held-out sequence."""
    cfg, out = learner.model.layer, []
    batch = learner.task.batch("held_out", seed, 0, run.length, run.batch)
    x_BxTxD, _ = learner.task.embed(params.task, jax.tree.map(lambda x: x[:1], batch))
    for i in range(learner.model.depth):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params.model)
        writes = palimpsa.writes(layer, x_BxTxD, cfg=cfg)
        rate_H = jnp.exp(layer.decay.log_rate_H)
        out.append(metaplasticity.plasticity(writes, rate_H, jnp.ones(cfg.heads)))
        x_BxTxD, _ = palimpsa.apply(layer, (), x_BxTxD, cfg=cfg)
    return out


def main(_) -> None:
    experiment.quiet()
    workdir = Path(mqar.WORKDIR.value)
    if not (workdir / "summary.json").exists():
        raise ValueError(f"--workdir={workdir} holds no finished run; run experiments/mqar.py there first")
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    learner, run = mqar.build(config)
    if not isinstance(learner.model.layer, palimpsa.PalimpsaConfig) or not learner.model.layer.rank:
        raise ValueError(f"config.model={config.model} has no importance to look at; give palimpsa, with rank above 0")
    restored = Checkpoints(workdir / "checkpoints").restore(learning.init(learner, config.seed, 0))
    if restored is None:
        raise ValueError(f"--workdir={workdir} holds no checkpoint; run experiments/mqar.py there first")
    target = Path(RESULTS.value or workdir / "figures" / "plasticity")
    digits = lambda x: np.vectorize(lambda value: float(f"{value:.5g}"))(x).tolist()
    layers = [jax.tree.map(digits, one._asdict()) for one in look(learner, run, config.seed, restored[1].params)]
    trained = json.loads((workdir / "summary.json").read_text())
    of_run = {name: trained[name] for name in ("seed", "accuracy", "trained_by")}
    out = grid.write(target, config, layers=layers, changes_at=2 * config.data.pairs, **of_run)
    plasticity_figures.draw(out, target.with_suffix(".png"))
    print(f"figure: {target.with_suffix('.png')}")


if __name__ == "__main__":
    experiment.launch(main)
