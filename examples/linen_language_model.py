"""A small language model in Flax Linen whose attention is CRAM: it trains, saves, restores and generates.

python examples/linen_language_model.py [--steps=400] [--workdir=runs/linen_language_model]
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen as nn

import cram_jax as cj

CONFIG = cj.CRAMConfig(D=96, F=256, working=cj.WorkingConfig("gated_scan", 96), episodic=cj.EpisodicConfig(rotary=True))
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(2e-3))


class LanguageModel(nn.Module):
    deterministic: bool = True

    def setup(self):
        self.embed, self.head = nn.Embed(256, 96), nn.Dense(256)
        self.layers = cj.linen.Stack((CONFIG, CONFIG), deterministic=self.deterministic)

    def __call__(self, byte_BxT):
        return self.head(self.layers(self.embed(byte_BxT)))

    def step(self, byte_B):
        return self.head(self.layers.step(self.embed(byte_B)))


@jax.jit
def train_step(variables, opt_state, byte_BxT, price, key):
    def loss(params):
        held, model = variables | {"params": params}, LanguageModel(deterministic=False)
        logits, seen = model.apply(held, byte_BxT[:, :-1], rngs={"route": key}, mutable=["memory"])
        task = optax.softmax_cross_entropy_with_integer_labels(logits, byte_BxT[:, 1:]).mean()
        return task + cj.linen.memory_loss(seen["memory"], price)[0], (task, seen["memory"])

    (_, (task, memory)), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    change, opt_state = OPTIMIZER.update(gradient, opt_state, variables["params"])
    params = optax.apply_updates(variables["params"], change)
    variables = {"params": params, "consolidation": cj.linen.update(variables["consolidation"], memory)}
    return variables, opt_state, task / jnp.log(2), cj.linen.attention_utilisation(memory)


def main(steps: int, workdir: Path) -> None:
    text = np.concatenate([np.fromfile(f, np.uint8) for f in sorted(Path(argparse.__file__).parent.glob("*.py"))])
    variables = jax.jit(LanguageModel().init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    opt_state = OPTIMIZER.init(variables["params"])
    for step in range(steps):
        if step == steps // 2:  # until now every byte attended; from now on the router decides, at a rising price
            variables["consolidation"] = cj.linen.release(variables["consolidation"])
        start = np.random.default_rng(step).integers(len(text) - 257, size=(16, 1))
        byte_BxT, price = jnp.asarray(text[start + np.arange(257)], jnp.int32), 0.1 * max(0, 2 * step / steps - 1)
        variables, opt_state, bits, attends = train_step(variables, opt_state, byte_BxT, price, jax.random.key(step))
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: {bits:.2f} bits a byte, {attends:.0%} of (byte, layer) pairs attend", flush=True)

    ocp.PyTreeCheckpointer().save(workdir.resolve() / "model", variables, force=True)
    again = ocp.PyTreeCheckpointer().restore(workdir.resolve() / "model")
    model, text = LanguageModel(), list(b"def ")
    cache = {"cache": model.init(jax.random.key(0), jnp.zeros(1, jnp.int32), method="step")["cache"]}
    stream = jax.jit(lambda held, byte_B: model.apply(held, byte_B, method="step", mutable=["cache"]))
    for position in range(120):
        logits, cache = stream(again | cache, jnp.asarray(text[position : position + 1]))
        if position + 1 == len(text):
            text.append(int(jax.random.categorical(jax.random.key(position), logits[0])))
    print(bytes(text).decode(errors="replace"))


if __name__ == "__main__":
    (parser := argparse.ArgumentParser()).add_argument("--steps", type=int, default=400)
    parser.add_argument("--workdir", type=Path, default=Path("runs/linen_language_model"))
    main(**vars(parser.parse_args()))
