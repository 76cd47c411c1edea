"""Settings of CRAM that were found to work, by kind of data, for any width: `CRAM(presets.text(256), rngs=rngs)`.

With the width D grow: heads (of 32 numbers each, they fill the width), hidden units, the working and the semantic
memory. Router, familiarity head and write gate keep their size: they decide, and hold no answers. Everything else is a
field of the `CRAMConfig` that comes back: `dataclasses.replace` changes it.

**Price.** It is no setting of the layer. You pass it to `memory_loss`, or `training/controller.py` raises it to
`PriceConfig.top`. It is in units of your loss: a price p adds p to the loss if every token attends in every layer, and
p / 20 if one (token, layer) pair in 20 does. So it pays to attend where that saves more of a token's loss than

    p * (tokens whose loss counts / all tokens) / layers

Each preset says which `top` was found to work, and for which loss. For another loss, take a `top` at which the product
lies well below the loss of a token that must attend, and well above what attention saves where something else will do.

**Release.** Until then every token attends. It comes once the loss is flat (`PriceConfig.plateau`), but not before
`PriceConfig.start`. Each preset says what to wait for: a router that is released before retrieval works settles on not
retrieving.
"""

from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.semantic import SemanticConfig
from cram_jax.functional.working import WorkingConfig

HEAD = 32  # numbers of a head


def text(D: int, memory: int = 64) -> CRAMConfig:
    """For text: bytes or tokens, a prediction of the next one at each.

    Working memory is a gated scan, because text needs what came just before; queries and keys are rotated by position.

    Price: `top=0.2`, for a mean cross-entropy in nats. Every token's loss counts, so in two layers a token attends
    where that saves 0.1 nats. With 1 or more nothing would attend: on text attention saves a small part of the loss.
    Release: once the loss has left its steep fall; after 400 of 1000 steps in experiments/configs/text.py, which is
    this preset at D=96 with two heads.

    Args:
      D: width, a multiple of 32.
      memory: kept events that a token can see: a quarter of the sequence in that experiment.

    Raises:
      ValueError: for another width.
    """
    hidden = HEAD * -(-8 * D // (3 * HEAD))  # 8/3 of the width, in whole heads
    return _preset(D, hidden, memory, "gated_scan", rank=D, rotary=True)


def irregular(D: int, memory: int = 64) -> CRAMConfig:
    """For events at irregular times of which most recur, a few of them queries.

    Working memory is the paper's dynamics, driven by the time gap; attention sees content, not position. The semantic
    memory is twice as wide as the layer, so that it can hold what recurs.

    Price: `top=20`, for a mean cross-entropy in nats over the queries. One event in 20 is a query, so in two layers an
    event attends where that saves 0.5 nats of its answer; a guess among 64 answers costs 4.2.
    Release: once queries of new bindings are answered; after 500 of 2400 steps in experiments/configs/srcd.py, which
    is this preset at D=64.

    Args:
      D: width, a multiple of 32.
      memory: kept events that a token can see: a quarter of the sequence in that experiment.

    Raises:
      ValueError: for another width.
    """
    return _preset(D, 2 * D, memory, "ct_ode", rank=2 * D, rotary=False)


def recall(D: int, memory: int = 512) -> CRAMConfig:
    """For pairs that are told once and asked for later in the same sequence: nothing recurs in other sequences.

    Working memory is a gated scan, because a value stands beside its key; queries and keys are rotated by position.

    Price: `top=0.2`, for a mean cross-entropy in nats over the queries. One token in four is a query, so in two layers
    a token attends where that saves 0.025 nats. Nothing can take attention's place here; the price only makes the
    router choose who attends.
    Release: once queries are answered, which begins late and suddenly; half of the run in experiments/configs/mqar.py,
    which is this preset at D=64.

    Args:
      D: width, a multiple of 32.
      memory: kept events that a token can see: the whole sequence, since any pair may be asked for.

    Raises:
      ValueError: for another width.
    """
    return _preset(D, 2 * D, memory, "gated_scan", rank=2 * D, rotary=True)


def _preset(D: int, F: int, memory: int, body: str, *, rank: int, rotary: bool) -> CRAMConfig:
    if D < HEAD or D % HEAD:
        raise ValueError(f"D must be a multiple of {HEAD}, so that heads of {HEAD} fill the width, got {D}")
    return CRAMConfig(
        D=D,
        F=F,
        working=WorkingConfig(body=body, width=D),
        episodic=EpisodicConfig(heads=D // HEAD, head_dim=HEAD, memory=memory, rotary=rotary),
        semantic=SemanticConfig(rank=rank),
    )
