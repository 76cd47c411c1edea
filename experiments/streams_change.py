"""Deploys models trained on streams where patterns change their answers: is what was learned before unlearned?

python experiments/streams_change.py --config=experiments/configs/streams.py:small --runs=runs/streams_small [--seeds=3]
python experiments/streams_change.py --config=... --runs=... --what=controls   # and all that carry something else
python experiments/streams_change.py --config=... --runs=... --what=ablations  # and with one thing changed each

The trained models are those of `streams.py`; what is not trained yet is trained first. At `deployment.change.visit` a
share of each stream's patterns get other answers. A result and its figure are written to a folder below --runs.

Reported of the changed patterns: right answers, by the number of bindings of the pattern since the change; wrong
answers for each pattern; and attention over first queries, before and after the change. A changed pattern counts
as one that the stream has not been asked for.
"""

import dataclasses
from pathlib import Path

from configs.streams import CHANGED, ENTRIES, MODEL
from configs.streams_ablations import ABLATIONS, GROUPS
from lib import deployment, launch, stream_runs, summary
from lib.stream_runs import Entry
from lib.summary import Column
from ml_collections import ConfigDict

from cram_jax.tasks.streams import StreamsConfig

QUESTION = "Does a fixed model in fresh streams answer rightly after patterns have changed, and what does it attend?"
ALL = ENTRIES | ABLATIONS
# What is compared: the result's name, and the entries.
WHAT = {
    "model": ("streams_change", MODEL),
    "controls": ("streams_change_controls", CHANGED),
    "ablations": ("streams_ablations", tuple(ABLATIONS)),
}
COUNTED = "streams_change"  # folder of the counts, in the directory of a training
BLOCK = 5  # visits
SHOWN = 3  # bindings since the change that have a number of their own
COLUMNS = (
    *(Column(f"right at\nbinding {n}", f"changed_right_after_{n}") for n in range(1, SHOWN + 1)),
    Column("right:\nlast", "retrieval_accuracy_changed_end"),
    Column("wrong of\na pattern", "wrong_answers_per_pattern", ".2f"),
    Column("over first:\nbefore", "over_least_before", ".2f"),
    Column("\nhighest", "over_least_highest", ".2f"),
    Column("\nlast", "over_least_end", ".2f"),
)


def changing(config: ConfigDict, data: StreamsConfig) -> StreamsConfig:
    """Returns the settings of streams with the change.

    Raises:
      ValueError: unless a block of visits lies before the change, and one after it.
    """
    at, visits = config.deployment.change.visit, config.deployment.change.visits
    if not BLOCK <= at <= visits - BLOCK:
        raise ValueError(
            f"deployment.change.visit must be between {BLOCK} and {BLOCK} below deployment.change.visits={visits}, "
            f"got {at}"
        )
    return dataclasses.replace(data, change_visit=at, change_share=config.deployment.change.share)


def numbers(seed: int, rows: list[dict], counts: stream_runs.Counts, change_visit: int, patterns: int) -> dict:
    """Returns the numbers of a run.

    Args:
      rows: blocks of visits.
      patterns: changed patterns of all streams together.
    """
    before = [row for row in rows if row["first_visit"] + BLOCK <= change_visit]
    after = [row for row in rows if row["first_visit"] + BLOCK > change_visit]
    asked, right = counts["changed_by_binding"].sum(0), counts["changed_right_by_binding"].sum(0)
    lowest = lambda name: min(row[name] for row in rows if row["first_visit"] < change_visit)
    share = lambda n: float(right[n] / asked[n]) if asked[n] else None
    return {
        "seed": seed,
        **{f"changed_right_after_{n}": share(n) for n in range(1, SHOWN + 1)},
        "retrieval_accuracy_changed_end": after[-1]["retrieval_accuracy_changed"],
        "wrong_answers_per_pattern": float((asked - right).sum() / patterns),
        "queries_per_pattern": float(asked.sum() / patterns),
        "over_least_before": before[-1]["over_least"],
        "over_least_highest": max(row["over_least"] for row in after),
        "over_least_end": after[-1]["over_least"],
        "attention_tokens_end": after[-1]["attention_tokens"],
        "least_end": after[-1]["least"],
        "retrieval_accuracy": lowest("retrieval_accuracy"),
        "retrieval_accuracy_new": lowest("retrieval_accuracy_new"),
        "retrieval_accuracy_before": before[-1]["retrieval_accuracy"],
        "retrieval_accuracy_end": after[-1]["retrieval_accuracy"],
    }


def entry(config: ConfigDict, of: Entry, seeds: dict[int, stream_runs.Counts], made: dict) -> tuple[dict, dict]:
    """Returns an entry, and its queries of changed patterns by the bindings since the change, over all seeds."""
    settings = config.deployment
    patterns = settings.streams * round(settings.change.share * config.data.srcd.patterns)
    rows = {seed: deployment.blocks(counts, BLOCK) for seed, counts in seeds.items()}
    found = [numbers(seed, rows[seed], counts, settings.change.visit, patterns) for seed, counts in seeds.items()]
    curves = [{name: [row[name] for row in one] for name in one[0]} for one in rows.values()]
    total = lambda name: sum(counts[name].sum(0) for counts in seeds.values()).tolist()
    by_binding = {"asked": total("changed_by_binding"), "right": total("changed_right_by_binding")}
    return stream_runs.entry(of, made, found, curves=curves), by_binding


def main(args) -> None:
    at, seeds, (name, whole) = Path(args.runs), range(args.seeds), WHAT[args.what]
    chosen = list(dict.fromkeys(args.entry or whole))
    settings = args.config.deployment.change
    change = lambda data: changing(args.config, data)
    for label in chosen:  # so that wrong settings show before the first training
        config = stream_runs.settings(args.config, ALL[label], 0)
        stream_runs.deployed_learner(config, ALL[label], change)
    visits = {"deployment.visits": settings.visits}
    read = {label: of._replace(deployed=of.deployed | visits) for label, of in ALL.items()}
    counts = {seed: stream_runs.deployed(args.config, read, chosen, seed, at, COUNTED, change) for seed in seeds}
    made = stream_runs.made_by(at, ALL, chosen, seeds, COUNTED)
    entries, by_binding = {}, {}
    for label in chosen:
        of_seeds = {seed: counts[seed][label] for seed in seeds}
        entries[label], by_binding[label] = entry(args.config, ALL[label], of_seeds, made)
    said = f"{settings.share:.0%} of the patterns change at visit {settings.visit}"
    title = f"{said}, seeds {', '.join(map(str, seeds))}\nQueries of changed patterns, and tokens that attend"
    summary.show(title, stream_runs.table(COLUMNS, entries), heading=True)
    if set(chosen) != set(whole):
        return print("This was a part of the entries, so no result was written.")
    data = {"by_binding": by_binding}
    if args.what == "ablations":
        data["groups"] = {group: list(entries) for group, entries in GROUPS.items()}
    stream_runs.leave("streams_change", args, name, QUESTION, made, entries, data)


if __name__ == "__main__":
    launch.run(
        main,
        **stream_runs.FLAGS,
        what=launch.Flag("model", "The model alone, or beside all controls.", tuple(WHAT)),
        entry=launch.Flag([], "Only the entry with this label; may be repeated. All by default.", tuple(ALL)),
        takes="2 minutes for each seed of the model (small) after streams.py, two CPU cores",
    )
