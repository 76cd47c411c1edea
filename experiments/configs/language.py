"""Tiny language models on the bytes of real files: equal data, steps and, to a few percent, parameters.

python experiments/language.py --runs=runs/language

| variant | windows | steps | on a core of a server's CPU |
|---|---|---|---|
| small | 256 bytes | 600 | 5 minutes a run |

Models after their papers: palimpsa with a SwiGLU network in each of two layers (smaller than 8/3 of the width), mamba2
and metamamba2 in three layers without one (both with one set of keys for all heads; the paper's MetaMamba2 has one a
head), a transformer of two layers with rotary positions. All read bytes and say the next as experiments/text.py has it,
through a convolution over four bytes and an untied read-out, where the papers' embedding is tied and alone. Every field
is a field of the dataclass of its section, where its meaning stands; `--config.section.field=value`.
"""

from lib import runs
from ml_collections import ConfigDict

from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.palimpsa import PalimpsaConfig
from cram_jax.training.controller import PriceConfig
from cram_jax.training.loop import RunConfig

VARIANTS = {"small": {"run": RunConfig(steps=600, log_every=50, checkpoint_every=300, final_tokens=250_000)}}
D = 96
MAMBA = dict(D=D, heads=6, head_dim=32, state=16)
MODELS = {
    "palimpsa": PalimpsaConfig(D=D, F=136, heads=4, key_dim=24, value_dim=24, rank=8),
    "metamamba2": Mamba2Config(**MAMBA, rank=8),
    "mamba2": Mamba2Config(**MAMBA),
    "transformer": AttentionConfig(D=D, F=272, heads=4, head_dim=24, rotary=True),
}
DEPTHS = {"palimpsa": 2, "metamamba2": 3, "mamba2": 3, "transformer": 2}


def get_config(variant: str = "small") -> ConfigDict:
    """The settings of one variant; ValueError for an unknown one."""
    config = runs.settings(
        runs.variant_of(VARIANTS, variant)["run"],
        MODELS,
        price=PriceConfig(),
        depths=DEPTHS,  # by model: what makes their parameters as many
        files=(),  # the main's --files; the sources of the Python standard library where there are none
        held_out_share=0.1,  # of the files
        corpus="",  # what the files hold, filled in by the main: a run goes on with the text it began with
    )
    config.model = "palimpsa"
    config.optimizer.warmup, config.optimizer.weight_decay = 100, 0.01
    return config
