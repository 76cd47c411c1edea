"""Deploys models trained on streams and looks into their memories: what do they know of their errors, what fades?

python experiments/streams_memory.py --config=experiments/configs/streams.py:small --runs=runs/streams_small [--seeds=3]

The trained models are those of `streams.py`; what is not trained yet is trained first. From
`deployment.retire.visit` on, a share of each stream's patterns are neither bound nor asked for.

Every EVERY visits the memories are asked about the same visit as it would be had no pattern retired. Of this probe
nothing is learned. A result and its figure are written to a folder below --runs. Reported:

- before patterns retire: expected and measured squared errors of recall, of all tokens that need memory, in ten bins;
- the share of queries that semantic memory would answer: of patterns that retire, of others, and of one-off bindings;
- the share of the memory that is free.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from configs.streams import ENTRIES
from lib import deployment, gather, launch, stream_runs, summary
from lib.summary import Column
from ml_collections import ConfigDict

from cram_jax.analysis import calibration
from cram_jax.functional.routing import SEMANTIC
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import QUERY, SRCDBatch
from cram_jax.tasks.streams import StreamsConfig
from cram_jax.training.files import read
from cram_jax.training.machine import versions
from cram_jax.training.step import Learner, Params

QUESTION = "Does a memory know how wrong it is, and does it forget patterns that occur no more?"
LABEL = "memory learns"
EVERY = 5  # visits
LAST = 4  # probes that are counted together, before patterns retire and at the end
KINDS = ("retired", "others", "new")
COLUMNS = (
    Column("measured /\nexpected", "ratio_lowest", ".2f"),
    Column("to", "ratio_highest", ".2f"),
    Column("memory free:\nbefore", "free_before"),
    Column("\nlast", "free_end"),
    *(Column(f"{kind}:\n{when}", f"{kind}_{when}") for kind in KINDS for when in ("before", "end")),
)


class Probe(NamedTuple):
    """What the memories of all streams say about a visit.

    Attributes:
      visit: its number.
      free_share: of the memories, a mean.
      asked, answered: queries of each of KINDS, and those that semantic memory would answer.
      errors: (expected, measured) of the tokens that need memory.
    """

    visit: int
    free_share: float
    asked: np.ndarray
    answered: np.ndarray
    errors: tuple[np.ndarray, np.ndarray]


def retiring(config: ConfigDict, data: StreamsConfig) -> StreamsConfig:
    """Returns the settings of streams in which patterns retire.

    Raises:
      ValueError: unless there are LAST probes before they retire, and as many after it.
    """
    at, visits = config.deployment.retire.visit, config.deployment.retire.visits
    if not LAST * EVERY <= at <= visits - LAST * EVERY:
        raise ValueError(
            f"deployment.retire.visit must be between {LAST * EVERY} and {LAST * EVERY} below "
            f"deployment.retire.visits={visits}, got {at}"
        )
    return dataclasses.replace(data, retire_visit=at, retire_share=config.deployment.retire.share)


@jax.jit(static_argnums=0)
def audited(model: Stack, params, states: tuple, x_BxTxD, gap_BxT):
    """Returns (the routes of the only layer, whose tokens are all audited, its state)."""
    key = jax.random.key(0)  # which random numbers draw the audits does not matter
    _, aux = model.replace(lambda layer: layer.audited()).apply(params, states, x_BxTxD, gap_BxT=gap_BxT, key=key)
    ((_, routes),) = model.routes(aux)
    return routes, jax.tree.map(lambda leaf: leaf[0], states[0])


def probe(learner: Learner, params: Params, states: tuple, batch: SRCDBatch, visit: int) -> Probe:
    """Asks the memories about a visit."""
    routes, state = audited(learner.model, params.model, states, *learner.task.embed(params.task, batch))
    new_BxT, pattern_BxT = np.asarray(batch.is_new_BxT), np.asarray(batch.pattern_BxT)
    data = learner.task.data
    retires_BxT = pattern_BxT >= data.srcd.patterns - data.retired
    marks = [mark & (np.asarray(batch.kind_BxT) == QUERY) for mark in (retires_BxT & ~new_BxT, ~retires_BxT, new_BxT)]
    marks[1] &= ~new_BxT
    answered_BxT = np.asarray(routes.choice_BxT) == SEMANTIC
    return Probe(
        visit,
        float(jnp.mean(state.memory.free_share)),
        np.array([mark.sum() for mark in marks]),
        np.array([(mark & answered_BxT).sum() for mark in marks]),
        calibration.errors(state, routes),
    )


def probes(config: ConfigDict, seed: int, at: Path) -> list[Probe]:
    """Returns what the memories of fresh streams say as they live."""
    own = stream_runs.settings(config, ENTRIES[LABEL], seed)
    own.deployment.visits = config.deployment.retire.visits
    learner = stream_runs.deployed_learner(own, ENTRIES[LABEL], lambda data: retiring(config, data))
    full = dataclasses.replace(learner.task, data=dataclasses.replace(learner.task.data, retire_visit=None))
    state = stream_runs.train(own, stream_runs.workdir(at, ENTRIES, LABEL, seed))
    found = []

    def ask(visit: int, progress: deployment.Progress) -> None:
        if visit % EVERY == 0:
            batch = full.batch("held_out", seed, visit, own.run.length, own.deployment.streams)
            found.append(probe(learner, state.params, progress.carried, batch, visit))

    stream_runs.deploy(LABEL, ENTRIES[LABEL].reader(learner, own.deployment), state, own, before=ask)
    return found


def numbers(seed: int, found: list[Probe], retire_visit: int) -> tuple[dict, dict]:
    """Returns (the numbers of a run, its curves by visit)."""
    before = sum(one.visit < retire_visit for one in found)
    binned = calibrated(found, retire_visit)
    ratio = binned.measured / binned.expected
    run = {"seed": seed, "ratio_lowest": float(ratio.min()), "ratio_highest": float(ratio.max())}
    curves = {"visit": [one.visit for one in found], "free_share": [one.free_share for one in found]}
    asked, answered = (np.stack([getattr(one, name) for one in found]) for name in ("asked", "answered"))
    for when, at in (("before", slice(before - LAST, before)), ("end", slice(-LAST, None))):
        run[f"free_{when}"] = found[at][-1].free_share
        shares = answered[at].sum(0) / np.maximum(asked[at].sum(0), 1)
        run |= {f"{kind}_{when}": float(share) for kind, share in zip(KINDS, shares, strict=True)}
    for kind, share in zip(KINDS, (answered / np.maximum(asked, 1)).T, strict=True):
        curves[f"answered_{kind}"] = share.tolist()
    return run, curves


def calibrated(found: list[Probe], retire_visit: int) -> calibration.Calibration:
    """Returns expected and measured errors in bins, from the probes before patterns retire."""
    errors = [one.errors for one in found if one.visit < retire_visit]
    return calibration.in_bins(*(np.concatenate(values) for values in zip(*errors, strict=True)))


def main(args) -> None:
    config, at, seeds = args.config, Path(args.runs), range(args.seeds)
    retire = config.deployment.retire
    retiring(config, StreamsConfig())  # so that wrong settings show before the first training
    found = {seed: probes(config, seed, at) for seed in seeds}
    places = [stream_runs.workdir(at, ENTRIES, LABEL, seed) for seed in seeds]
    made = gather.made_by_launches([*(line for place in places for line in read(place / "launches.jsonl")), versions()])
    runs, curves = zip(*(numbers(seed, of, retire.visit) for seed, of in found.items()), strict=True)
    entry = stream_runs.entry(ENTRIES[LABEL], made, list(runs), curves=list(curves))
    said = f"{retire.share:.0%} of the patterns occur no more from visit {retire.visit} on"
    about = "Errors in ten bins; the memory's free share; queries that semantic memory would answer, before and at last"
    table = stream_runs.table(COLUMNS, {LABEL: entry})
    summary.show(f"{said}, seeds {', '.join(map(str, seeds))}\n{about}", table, heading=True)
    binned = calibrated([one for of in found.values() for one in of], retire.visit)
    data = {"calibration": {name: values.tolist() for name, values in binned._asdict().items()}}
    stream_runs.leave("streams_memory", args, "streams_memory", QUESTION, made, {LABEL: entry}, data)


if __name__ == "__main__":
    launch.run(
        main,
        **stream_runs.FLAGS,
        takes="1 minute for each seed (tiny) after streams.py, two CPU cores",
    )
