"""Bytes of real files.

python experiments/text.py [--files=FOLDER] [--workdir=runs/text]

| variant | windows | steps | on 2 cores of a server's CPU | expect |
|---|---|---|---|---|
| small | 256 bytes | 1000 | 3 minutes | 2.0 bits a byte (3-grams: 2.6), 17% of bytes attend |

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

VARIANTS = {"small": {"run": RunConfig(steps=1000, log_every=50, checkpoint_every=250, final_tokens=250_000)}}
D, F, MEMORY = 96, 256, 64
FILES = {
    "files": (),  # the main's --files; the sources of the Python standard library where there are none
    "held_out_share": 0.1,  # of the files
    "corpus": "",  # what the files hold, filled in by the main: a run goes on with the text it began with
}


def get_config(variant: str = "small") -> ConfigDict:
    """The settings of one variant; ValueError for an unknown one."""
    run = runs.variant_of(VARIANTS, variant)["run"]
    config = runs.settings(
        run,
        {
            "cram": CRAMConfig(
                D=D,
                F=F,
                working=WorkingConfig(body="gated_scan", width=D),  # text needs what came before, not only the token
                episodic=EpisodicConfig(memory=MEMORY, rotary=True),
                semantic=SemanticConfig(rank=D),
            ),
            "transformer": AttentionConfig(D=D, F=F, rotary=True),
        },
        price=PriceConfig(start=400, ramp=200, top=0.2),
        **FILES,
    )
    config.optimizer.learning_rate, config.optimizer.warmup, config.optimizer.weight_decay = 3e-3, 100, 0.01
    return config
