"""Makes mamba2.npz, mamba2.safetensors and mamba2.json: a tiny Mamba-2 of Hugging Face and what it computes.

PyTorch is no dependency of the tests, so the arrays are committed. They were made on a CPU with Python 3.11.7,
torch 2.13.0+cpu, transformers 5.23.0, safetensors 0.8.0 and numpy 2.4.6; to make them anew:

    python -m venv /tmp/torchenv
    /tmp/torchenv/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
    /tmp/torchenv/bin/python tests/golden/make_mamba2.py

No parameter keeps a trivial value (no bias of zero, no norm or D of one), there are fewer groups than heads, and the
length is no multiple of the chunk, so that a loader or a layer that skips or swaps one of them shows.

In mamba2.npz (B = 2, T = 19, d = 32, vocabulary V = 40):
    ids_BxT
    after_layer_0_BxTxd, after_layer_1_BxTxd    the residual stream after each block
    after_norm_BxTxd                            the same after the last RMSNorm; logits = after_norm · embeddingᵀ
    logits_BxTxV
    mixer_input_BxTxd, mixer_output_BxTxd       the mixer of layer 0 alone, without its pre-norm and residual
    mixer_output_one_group_BxTxd                the same with one RMSNorm over all of d_inner, whatever n_groups:
                                                MetaMamba2's authors, and transformers before 5.23 (run: 4.57.3)
"""

import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM

HERE = Path(__file__).parent
BATCH, LENGTH = 2, 19
CONFIG = Mamba2Config(
    hidden_size=32,
    num_heads=4,
    head_dim=16,
    state_size=8,
    n_groups=2,
    expand=2,
    conv_kernel=4,
    chunk_size=8,
    num_hidden_layers=2,
    vocab_size=40,
    use_bias=False,
    use_conv_bias=True,
    tie_word_embeddings=True,
)


def randomise(model: torch.nn.Module, rng: torch.Generator) -> None:
    """Draws every parameter, at scales where each changes the logits and the decays reach from 2e-4 to 0.999."""

    def uniform(low: float, high: float, like: torch.Tensor) -> torch.Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=rng)

    for name, p in model.named_parameters():
        kind = name.removesuffix(".weight").rsplit(".", 1)[-1]
        if kind == "A_log":
            drawn = uniform(math.log(0.1), math.log(8), p)
        elif kind == "dt_bias":
            drawn = uniform(-3, 0.5, p)
        elif kind in ("D", "norm", "norm_f"):
            drawn = uniform(0.5, 1.5, p)
        elif kind == "bias":
            drawn = 0.3 * torch.randn(p.shape, generator=rng)
        elif kind in ("in_proj", "out_proj", "conv1d", "embeddings"):
            drawn = torch.randn(p.shape, generator=rng) / math.sqrt(math.prod(p.shape[1:]))
        else:
            raise ValueError(f"no scale for {name}")
        p.copy_(drawn)


@torch.no_grad()
def main() -> None:
    rng = torch.Generator().manual_seed(0)
    model = Mamba2ForCausalLM(CONFIG).eval()
    randomise(model, rng)

    ids = torch.randint(CONFIG.vocab_size, (BATCH, LENGTH), generator=rng)
    found = model(ids, use_cache=False, output_hidden_states=True)
    first, last, normed = found.hidden_states
    assert torch.equal(model.backbone.norm_f(last), normed)  # what the list holds has differed between versions

    mixer = model.backbone.layers[0].mixer
    mixer_input = torch.randn(BATCH, LENGTH, CONFIG.hidden_size, generator=rng)
    mixer_output = mixer(mixer_input)
    assert mixer.norm.group_size * CONFIG.n_groups == mixer.intermediate_size
    mixer.norm.group_size = mixer.intermediate_size
    mixer_output_one_group = mixer(mixer_input)

    np.savez(
        HERE / "mamba2.npz",
        ids_BxT=ids.int().numpy(),
        after_layer_0_BxTxd=first.numpy(),
        after_layer_1_BxTxd=last.numpy(),
        after_norm_BxTxd=normed.numpy(),
        logits_BxTxV=found.logits.numpy(),
        mixer_input_BxTxd=mixer_input.numpy(),
        mixer_output_BxTxd=mixer_output.numpy(),
        mixer_output_one_group_BxTxd=mixer_output_one_group.numpy(),
    )
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        for name, kept in (("model.safetensors", "mamba2.safetensors"), ("config.json", "mamba2.json")):
            (HERE / kept).write_bytes((Path(saved) / name).read_bytes())


if __name__ == "__main__":
    main()
