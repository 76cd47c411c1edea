"""A transformer on bytes of real files, and how redundant its attention becomes (CRAM, section 2).

python experiments/redundancy.py --workdir=runs/redundancy [--files=FOLDER]

The transformer of experiments/configs/text.py, with 4 layers of 4 heads so that there are middle ones. Redundancy is
measured after `redundancy.at` steps of training, on `redundancy.tokens` held-out bytes.
"""

from configs import text
from ml_collections import ConfigDict


def get_config(variant: str = "small") -> ConfigDict:
    """The settings of one variant of experiments/configs/text.py; ValueError for an unknown one."""
    config = text.get_config(variant)
    config.model, config.depth = "transformer", 4
    config.transformer.heads, config.transformer.head_dim = 4, 24
    config.redundancy = ConfigDict({"at": (0, 50, 250, 500, 1000), "tokens": 65_536})
    return config
