"""Measures how well a linear probe predicts attention's output from its input (CRAM, Eq 1), as a transformer learns.

python experiments/redundancy.py --config=experiments/configs/redundancy.py:small --workdir=runs/redundancy
"""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import text
from lib import gather, launch, summary
from lib.figures import catalogue

from cram_jax.analysis import redundancy
from cram_jax.dims import Array, Float, Tokens
from cram_jax.functional import attention
from cram_jax.functional.common import rms_norm
from cram_jax.models.stack import Stack
from cram_jax.training import files, loop, step
from cram_jax.training.files import read, strict
from cram_jax.training.loop import RunConfig
from cram_jax.training.settings import claim_workdir
from cram_jax.training.step import Learner

QUESTION = "How much of what attention gives could a linear probe of its input give, while a transformer learns?"
COMMAND = "python experiments/redundancy.py --config=experiments/configs/redundancy.py:small --workdir=runs/redundancy"


def look(
    stack: Stack, params: tuple, x_BxTxD: Tokens
) -> tuple[Tokens, list[tuple[Tokens, Tokens, Float[Array, "B T H K"]]]]:
    """Runs a transformer's stack and records its attention.

    Returns:
      The tokens after the stack, and for each layer: attention's input (B T D), attention's output (B T D), and the
      output of each head before the projection (B T H K).
    """
    B, T, _ = x_BxTxD.shape
    seen = []
    for i in range(stack.depth):
        repeat, place = divmod(i, len(stack.layers))
        layer, own = stack.layers[place], jax.tree.map(lambda leaf, repeat=repeat: leaf[repeat], params[place])
        q, k, v = attention.qkv(own, x_BxTxD, jnp.broadcast_to(jnp.arange(T), (B, T)), layer)
        o_BxTxHxK = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        a_BxTxD = attention.output(own, o_BxTxHxK, layer)
        seen.append((rms_norm(own.norm_D, x_BxTxD), a_BxTxD, o_BxTxHxK))
        x_BxTxD = layer.feed(own, x_BxTxD + a_BxTxD)
    return x_BxTxD, seen


def measured(learner: Learner, run: RunConfig, seed: int, state, tokens: int) -> dict:
    """Returns Eq 1 on held-out tokens, for each layer and for each head alone."""
    embed = lambda params, batch: learner.task.embed(params.task, batch)[0]
    watch = jax.jit(lambda params, batch: look(learner.model, params.model, embed(params, batch))[1])
    batches = [
        learner.task.batch("held_out", seed, index, run.length, run.batch)
        for index in range(run.held_out_batches(tokens))
    ]
    found = [jax.device_get(watch(state.params, batch)) for batch in batches]
    flat = lambda layer, part: np.concatenate(
        [one[layer][part].reshape(-1, *one[layer][part].shape[2:]) for one in found]
    )
    layers, heads = [], []
    for layer in range(learner.model.depth):
        hidden_NxD, o_NxHxK = flat(layer, 0), flat(layer, 2)
        layers.append(dataclasses.asdict(redundancy.score(hidden_NxD, flat(layer, 1))))
        heads.append([redundancy.score(hidden_NxD, o_NxK).mean for o_NxK in np.moveaxis(o_NxHxK, 1, 0)])
    low, high = redundancy.SHARES
    all_heads = np.array(heads)
    return {
        "mean": float(np.mean([layer["mean"] for layer in layers])),
        "explained": float(np.mean([layer["explained"] for layer in layers])),
        "layers": layers,
        "heads": heads,
        "heads_mean": float(all_heads.mean()),
        "heads_above": float(np.mean(all_heads > high)),
        "heads_between": float(np.mean((all_heads >= low) & (all_heads <= high))),
        "heads_below": float(np.mean(all_heads < low)),
    }


def train(config, workdir: Path) -> list[dict]:
    """Trains the model, and measures redundancy at the steps `config.redundancy.at`; returns the measurements.

    Raises:
      ValueError: if the model is not a transformer, or the steps do not rise to the run's last step.
    """
    learner, run = text.build(config)
    at = list(config.redundancy.at)
    if config.model != "transformer":
        raise ValueError(f"redundancy is measured in a transformer's attention, got config.model={config.model!r}")
    if at != sorted(set(at)) or at[-1] != run.steps or any(one % run.log_every for one in at):
        raise ValueError(
            f"config.redundancy.at must go up to config.run.steps={run.steps} in multiples of "
            f"log_every={run.log_every}, got {at}"
        )
    claim_workdir(workdir, config)
    looks = []
    for at_step in at:
        done = workdir / f"look_{at_step}.json"
        if not done.exists():
            state = step.init(learner, config.seed, 0)
            if at_step:  # a piece of the run, with the schedule of the whole run
                piece = dataclasses.replace(run, steps=at_step, checkpoint_every=run.log_every)
                state, _ = loop.train(learner, piece, config.seed, workdir)
            found = measured(learner, run, config.seed, state, config.redundancy.tokens)
            bits = loop.evaluate(learner, run, state, config.seed, run.final_tokens)["bits_per_byte"]
            files.write_whole(done, json.dumps(strict({"step": at_step, "bits_per_byte": bits, **found})) + "\n")
        looks.append(json.loads(done.read_text()))
        logging.info("after %d steps: mean R %.3f, R squared %.3f", at_step, looks[-1]["mean"], looks[-1]["explained"])
    return looks


def table(looks: list[dict]) -> list[tuple[str, ...]]:
    """Returns a heading, and a row for each measurement."""
    rows = [
        (
            "step",
            "R: mean",
            "... of each layer",
            "R squared",
            "heads with R above 0.8, between, below 0.5",
            "bits per byte",
        )
    ]
    for found in looks:
        layers = "  ".join(f"{layer['mean']:.2f}" for layer in found["layers"])
        heads = "  ".join(summary.percent(found[f"heads_{part}"]) for part in ("above", "between", "below"))
        numbers = (f"{found['mean']:.3f}", layers, f"{found['explained']:.3f}", heads, f"{found['bits_per_byte']:.2f}")
        rows.append((str(found["step"]), *numbers))
    return rows


def main(args) -> None:
    config, workdir = text.opened(args.config, tuple(args.files)), Path(args.workdir)
    looks = train(config, workdir)
    title = "Redundancy R of attention (Eq 1): 1 minus the relative error of a linear probe, on held-out bytes"
    summary.show(title, table(looks), heading=True)
    made = gather.made_by_launches(read(workdir / "launches.jsonl"))
    data = {"seed": config.seed, "looks": looks}
    result = gather.result("redundancy", QUESTION, COMMAND, made, config=config, data=data)
    catalogue.leave(result, workdir)


if __name__ == "__main__":
    launch.run(
        main,
        config="redundancy.py:small",
        workdir="runs/redundancy",
        files=text.FILES,
        takes="5 minutes on two CPU cores",
    )
