"""Trains on streams, then deploys the fixed models in fresh ones: does attention fall by experience alone?

python experiments/streams.py --config=experiments/configs/streams.py:small --runs=runs/streams_small [--seeds=3]
python experiments/streams.py --config=... --runs=... --what=controls          # and all that it is compared with
python experiments/streams.py --config=... --runs=... --what=long              # the model on visits of 2048 events
python experiments/streams.py --config=... --runs=... --what=speeds            # slow and fast consolidation, for Eq 14
python experiments/streams.py --config=... --runs=... --entry="seqboat"        # a part, so no result

A result and its figure are written to a folder with its name below --runs, beside the trainings that all share.
The config file describes the entries, training, deployment and what is reported.
"""

from pathlib import Path

from configs.streams import ENTRIES, LONGER, MODEL
from configs.streams_ablations import SPEEDS
from lib import deployment, launch, stream_runs, summary
from lib.summary import Column

QUESTION = "Does the attention of a fixed model fall in fresh streams, by what it retrieved there before?"
# What is trained: the result's name, and its entries. All find the same trainings below --runs.
WHAT = {
    "model": ("streams", MODEL),
    "controls": ("streams_controls", tuple(ENTRIES)),
    "long": ("streams_long", tuple(LONGER)),
    "speeds": ("streams_speeds", tuple(SPEEDS)),
}
ALL = ENTRIES | LONGER | SPEEDS
COUNTED = "streams"  # folder of the counts, in the directory of a training
BLOCK = 10  # visits
COLUMNS = (
    Column("attend:\nfirst", "attention_tokens_first"),
    Column("\nlast", "attention_tokens_end"),
    Column("over first\nqueries", "over_least_highest", ".2f"),
    Column("more, to\nconsolidate", "consolidation_tokens"),
    Column("right:\nfirst", "retrieval_accuracy_first"),
    Column("\nlast", "retrieval_accuracy_end"),
    Column("patterns:\nlast", "retrieval_accuracy_recurring_end"),
    Column("new:\nlast", "retrieval_accuracy_new_end"),
)


def numbers(seed: int, rows: list[dict]) -> dict:
    """Returns the numbers of a run, from its blocks of visits."""
    first, last = rows[0], rows[-1]
    lowest = lambda name: min(row[name] for row in rows)
    run = {
        "seed": seed,
        "attention_tokens_first": first["attention_tokens"],
        "attention_tokens_end": last["attention_tokens"],
        "attention_queries_end": last["attention_queries"],
        "least_end": last["least"],
        "new_end": last["new"],
        "over_least_highest": max(row["over_least"] for row in rows),
        "retrieval_accuracy_first": first["retrieval_accuracy"],
        "retrieval_accuracy_recurring_first": first["retrieval_accuracy_recurring"],
        "retrieval_accuracy_lowest": lowest("retrieval_accuracy"),
        "retrieval_accuracy_new_lowest": lowest("retrieval_accuracy_new"),
        "retrieval_accuracy_end": last["retrieval_accuracy"],
        "retrieval_accuracy_recurring_end": last["retrieval_accuracy_recurring"],
        "retrieval_accuracy_new_end": last["retrieval_accuracy_new"],
        "operations_per_token_end": last["operations_per_token"],
    }
    if last["consolidation_tokens"]:
        run["consolidation_tokens"] = last["consolidation_tokens"]
    return run


def entry(of: stream_runs.Entry, seeds: dict[int, stream_runs.Counts], made: dict) -> dict:
    """Returns an entry: a run for each seed, with its numbers and its curve over blocks of visits."""
    found, curves, exposures = [], [], []
    for seed, counts in seeds.items():
        rows = deployment.blocks(counts, BLOCK)
        found.append(numbers(seed, rows))
        curves.append({name: [row[name] for row in rows] for name in rows[0]})
        asked, attended = (counts[f"{what}_by_exposure"].sum(0).tolist() for what in ("asked", "attended"))
        exposures.append({"k": list(range(len(asked))), "count": asked, "episodic": attended})
    return stream_runs.entry(of, made, found, curves=curves, exposures=exposures)


def main(args) -> None:
    at, seeds, (name, whole) = Path(args.runs), range(args.seeds), WHAT[args.what]
    chosen = [label for label in ALL if label in (args.entry or whole)]
    for label in chosen:  # so that wrong settings show before the first training
        stream_runs.build(stream_runs.settings(args.config, ALL[label], 0))
    counts = {seed: stream_runs.deployed(args.config, ALL, chosen, seed, at, COUNTED) for seed in seeds}
    made = stream_runs.made_by(at, ALL, chosen, seeds, COUNTED)
    entries = {label: entry(ALL[label], {seed: counts[seed][label] for seed in seeds}, made) for label in chosen}
    settings = stream_runs.deployed_settings(args.config, ALL[chosen[0]]).deployment
    visits = f"{settings.visits} visits of {settings.streams} fresh streams"
    least = summary.percent(next(iter(entries.values()))["mean"]["least_end"])
    title = f"{visits}, parameters fixed, no labels, seeds {', '.join(map(str, seeds))}"
    about = f"Tokens that attend, queries answered right: the first and last ten visits. First queries at last: {least}"
    summary.show(
        f"{title}\n{about}",
        stream_runs.table(COLUMNS, entries),
        heading=True,
    )
    if set(chosen) != set(whole):
        return print("This was a part of the entries, so no result was written.")
    stream_runs.leave("streams", args, name, QUESTION, made, entries)


if __name__ == "__main__":
    launch.run(
        main,
        **stream_runs.FLAGS,
        what=launch.Flag("model", "The model alone, beside all controls, on long visits, or for Eq 14.", tuple(WHAT)),
        entry=launch.Flag([], "Only the entry with this label; may be repeated. All by default.", tuple(ALL)),
        takes="3 minutes for each seed of the model (tiny), two CPU cores",
    )
