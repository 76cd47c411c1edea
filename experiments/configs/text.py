"""Bytes of real files. `--config=experiments/configs/text.py:VARIANT`, VARIANT one of

| variant | windows | steps | what for |
|---|---|---|---|
| small | 256 bytes | TODO | task, model and loop on real input; a few minutes on 2 CPU cores |

Every field is a field of the dataclass of its section, where its meaning stands; `--config.section.field=value`.
"""

from ml_collections import ConfigDict

from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.objective import ObjectiveConfig
from cram_jax.functional.semantic import SemanticConfig
from cram_jax.functional.working_memory import WorkingConfig
from cram_jax.training.learner import OptimizerConfig
from cram_jax.training.loop import RunConfig
from cram_jax.training.price import PriceConfig
from cram_jax.training.settings import to_config

VARIANTS = {
    "small": {
        "run": RunConfig(steps=1200, log_every=100, checkpoint_every=600, held_out_tokens=32768, final_tokens=250_000),
        "D": 96,
        "F": 256,
        "memory": 64,
    },
}  # fmt: skip


def get_config(variant: str = "small") -> ConfigDict:
    """The settings of one variant.

    Raises:
      ValueError: for an unknown variant, naming those there are.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r} of this config; there are {sorted(VARIANTS)}")
    run, D, F, memory = (VARIANTS[variant][name] for name in ("run", "D", "F", "memory"))
    cram = CRAMConfig(
        D=D,
        F=F,
        working=WorkingConfig(body="gated_scan", width=D),
        episodic=EpisodicConfig(memory=memory, rotary=True),
        semantic=SemanticConfig(rank=D),
    )
    return ConfigDict(
        {
            "seed": 0,
            "model": "cram",  # or "transformer": the same width, depth and data
            "depth": 2,
            "files": (),  # the main's --files; the sources of the Python standard library where there are none
            "held_out_share": 0.1,  # of the files
            "corpus": "",  # what the files held, by the main: a run goes on with the text it began with
            "cram": to_config(cram),
            "transformer": to_config(AttentionConfig(D=D, F=F, rotary=True, context=run.length)),
            "optimizer": to_config(OptimizerConfig(learning_rate=3e-3, warmup=100, steps=run.steps)),
            "objective": to_config(ObjectiveConfig()),
            "price": to_config(PriceConfig(start=500, plateau=0.2, top=0.3, ramp=300, tolerance=0.1)),
            "run": to_config(run),
        }
    )
