"""Tiny language models on the bytes of real files: equal data, steps and, to a few percent, parameters.

python experiments/compare.py --name=language [--files=FOLDER]     # all models, each at several learning rates
python experiments/text.py --config=experiments/configs/language.py:small --config.model=mamba2 --config.depth=3

| variant | windows | steps | on a core of a server's CPU |
|---|---|---|---|
| small | 256 bytes | 600 | 5 minutes a run |

Models after their papers: palimpsa with a SwiGLU network in each of two layers (smaller than 8/3 of the width), mamba2
and metamamba2 in three layers without one (both with one set of keys for all heads; the paper's MetaMamba2 has one a
head), a transformer of two layers with rotary positions. All predict the next byte as in experiments/text.py, with a
convolution over four bytes after the embedding and a read-out of its own; the papers have no convolution there, and
tie the read-out to the embedding.
"""

from configs import text
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
# Layers of each model: what makes their parameters as many
DEPTHS = {"palimpsa": 2, "metamamba2": 3, "mamba2": 3, "transformer": 2}


def get_config(variant: str = "small") -> ConfigDict:
    """The settings of one variant; ValueError for an unknown one."""
    config = runs.settings(
        runs.variant_of(VARIANTS, variant)["run"],
        MODELS,
        price=PriceConfig(),
        **text.FILES,
    )
    config.depth = DEPTHS[config.model]
    config.optimizer.warmup, config.optimizer.weight_decay = 100, 0.01
    return config
