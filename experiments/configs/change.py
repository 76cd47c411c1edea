"""Patterns change their answers in mid-training, and after it.

python experiments/change.py --config=experiments/configs/change.py:small --workdir=runs/change

The committed result, experiments/results/change, is what three seeds left.

1. CRAM is trained on SRCD for `change.at` steps. Then the first `change.patterns` of the recurring patterns get other
   answers, and the same training goes on: state, optimizer and price are those of the step before.
2. From the state at `change.at`, training stops instead. `consolidate` looks at `change.batches` batches of the changed
   world, without their answers: it retrieves for every token and teaches the semantic memory what it retrieved.

| variant | sequences | steps |
|---|---|---|
| tiny | 64 events, 30 patterns | 1000, then 1000 |
| small | 256 events, 100 patterns | 2400, then 2400 |
"""

from configs import srcd
from ml_collections import ConfigDict


def get_config(variant: str = "small") -> ConfigDict:
    """The settings of one variant of experiments/configs/srcd.py, with a change.

    Raises:
      ValueError: for an unknown variant, naming those there are.
    """
    config = srcd.get_config(variant)
    at = config.run.steps
    config.run.steps = 2 * at
    config.optimizer.steps, config.price.ramp = 2 * at, at // 3
    config.change = ConfigDict({"at": at, "patterns": config.data.patterns // 10, "batches": 200, "rate": 2e-3})
    return config
