"""Bytes of real files.

python experiments/text.py [--files=FOLDER] [--workdir=runs/text]

| variant | windows | steps | on 2 cores of a server's CPU | expect |
|---|---|---|---|---|
| small | 256 bytes | 1000 | 3 minutes | 2.0 bits a byte (3-grams: 2.6), 17% of bytes attend |
| billion | 2048 bytes | - | compiled only, by plan_run.py | 1.25 billion parameters; it was never trained |
| long | 131,072 bytes | - | compiled only, by plan_run.py | tokens divide among devices; it was never trained |

CLAIMS.md has the figures with hardware and versions.
"""

from lib import runs
from ml_collections import ConfigDict

from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.semantic import SemanticConfig
from cram_jax.functional.working import WorkingConfig
from cram_jax.training.controller import PriceConfig
from cram_jax.training.loop import RunConfig

VARIANTS = {
    "small": {"run": RunConfig(steps=1000, log_every=50, checkpoint_every=250, final_tokens=250_000)},
    "billion": {
        "run": RunConfig(steps=1000, log_every=50, checkpoint_every=250, length=2048, batch=256),
        "size": {"D": 2048, "F": 8192, "compute_dtype": "bfloat16"},
        "heads": {"heads": 16, "head_dim": 128},
        "network": {"depth": 24, "rolled": True, "remat": True},
    },
    "long": {
        "run": RunConfig(steps=1000, log_every=50, checkpoint_every=250, length=131_072, batch=1),
        "size": {"D": 1024, "F": 4096, "compute_dtype": "bfloat16"},
        "heads": {"heads": 8, "head_dim": 128},
        "network": {"depth": 12, "rolled": True, "remat": True},
        "memory": 4096,
    },
}
SMALL = {"D": 96, "F": 256}
WIDTH, MEMORY = 96, 64  # of working and semantic memory, and events that the buffer keeps
FILES = {
    "files": (),  # the main's --files; the sources of the Python standard library where there are none
    "held_out_share": 0.1,  # of the files
    "corpus": "",  # what the files hold, filled in by the main: a run goes on with the text it began with
}


def get_config(variant: str = "small") -> ConfigDict:
    """The settings of one variant; ValueError for an unknown one."""
    found = runs.variant_of(VARIANTS, variant)
    size, heads = found.get("size", SMALL), found.get("heads", {})
    config = runs.settings(
        found["run"],
        {
            "cram": CRAMConfig(
                **size,
                working=WorkingConfig(
                    body="gated_scan", width=WIDTH
                ),  # text needs what came before, not only the token
                episodic=EpisodicConfig(memory=found.get("memory", MEMORY), rotary=True, **heads),
                semantic=SemanticConfig(rank=WIDTH),
            ),
            "transformer": AttentionConfig(**size, **heads, rotary=True),
        },
        price=PriceConfig(start=400, ramp=200, top=0.2),
        **found.get("network", {}),
        **FILES,
    )
    config.optimizer.learning_rate, config.optimizer.warmup, config.optimizer.weight_decay = 3e-3, 100, 0.01
    return config
