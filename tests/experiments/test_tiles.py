"""The TPU kernels use the tiles that the committed schedules mark as shipped."""

import pytest
from lib import results

from cram_jax.kernels.skip_attention import tpu

KINDS = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}


@pytest.mark.parametrize(("label", "rows"), results.load("kernels_tpu_tiles")["data"].items())
def test_the_tiles_that_are_shipped_are_those_whose_schedules_were_compared(label, rows):
    chip, K = label.split(", head dimension ")
    (shipped,) = [row for row in rows if row["shipped"]]
    assert tuple(shipped[name] for name in tpu.Tiles._fields) == tpu.best_tiles(KINDS[chip], int(K))
