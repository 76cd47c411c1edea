"""Streams of SRCD: attention that falls by experience, after training, with fixed parameters and without labels.

python experiments/streams.py --config=experiments/configs/streams.py:VARIANT --runs=runs/streams [--seeds=3]

1. Training: each row of a batch is a stream with bindings of its own, replaced by a fresh one at the end of its life.
2. Deployment: parameters are fixed. Fresh streams are read visit by visit, with no label and no gradient; only the
   memory of each stream changes. The same model is deployed once more with that memory held empty ("memory fixed").

Reported for each ten visits: tokens that attend, the least attention that answers every query (queries of new
bindings, and of patterns that no query of an earlier visit asked for), and the share of right answers.

| variant | a visit | training | deployment | on 2 cores of a server's CPU |
|---|---|---|---|---|
| tiny | 64 events, 12 patterns | 1500 steps | 16 streams, 100 visits | 3 minutes |
| small | 256 events, 100 patterns | 2000 steps | 16 streams, 200 visits | 20 minutes |
"""

from lib import runs
from ml_collections import ConfigDict

from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.posterior import PosteriorConfig
from cram_jax.functional.posterior_cram import PosteriorCRAMConfig
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.streams import StreamsConfig
from cram_jax.tasks.streams_task import StreamsTask
from cram_jax.training.controller import PriceConfig
from cram_jax.training.loop import RunConfig
from cram_jax.training.settings import to_config

VARIANTS = {
    "tiny": {
        "run": RunConfig(steps=1500, length=64, batch=16, log_every=100, held_out_tokens=4096, probe_batches=0),
        "data": StreamsConfig(srcd=SRCDConfig(patterns=12), lifetimes=(24, 48, 72)),
        "features": 128,
        "visits": 100,
        "start": 200,
    },
    "small": {
        "run": RunConfig(steps=2000, length=256, batch=16, log_every=100, held_out_tokens=16384, probe_batches=0),
        "data": StreamsConfig(srcd=SRCDConfig(patterns=100), lifetimes=(48, 96, 144)),
        "features": 512,
        "visits": 200,
        "start": 300,
    },
}


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the settings of one variant; ValueError for an unknown one."""
    chosen = runs.variant_of(VARIANTS, variant)
    run = chosen["run"]
    layer = PosteriorCRAMConfig(
        episodic=EpisodicConfig(heads=1, memory=run.length), semantic=PosteriorConfig(features=chosen["features"])
    )
    config = runs.settings(
        run,
        {"posterior_cram": layer, "transformer": AttentionConfig()},
        price=PriceConfig(start=chosen["start"]),
        data=to_config(chosen["data"]),
        dynamics_weight=StreamsTask().dynamics_weight,
        deployment={"streams": 16, "visits": chosen["visits"]},
    )
    config.depth = 1
    config.price.ramp = config.run.get_oneway_ref("steps") // 3
    config.data.srcd.length = config.run.get_oneway_ref("length")
    return config
