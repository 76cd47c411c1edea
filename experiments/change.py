"""Changes the answers of some recurring patterns during training, and measures how attention returns and falls again.

python experiments/change.py --config=experiments/configs/change.py:small --workdir=runs/change [--config.seed=1]

The config file describes the protocol. There are two trainings, before and after the change, each with its own
directory below --workdir. Result and figure are written to --workdir itself.
`experiments/promote.py change DIR DIR ...` makes one result of several seeds.
"""

from pathlib import Path

import jax
import numpy as np
import srcd
from lib import gather, launch, runs, summary
from lib.figures import catalogue
from ml_collections import ConfigDict

from cram_jax.training import loop
from cram_jax.training.consolidate import consolidate
from cram_jax.training.files import read

QUESTION = "Is a pattern that changes learned again, and does attention come back for it?"
COMMAND = (
    "python experiments/change.py --config=experiments/configs/change.py:small --config.seed=SEED "
    "--workdir=runs/change_seed_SEED"
)

# Columns that the figure shows
SHOWN = (
    "step",
    "held_out/retrieval_accuracy_changed",
    "held_out/retrieval_accuracy_recurring",
    "held_out/retrieval_accuracy_new",
    "held_out/attention_query_changed",
    "held_out/attention_tokens",
)


def phases(config: ConfigDict) -> tuple[ConfigDict, ConfigDict]:
    """Returns the settings before and after the change. Learning rate and price continue as in one training."""
    before = config.copy_and_resolve_references()
    change = before.change
    with before.unlocked():
        del before.change
    after = before.copy_and_resolve_references()
    before.run.steps = change.at
    after.data.changed = change.patterns
    return before, after


def hand_over(before: ConfigDict, after: ConfigDict, source: Path, target: Path) -> None:
    """Lets the training in `target` start from the last state of that in `source`, unless it has already started."""
    (old, _), (new, _) = srcd.build(before), srcd.build(after)
    patterns = old.task.data.patterns
    runs.begin_from(lambda _: runs.last_state(old, before.seed, source, patterns), new, after.seed, target, patterns)


def recovery(before: list[dict], after: list[dict]) -> dict:
    """Returns how accuracy on changed patterns and attention of all events recovered, in steps since the change."""
    name = "held_out/attention_tokens"
    usual = float(np.mean([line[name] for line in before[-5:]]))
    steps = np.array([line["step"] for line in after]) - after[0]["step"]
    accuracy = np.array([line["held_out/retrieval_accuracy_changed"] for line in after])
    attention = np.array([line[name] for line in after])
    stays = lambda good: next((int(s) for i, s in enumerate(steps) if np.all(good[i:])), None)
    return {
        "attention_tokens_before": usual,
        "accuracy_changed_lowest": float(accuracy.min()),
        "attention_tokens_highest": float(attention.max()),
        "steps_to_99": next((int(s) for s, a in zip(steps, accuracy, strict=True) if a >= 0.99), None),
        "steps_to_99_for_good": stays(accuracy >= 0.99),
        "steps_to_usual_attention_for_good": stays(attention <= 1.1 * usual),
        "accuracy_changed_end": float(accuracy[-1]),
        "attention_tokens_end": float(attention[-1]),
    }


def wrong_answers(config: ConfigDict, after: list[dict]) -> float:
    """Estimates how many queries of changed patterns were answered wrong in training after the change."""
    data, run = config.data, config.run
    each = run.length * run.batch * data.query_share * (1 - data.new_share) * config.data.changed / data.patterns
    wrong = [1 - line["train/retrieval_accuracy_changed"] for line in after[1:]]
    return each * run.log_every * float(np.nansum(wrong))


def without_training(config: ConfigDict, after: ConfigDict, source: Path) -> dict:
    """Calls `consolidate` on the trained state in the changed world; returns held-out metrics before and after."""
    learner, run = srcd.build(after)
    _, state = runs.last_state(learner, after.seed, source, learner.task.data.patterns)
    measure = lambda state: loop.evaluate(learner, run, state, after.seed, run.final_tokens)
    seen = (
        learner.task.batch("train", after.seed, config.change.at + i, run.length, run.batch)
        for i in range(config.change.batches)
    )
    taught, losses = consolidate(learner, state, seen, jax.random.key(after.seed), config.change.rate)
    names = (
        "retrieval_accuracy_changed", "retrieval_accuracy_recurring", "retrieval_accuracy_new", "attention_tokens",
        "attention_query_changed",
    )  # fmt: skip
    pick = lambda found: {name: found[name] for name in names}
    return {
        "before": pick(measure(state)),
        "after": pick(measure(taught)),
        "batches": config.change.batches,
        "loss_first": float(losses[0]),
        "loss_last": float(losses[-1]),
    }


def table(out: dict) -> list[tuple[str, str]]:
    """Returns the printed table: rows of (what, number)."""
    percent, call = summary.percent, out["consolidate"]
    both = lambda name: f"{percent(call['before'][name])} -> {percent(call['after'][name])}"
    return [
        ("queries of changed patterns answered right: lowest, end", f"{percent(out['accuracy_changed_lowest'])}  "
         f"{percent(out['accuracy_changed_end'])}"),
        ("... steps to 99%: the first time, for good", f"{out['steps_to_99']}  {out['steps_to_99_for_good']}"),
        ("events that attend: before the change, highest, at the end", f"{percent(out['attention_tokens_before'])}  "
         f"{percent(out['attention_tokens_highest'])}  {percent(out['attention_tokens_end'])}"),
        ("... steps until they are within 10% of before, for good", f"{out['steps_to_usual_attention_for_good']}"),
        ("wrong answers in training after the change, about", f"{out['wrong_answers']:.0f}"),
        (f"instead of training, `consolidate` on {call['batches']} batches: changed patterns answered right",
         both("retrieval_accuracy_changed")),
        ("... all recurring patterns", both("retrieval_accuracy_recurring")),
        ("... new bindings", both("retrieval_accuracy_new")),
        ("... events that attend", both("attention_tokens")),
    ]  # fmt: skip


def entry(out: dict, before: list[dict], after: list[dict], made: dict) -> dict:
    """Returns an entry with one run that joins both trainings. The second one continues the first's step numbers.

    Args:
      out: the numbers that `table` shows.
      before, after: logged lines of both trainings.
      made: `made_by`, as in `gather.made_by`.
    """
    call = out["consolidate"]
    run = {name: value for name, value in out.items() if name != "consolidate"}
    for when in ("before", "after"):
        run |= {f"{when}_consolidate_{name}": value for name, value in call[when].items()}
    run |= {f"consolidate_{name}": call[name] for name in ("batches", "loss_first", "loss_last")}
    run = gather.flat(run | {"trained_by": made["commits"], "trained_on": made["machines"]})
    found, lacking = gather.columns(after, SHOWN), [np.nan] * len(before)
    early = gather.columns(before, SHOWN)
    curve = {name: early.get(name, lacking) + values for name, values in found.items()}
    curve["changed"] = [0] * len(before) + [1] * len(after)
    return {"settings": {}, "runs": [run], **gather.statistics([run]), "curves": [curve]}


def train(config: ConfigDict, workdir: Path) -> dict:
    """Does both trainings and the call of `consolidate`; prints, writes and returns the result."""
    before, after = phases(config)
    at = {name: workdir / name for name in ("before", "after")}
    lines = {}
    for name, settings in (("before", before), ("after", after)):
        learner, run = srcd.build(settings)
        if name == "after":
            hand_over(before, after, at["before"], at["after"])
        _, lines[name] = runs.train(settings, learner, run, at[name], patterns=learner.task.data.patterns)
    out = {"seed": config.seed, "at": config.change.at} | recovery(lines["before"], lines["after"])
    out |= {"wrong_answers": wrong_answers(after, lines["after"])}
    out |= {"consolidate": without_training(config, after, at["before"])}
    title = f"{config.change.patterns} of {config.data.patterns} patterns change at step {config.change.at}"
    summary.show(f"{title}, seed {config.seed}", table(out))
    made = gather.made_by_launches([one for name in at for one in read(at[name] / "launches.jsonl")])
    entries = {f"seed {config.seed}": entry(out, lines["before"], lines["after"], made)}
    result = gather.result("change", QUESTION, COMMAND, made, config=config, entries=entries)
    catalogue.leave(result, workdir)
    return result


def main(args) -> None:
    train(args.config, Path(args.workdir))


if __name__ == "__main__":
    launch.run(
        main, config="change.py:small", workdir="runs/change", takes="6 minutes (small) on two CPU cores, for each seed"
    )
