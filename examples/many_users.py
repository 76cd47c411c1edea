"""A memory for each of 1000 users: those of the visitors are taken out, learn from the visit, and are put back.

python examples/many_users.py [--steps=100] [--workdir=runs/many_users]
"""

import argparse
import time
from functools import partial
from pathlib import Path

import jax
from safetensors.numpy import save_file

import cram_jax as cj
from cram_jax.training.checkpoints import to_host

USERS, VISITORS, LENGTH, D = 1000, 16, 64, 32
MODEL = cj.Stack((cj.PosteriorCRAMConfig(D=D, F=64, semantic=cj.PosteriorConfig(blocks=4, features=32)),))


@partial(jax.jit, donate_argnums=1)
def visit(params, states, user_B, x_BxTxD):
    of_visitors = MODEL.streams_at(states, user_B)
    y_BxTxD, aux = MODEL.apply(params, of_visitors, x_BxTxD)
    return y_BxTxD, MODEL.put_streams(states, user_B, MODEL.update(of_visitors, aux))


def main(steps: int, workdir: Path) -> None:
    params = jax.jit(MODEL.init)(jax.random.key(0))  # yours are trained
    states = MODEL.release(MODEL.init_state(streams=USERS))
    for step in range(steps):
        who, what = jax.random.split(jax.random.key(step))
        user_B = jax.random.choice(who, USERS, (VISITORS,), replace=False)
        _, states = visit(params, states, user_B, jax.random.normal(what, (VISITORS, LENGTH, D)))
        start = time.perf_counter() if step == 0 else start  # the first one compiled
    jax.block_until_ready(states)
    ms = 1000 * (time.perf_counter() - start) / max(steps - 1, 1) / VISITORS
    size = sum(leaf.nbytes for leaf in jax.tree.leaves([s.memory for s in states]))
    print(f"{(states[0].memory.up_SxFxD[0].any((1, 2, 3))).sum()} of {USERS} users have a memory that is not empty")
    workdir.mkdir(parents=True, exist_ok=True)
    one, file = MODEL.streams_at(states, user_B[:1]), workdir / "user.safetensors"
    save_file(to_host(MODEL.learned(one)), file)
    print(f"{size // USERS} bytes a user, {file.stat().st_size} in a file, {ms:.2f} ms a user a visit")


if __name__ == "__main__":
    (parser := argparse.ArgumentParser()).add_argument("--steps", type=int, default=100)
    parser.add_argument("--workdir", type=Path, default=Path("runs/many_users"))
    main(**vars(parser.parse_args()))
