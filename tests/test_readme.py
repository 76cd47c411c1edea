"""What the README says, runs."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n# (\w+)\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(("name", "code"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_a_block_of_code_runs(name, code):
    key = jax.random.key(0)
    names = {"key": key, "x_BxTxD": jax.random.normal(key, (2, 16, 64)), "gap_BxT": jnp.ones((2, 16))}
    exec(code, names)
    if name == "Depths":
        attends_BxT = jnp.any(names["y_BxTxHxV"] != 0, axis=(2, 3))
        assert jnp.all(jnp.sum(attends_BxT, axis=1) == 32)
        return
    y_BxTxD = names["y_BxTxD"]
    if name == "Scans":
        assert y_BxTxD.shape == (2, 100, 64) and names["cfg"].rank and jnp.all(jnp.isfinite(y_BxTxD))
        return
    assert y_BxTxD.shape == (2, 16, 64) and jnp.all(jnp.isfinite(y_BxTxD))
    assert names["aux"].sums.tokens == 32


def test_there_are_blocks():
    assert [name for name, _ in BLOCKS] == ["NNX", "Linen", "Depths", "Scans"]


def test_every_file_it_names_exists():
    root = Path(__file__).parents[1]
    for path in re.findall(r"(?:experiments|cram_jax)/[\w/]+\.(?:py|png|json)", README):
        assert (root / path).exists(), path
