"""What metaplasticity does in a trained Palimpsa: importance, learning rate and memory window over one sequence.

python experiments/plasticity.py --workdir=runs/mqar/palimpsa/rate_0.00464_seed_0

Takes the last state of a finished run of experiments/mqar.py with model=palimpsa, alone or one of
experiments/mqar_grid.py, and looks at its first held-out sequence. Result and figure go to --results.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import mqar
import numpy as np
from absl import flags
from cram_jax.training.learner import Learner
from lib import gather, results
from lib.figures import plasticity as plasticity_figures
from ml_collections import ConfigDict

from cram_jax.analysis import metaplasticity
from cram_jax.functional import palimpsa
from cram_jax.training import experiment
from cram_jax.training import learner as learning
from cram_jax.training.checkpoints import Checkpoints
from cram_jax.training.loop import RunConfig

RESULTS = flags.DEFINE_string("results", "", "Where result and figure go; plasticity in the workdir by default.")

QUESTION = "Where do importance, learning rate and memory go in a trained Palimpsa?"
COMMAND = (
    "python experiments/mqar.py --config.model=palimpsa --config.palimpsa.value_dim=16 "
    "--config.optimizer.learning_rate=1e-2 --config.seed=1 --workdir=runs/plasticity, "
    "then python experiments/plasticity.py --workdir=runs/plasticity"
)


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
    target = Path(RESULTS.value or workdir / "plasticity")
    digits = lambda x: np.vectorize(lambda value: float(f"{value:.5g}"))(x).tolist()
    layers = [jax.tree.map(digits, one._asdict()) for one in look(learner, run, config.seed, restored[1].params)]
    trained = json.loads((workdir / "summary.json").read_text())
    data = {name: trained[name] for name in ("seed", "accuracy")}
    data |= {"changes_at": 2 * config.data.pairs, "layers": layers}
    made = gather.made_by([trained])
    made["commits"] = sorted({*made["commits"], *gather.made_here()["commits"]})  # that looks at it, too
    result = gather.result("plasticity", QUESTION, COMMAND, made, config=config, data=data)
    results.write(target, result)
    print(f"figure: {plasticity_figures.draw(result, target)}")


if __name__ == "__main__":
    experiment.launch(main)
