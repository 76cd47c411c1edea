"""A small language model in Flax NNX whose attention is CRAM: it trains, saves, restores and generates.

python examples/nnx_language_model.py [--steps=400] [--workdir=runs/nnx_language_model]
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

import cram_jax as cj

WORKING = cj.WorkingConfig(body="gated_scan", width=96)  # text needs the bytes just before
CONFIG = cj.CRAMConfig(D=96, F=256, working=WORKING, episodic=cj.EpisodicConfig(rotary=True))


class LanguageModel(nnx.Module):
    def __init__(self, rngs):
        self.embed, self.head = nnx.Embed(256, 96, rngs=rngs), nnx.Linear(96, 256, rngs=rngs)
        self.layers = cj.nnx.Stack((CONFIG, CONFIG), rngs=rngs)

    def __call__(self, byte_BxT):
        return self.head(self.layers(self.embed(byte_BxT)))

    def step(self, caches, byte_B):
        y_BxD, caches = self.layers.step(caches, self.embed(byte_B))
        return self.head(y_BxD), caches


@nnx.jit
def train_step(model, optimizer, byte_BxT, price):
    def loss(model):
        logits = model(byte_BxT[:, :-1])
        task = optax.softmax_cross_entropy_with_integer_labels(logits, byte_BxT[:, 1:]).mean()
        return task + cj.nnx.memory_loss(model, price)[0], task

    (_, task), gradient = nnx.value_and_grad(loss, has_aux=True)(model)
    optimizer.update(model, gradient)
    cj.nnx.update(model)
    return task / jnp.log(2), cj.nnx.attention_utilisation(model)


def main(steps: int, workdir: Path) -> None:
    text = np.concatenate([np.fromfile(f, np.uint8) for f in sorted(Path(argparse.__file__).parent.glob("*.py"))])
    create = lambda: LanguageModel(nnx.Rngs(params=0, route=1))
    model, again = nnx.jit(create)(), nnx.eval_shape(create)
    model.train()
    optimizer = nnx.Optimizer(model, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(2e-3)), wrt=nnx.Param)
    for step in range(steps):
        if step == steps // 2:  # until now every byte attended; from now on the router decides, at a rising price
            cj.nnx.release(model)
        start = np.random.default_rng(step).integers(len(text) - 257, size=(16, 1))
        byte_BxT, price = jnp.asarray(text[start + np.arange(257)], jnp.int32), 0.1 * max(0, 2 * step / steps - 1)
        bits, attends = train_step(model, optimizer, byte_BxT, jnp.asarray(price))
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: {bits:.2f} bits a byte, {attends:.0%} of (byte, layer) pairs attend", flush=True)

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(workdir.resolve() / "model", nnx.state(model), force=True)
        checkpointer.wait_until_finished()
        nnx.update(again, checkpointer.restore(workdir.resolve() / "model", nnx.state(again)))

    stream, caches, text = nnx.jit(LanguageModel.step), again.layers.init_cache(1), list(b"def ")
    for position in range(120):
        logits, caches = stream(again, caches, jnp.asarray(text[position : position + 1]))
        if position + 1 == len(text):
            text.append(int(jax.random.categorical(jax.random.key(position), logits[0])))
    print(bytes(text).decode(errors="replace"))


if __name__ == "__main__":
    (parser := argparse.ArgumentParser()).add_argument("--steps", type=int, default=400)
    parser.add_argument("--workdir", type=Path, default=Path("runs/nnx_language_model"))
    main(**vars(parser.parse_args()))
