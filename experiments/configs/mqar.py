"""Multi-query associative recall: which memory holds how many pairs.

python experiments/mqar.py --config=experiments/configs/mqar.py:VARIANT --workdir=runs/NAME --config.model=palimpsa

| variant | sequences | steps | where | expect |
|---|---|---|---|---|
| small | 32 tokens, 8 pairs, 64 words | 3000 | a CPU | 1 to 2 minutes on a core; at 1200 some seeds have not begun |
| paper | 512 tokens, 128 pairs, 8192 words | 46,875 (60 epochs) | an accelerator | not run yet |

Models: palimpsa, metamamba2; the same without metaplasticity: gated_linear, mamba2; gated_delta (Gated DeltaNet), a
transformer, and cram. mamba2 has a set of keys for each head, as MetaMamba2 has, and is MetaMamba2 without importance.
In `small` the state of a recurrent layer is 64 numbers; palimpsa and metamamba2 carry as many importances beside it.
`experiments/compare.py --name=mqar` compares them all, at equal width and at equal state.
"""

from lib import runs
from ml_collections import ConfigDict

from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.palimpsa import PalimpsaConfig
from cram_jax.functional.working import WorkingConfig
from cram_jax.tasks.mqar import MQARConfig
from cram_jax.training.controller import PriceConfig
from cram_jax.training.loop import RunConfig
from cram_jax.training.settings import to_config

VARIANTS = {
    "small": {
        "run": RunConfig(
            steps=3000, length=32, batch=64, log_every=200, checkpoint_every=1000, held_out_tokens=16384,
            final_tokens=131_072,
        ),
        "data": MQARConfig(vocabulary=64, pairs=8),
        "sizes": {"D": 64, "heads": 2, "key": 4, "value": 8},
        "examples": 0,
    },
    "paper": {
        "run": RunConfig(
            steps=46_875, length=512, batch=128, log_every=125, checkpoint_every=3125, held_out_tokens=262_144,
            final_tokens=1_536_000,
        ),
        "data": MQARConfig(vocabulary=8192, pairs=128),
        "sizes": {"D": 128, "heads": 8, "key": 16, "value": 32},
        "examples": 100_000,
    },
}  # fmt: skip


def models(D: int, heads: int, key: int, value: int) -> dict:
    """Layers of equal width, each with heads x key x value numbers of state, an importance apart."""
    block = dict(D=D, heads=heads, key_dim=key, value_dim=value, spread="recall")
    mamba = dict(D=D, heads=heads, head_dim=value, state=key, groups=heads, spread="recall")
    return {
        "palimpsa": PalimpsaConfig(**block, rank=8),
        "metamamba2": Mamba2Config(**mamba, rank=8),
        "gated_linear": PalimpsaConfig(**block, rank=0),
        "gated_delta": PalimpsaConfig(**block, rank=0, delta=True),
        "mamba2": Mamba2Config(**mamba),
        "transformer": AttentionConfig(D=D, F=2 * D, heads=heads, head_dim=D // heads, rotary=True),
        "cram": CRAMConfig(
            D=D,
            F=2 * D,
            working=WorkingConfig(body="gated_scan", width=D),
            episodic=EpisodicConfig(heads=heads, head_dim=D // heads, rotary=True),
        ),
    }


def get_config(variant: str = "small") -> ConfigDict:
    """The settings of one variant; ValueError for an unknown one."""
    chosen = runs.variant_of(VARIANTS, variant)
    run = chosen["run"]
    config = runs.settings(
        run,
        models(**chosen["sizes"]),
        # Every pair is new, so that attention has nothing to give way to; the price only makes it choose.
        price=PriceConfig(top=0.2),
        data=to_config(chosen["data"]),
        examples=chosen["examples"],
    )
    config.data.length, config.data.batch = config.run.get_oneway_ref("length"), config.run.get_oneway_ref("batch")
    config.price.start, config.price.ramp = (config.run.get_oneway_ref("steps") // part for part in (2, 5))
    config.cram.episodic.memory = config.run.get_oneway_ref("length")
    config.optimizer.weight_decay, config.optimizer.warmup = 0.1, 100
    return config
