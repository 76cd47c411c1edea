"""Transfer (the paper's Table 2): trained on SRCD, then on another task with its semantic memory and router frozen.

python experiments/transfer.py --config=experiments/configs/transfer.py:tiny --runs=runs/transfer [--data=FOLDER]

1. Source: each model is trained on the variant `tiny` of experiments/configs/srcd.py: 64 events, 1000 steps.
2. Targets, of the same length, batch and steps, with a fresh optimizer, each model in three ways:
   - from scratch: all of it, as in 1, the baseline of every reduction.
   - frozen: the source's layers; of CRAM its semantic memory and router, of SeqBoat what selects (its recurrent memory
     and its rule) are not changed any more. The target's embedding and read-out, and the other parts of the layers,
     are trained.
   - head alone: the source's layers, none of which is changed; embedding and read-out are trained.
3. Reported: the score, the tokens that attend at the end, and the reduction: 1 - attention / attention from scratch, of
   the same target, model and seed. Three seeds, which differ in both phases and in patterns and phrases.

| target | sequences | asked for | score | price: top, tolerance |
|---|---|---|---|---|
| copy | 4 rounds of symbols among blanks, and questions (`tasks/copying.py`) | 16 symbols | accuracy | 24, 0.12 |
| records | descriptors and last events of a stay in intensive care | death, once, at the end | AUC | 4, 0.05 |
| motion | stretches of what tags worn by a person report | activity, at each event | accuracy | 14, 0.07 |

With --data, records are those of the PhysioNet/CinC Challenge 2012 (FOLDER/set-a and FOLDER/Outcomes-a.txt) and motion
is the UCI 'Localization Data for Person Activity' (FOLDER/ConfLongDemo_JSI.txt). Without, files of the same two formats
are generated below --runs; results on them are called so and say nothing of the published data.

Price and tolerance are SRCD's in the ratio of the losses before anything is learned, ln(classes) / ln(32). Only for
records the tolerance is wider, 0.05 for 0.02: with one label a sequence the smoothed loss itself has a deviation of
0.016. CRAM has SRCD's weight decay throughout, SeqBoat that of every baseline.

The paper says "frozen" and "task head retrained", not how the target is embedded, whether attention itself is trained,
nor what becomes of the price; the second and third way are the two ends of what that can mean.

Runs: 2 models x 3 seeds of the source, then 3 targets x 2 models x 3 ways x 3 seeds: 60, of about two minutes each on
one core. Run as written (experiments/results/transfer). Looked at beforehand: CRAM with seed 0 on copy, and 400
steps of it from scratch on generated files; all that was changed after that is their number, from 1000 records and
50,000 readings to the published ones.
"""

from configs import srcd
from lib import runs
from ml_collections import ConfigDict

from cram_jax.tasks.copying import CopyConfig
from cram_jax.tasks.irregular_task import IrregularTask
from cram_jax.training.settings import to_config

SHARES = {
    "validation_share": IrregularTask.validation_share,
    "held_out_share": IrregularTask.held_out_share,
    "files": "",  # what they hold, filled in by the main: a run goes on with the data it began with
}
# generated: how many records or recordings, as published, and about how many events in each
TARGETS = {
    "copy": {"data": to_config(CopyConfig()), "price": {"top": 24.0, "tolerance": 0.12}},
    "records": {
        "data": {"format": "physionet_2012", **SHARES},
        "generated": {"series": 4000, "events": 100},
        "price": {"top": 4.0, "tolerance": 0.05},
    },
    "motion": {
        "data": {"format": "person_activity", **SHARES},
        "generated": {"series": 25, "events": 6600},
        "price": {"top": 14.0, "tolerance": 0.07},
    },
}


def get_config(variant: str = "tiny") -> ConfigDict:
    """The source's settings, and what differs on the targets.

    Raises:
      ValueError: for an unknown variant, naming those there are.
    """
    config = srcd.get_config(runs.variant_of({"tiny": "tiny"}, variant))
    config.targets = ConfigDict(TARGETS).copy_and_resolve_references()
    return config
