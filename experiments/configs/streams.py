"""Streams of SRCD: attention that falls by experience, after training, with fixed parameters and without labels.

python experiments/streams.py --config=experiments/configs/streams.py:VARIANT --runs=runs/streams_VARIANT [--what=...]
python experiments/streams_change.py --config=experiments/configs/streams.py:VARIANT --runs=runs/streams_VARIANT

1. Training: each row of a batch is a stream with bindings of its own, replaced by a fresh one at the end of its life.
2. Deployment: parameters are fixed. Fresh streams are read visit by visit, with no label and no gradient; only what is
   carried from visit to visit changes. All entries are trained on the same streams, with as many tokens a step, and
   deployed in the same fresh streams.

| entry | what is trained | what is carried from visit to visit |
|---|---|---|
| memory learns | CRAM with a posterior for semantic memory | the memory of each stream |
| memory fixed | the same, not trained again | nothing: the memory is held empty |
| routed by chance | the same, not trained again | nothing; of the tokens that would attend, chance picks `budget` |
| no consolidation | the same layer, whose memory is never written | nothing |
| gradient adapter | CRAM with one adapter, two layers | a copy of the adapter for each stream; it learns by Adam |
| transformer, seqboat | these, two layers | nothing |
| mamba2, palimpsa, carried | these, two layers, on `joined` visits in one sequence | their recurrent state |

- With an empty memory, the event alone decides who attends. So "memory fixed" and "no consolidation" are static routers
  that were learned. "Routed by chance" picks among the tokens that need memory, as many as the first entry attends at
  the end: by Theorem 1 it answers at most the share of queries that attend, and of the others what a guess among all
  answers gets right.
- The router of the gradient adapter met no familiar pattern in training, because one adapter served all streams.
- The gradient adapter retrieves for every token of a visit, after it was answered, to teach its adapter. These
  retrievals are attention as well. They are reported as `consolidation_tokens`, beside `attention_tokens`.
- A recurrent model learns on single visits first, then on 4 joined ones, and at last on 16: one sequence where the
  others have 16 rows. So 16 of its steps read the visits that 16 of theirs do, in another order. It takes `longer`
  times as many steps, since it had not learned after as many. It never attends; what counts is what it answers.

Reported for each ten visits: tokens that attend, first queries (of new bindings, and of patterns that no earlier visit
asked for), and the share of right answers.

`streams_change.py` deploys the same trained models in streams where a quarter of the patterns get other answers at
`deployment.change.visit`, and reads `deployment.change.visits`. Their training knew no changes; `data.change_visit`
puts changes into the training.

| variant | a visit | training | deployment | on 2 cores of a server's CPU, each seed |
|---|---|---|---|---|
| demo | 64 events, 12 patterns | 2000 steps | 16 streams, 60 visits | 3 minutes for the first two entries |
| tiny | 64 events, 12 patterns | 1200 steps | 16 streams, 100 visits | 3 minutes for the first two entries |
| small | 256 events, 100 patterns | 2000 steps | 64 streams, 1000 visits | not timed |
"""

from configs.comparisons import BASELINES, TABLE_1
from lib import readers, runs
from lib.stream_runs import Entry
from ml_collections import ConfigDict

from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.palimpsa import PalimpsaConfig
from cram_jax.functional.posterior import PosteriorConfig
from cram_jax.functional.posterior_cram import PosteriorCRAMConfig
from cram_jax.functional.seqboat import SeqBoatConfig
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.streams import StreamsConfig
from cram_jax.tasks.streams_task import StreamsTask
from cram_jax.training.controller import PriceConfig
from cram_jax.training.loop import RunConfig
from cram_jax.training.settings import to_config

SHORT = dict(length=64, patterns=12, lifetimes=(24, 48, 72), blocks=8, features=32, start=200, streams=16)
VARIANTS = {
    "demo": SHORT | dict(steps=2000, visits=60),
    "tiny": SHORT | dict(steps=1200, visits=100),
    "small": dict(
        steps=2000,
        length=256,
        patterns=100,
        lifetimes=(48, 96, 144),
        blocks=16,
        features=64,
        start=300,
        streams=64,
        visits=1000,
    ),
}

# The baselines have the settings of table_1, with its two layers: no less than there. A batch is a quarter of that
# there, and at its rate of 1e-3 SeqBoat learned little. Palimpsa, which is not in that table, has as large a state as
# Mamba-2, an importance apart.
BASELINE = {name: TABLE_1[name] | {"depth": 2} for name in BASELINES}
BASELINE["seqboat"] |= {"optimizer.learning_rate": 4e-3}
PALIMPSA = BASELINE["mamba2"] | {"model": "palimpsa", "palimpsa.spread": "recall"}
PALIMPSA |= {"palimpsa.key_dim": 64, "palimpsa.value_dim": 32}
del PALIMPSA["mamba2.state"], PALIMPSA["mamba2.spread"]

# The older layer begins to retrieve later. With one layer it had not at step 200, was released, and never did.
ADAPTER = {"model": "cram", "depth": 2, "price.start": 700}

ENTRIES = {
    "memory learns": Entry({}, readers.learning),
    "memory fixed": Entry({}, readers.fixed),
    "routed by chance": Entry({}, readers.chance),
    "no consolidation": Entry({"model": "never_written"}, readers.fixed),
    "gradient adapter": Entry(ADAPTER, readers.descending),
    "transformer": Entry(BASELINE["transformer"], readers.fixed),
    "seqboat": Entry(BASELINE["seqboat"], readers.fixed),
    "mamba2, carried": Entry(BASELINE["mamba2"] | {"carried": True}, readers.carrying),
    "palimpsa, carried": Entry(PALIMPSA | {"carried": True}, readers.carrying),
}
MODEL = ("memory learns", "memory fixed")
# Visits that are eight times as long as those of training, so more is forgotten between them.
LONG = {"run.length": 2048, "data.srcd.length": 2048, "posterior_cram.episodic.memory": 2048}
LONG |= {"posterior_cram.semantic.keep": 0.5, "deployment.visits": 40}
LONGER = {f"{label}, 2048 events": ENTRIES[label]._replace(deployed=LONG) for label in MODEL}
# A change is news to those that carry something from visit to visit; the second reads each visit by itself.
CHANGED = (*MODEL, "gradient adapter", "mamba2, carried", "palimpsa, carried")


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the settings of one variant; ValueError for an unknown one."""
    chosen = runs.variant_of(VARIANTS, variant)
    length = chosen["length"]
    run = RunConfig(
        steps=chosen["steps"], length=length, batch=16, log_every=100, held_out_tokens=64 * length, probe_batches=0
    )
    data = StreamsConfig(srcd=SRCDConfig(patterns=chosen["patterns"]), lifetimes=chosen["lifetimes"])
    semantic = PosteriorConfig(blocks=chosen["blocks"], features=chosen["features"])
    layer = PosteriorCRAMConfig(episodic=EpisodicConfig(heads=1, memory=length), semantic=semantic)
    config = runs.settings(
        run,
        {
            "posterior_cram": layer,
            "cram": CRAMConfig(episodic=EpisodicConfig(memory=length)),
            "transformer": AttentionConfig(),
            "seqboat": SeqBoatConfig(),
            "mamba2": Mamba2Config(),
            "palimpsa": PalimpsaConfig(),
        },
        price=PriceConfig(start=chosen["start"]),
        data=to_config(data),
        dynamics_weight=StreamsTask().dynamics_weight,
        variant=variant,  # named in the command of a result
        carried=False,  # whether training sequences join visits
        joined=(1, 4, 16),  # how many, in equal parts of the training one after the other
        longer=4,  # and how many times as many steps. With as many as the others the recurrent models had not learned.
        deployment={
            "streams": chosen["streams"],
            "visits": chosen["visits"],
            "budget": 0.3,  # of "routed by chance": the share of queries that ask for new bindings
            "descent": {"rate": 2e-3, "steps": 1},  # of "gradient adapter": Adam's rate, and its steps in a visit
            "change": {"visit": 200, "share": 0.25, "visits": 260},  # of streams_change.py
            "retire": {"visit": 200, "share": 0.5, "visits": 340},  # of streams_memory.py
        },
    )
    config.depth = 1
    config.price.ramp = config.run.get_oneway_ref("steps") // 3
    config.data.srcd.length = config.run.get_oneway_ref("length")
    return config
