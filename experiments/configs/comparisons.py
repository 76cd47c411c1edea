"""The runs behind the comparisons, written down before they start. `experiments/compare.py --name=NAME` runs one.

A comparison is a question, a variant of a config file, seeds, and by label the settings that differ. Where it has
several learning rates, each entry without one of its own is trained at each, and the best by `chosen_by` is reported.
"""

from importlib import import_module

from configs import language, mqar
from lib import runs
from lib.grid import Comparison
from lib.summary import Column
from ml_collections import ConfigDict

from cram_jax.functional.routing import FEATURES, PAPER_FEATURES


def _but(*left_out: str) -> dict:
    return {"cram.routing.features": tuple(name for name in FEATURES if name not in left_out)}


# CRAM's settings were found in its development; the baselines get a search of their own, on a seed that no table
# reports.
BASELINES = {name: {"model": name, "optimizer.weight_decay": 0.01} for name in ("transformer", "mamba2", "seqboat")}
TUNING = {
    f"{name}, rate {rate:g}": settings | {"optimizer.learning_rate": rate, "run.steps": 1200}
    for name, settings in BASELINES.items()
    for rate in (1e-3, 2e-3, 4e-3, 8e-3)
}
# Recall asks Mamba-2 for slow decays, and for a state that holds the bindings of a sequence.
TUNING_MAMBA2 = {
    f"mamba2, state {state}, slow decays, rate {rate:g}": BASELINES["mamba2"]
    | {"mamba2.state": state, "mamba2.spread": "recall", "optimizer.learning_rate": rate, "run.steps": 1200}
    for state in (64, 16)
    for rate in (4e-3, 8e-3)
}

# What the two searches found best, by retrieval: checks/test_verdicts.py holds table_1 to them.
TUNED = {
    "transformer": {"optimizer.learning_rate": 4e-3},
    "mamba2": {"optimizer.learning_rate": 8e-3, "mamba2.state": 64, "mamba2.spread": "recall"},
    "seqboat": {"optimizer.learning_rate": 1e-3},
}
WITHOUT_CONSOLIDATION = {"cram without consolidation": {"objective.distillation": 0.0, "cram.semantic.rank": 0}}
TABLE_1 = {name: settings | TUNED[name] for name, settings in BASELINES.items()} | {"cram": {}} | WITHOUT_CONSOLIDATION
# Eight layers and four times as long a run as the others': rows of their own, so that they can be trained apart.
BASELINE_JAMBA = {"model": "jamba", "depth": 1, "optimizer.weight_decay": 0.01}
TUNING_JAMBA = {
    f"jamba, rate {rate:g}": BASELINE_JAMBA | {"optimizer.learning_rate": rate, "run.steps": 1200}
    for rate in (1e-3, 2e-3, 4e-3)
}
JAMBA = {"jamba": BASELINE_JAMBA | {"optimizer.learning_rate": 4e-3}}

ABLATIONS = {
    "cram": {},
    # Consolidation, one part after the other
    "no distillation": {"objective.distillation": 0.0},
    "no semantic memory": {"cram.semantic.rank": 0},
    "rank 4 (width / 16)": {"cram.semantic.rank": 4},
    "rank 16": {"cram.semantic.rank": 16},
    "semantic rate x 10": {"optimizer.rates": (("model.*.semantic.*", 10.0),)},
    "no reward for recall": {"objective.semantic_reward": 0.0},
    "weight decay 0.01": {"optimizer.weight_decay": 0.01},
    # The price and the release
    "no price": {"price.top": 0.0},
    "released at once": {"price.start": 0, "price.plateau": 1.0},
    # What the router sees
    "no familiarity": _but("familiarity"),
    "no uncertainty": _but("uncertainty"),
    "no dynamics": _but("dynamics"),
    "no gap": _but("gap"),
    "content alone": {"cram.routing.features": ("content",)},
    "the paper's inputs": {"cram.routing.features": PAPER_FEATURES},
    "circular q": {"model": "circular"},
    # What it learns from
    "audits alike": {"cram.routing.audit_gain": 0.0},
    "hardly any audits": {"cram.routing.audit_gain": 0.0, "cram.routing.audit_rate": 0.001},
    # The buffer
    "buffer of 4": {"cram.episodic.memory": 4},
    "buffer of 8": {"cram.episodic.memory": 8},
    "buffer of 64": {"cram.episodic.memory": 64},
    "writes nearly free": {"objective.write_price": 0.01},
    # Working memory
    "gated scan": {"cram.working.body": "gated_scan"},
    "ssd": {"cram.working.body": "ssd"},
    "palimpsa": {"cram.working.body": "palimpsa"},
    "three paths in turn": {"cram.routing.working_always": False},
    # The task
    "shared new keys": {"data.new_keys": "shared"},
    "10 patterns": {"data.patterns": 10},
    "100 patterns": {"data.patterns": 100},
}

# A working memory with a matrix for a state could hold new bindings itself: is less attention needed than there are?
# `small` as it stands has the paper's ct_ode (experiments/results/srcd_small).
WORKING_MEMORY = {body: {"cram.working.body": body} for body in ("ssd", "palimpsa")}

# On the paper's task one memory serves all sequences. With and without consolidation, in the layer for streams.
SINGLE_TABLE = {model: {"model": model, "depth": 1} for model in ("posterior_cram", "never_written")}

RECURRENCE = {f"{100 - new}% recur": {"data.new_share": new / 100} for new in (0, 30, 50, 70, 100)}


def _static() -> dict[str, dict]:
    """Routers of one layer: by chance, by place, and by nothing but the event itself; with and without recurrence."""
    entries = {}
    for new in (1.0, 0.3):
        common = {"depth": 1, "data.new_share": new}
        said = "nothing recurs" if new == 1.0 else "70% recur"
        for budget in (0.05, 0.25, 0.5):
            for decide in ("random", "positions"):
                fixed = {"cram.routing.decide": decide, "cram.routing.budget": budget}
                entries[f"{decide} {budget:.0%}, {said}"] = common | fixed
        entries[f"the event alone, {said}"] = common | {"cram.routing.features": ("content",)}
    return entries


# Associative recall. What is called half or twice has as large a state as the models without, or with, importance.
# A run of cram takes as long as five of the others. It gets the rate at which the transformer, too, solves the task.
def _recall(variant: str) -> dict[str, dict]:
    keys = mqar.VARIANTS[variant]["sizes"]["key"]
    return {
        "palimpsa": {"model": "palimpsa"},
        "palimpsa, half the keys": {"model": "palimpsa", "palimpsa.key_dim": keys // 2},
        "gated_linear": {"model": "gated_linear"},
        "metamamba2": {"model": "metamamba2"},
        "mamba2": {"model": "mamba2"},
        "mamba2, twice the state": {"model": "mamba2", "mamba2.state": 2 * keys},
        "gated_delta": {"model": "gated_delta"},
        "transformer": {"model": "transformer"},
        "cram": {"model": "cram", "optimizer.learning_rate": 4.64e-3},
    }


RECALL = Comparison(
    "Does importance help associative recall, at equal width and at equal state?",
    "75 runs: 1 to 2 minutes each on one core of an Intel Xeon, five times as long for cram",
    "small",
    range(3),
    _recall("small"),
    config="mqar",
    main="mqar",
    rates=(4.64e-3, 1e-2, 2.15e-2),
    chosen_by="validation_accuracy",
    columns=(
        Column("values named right", "accuracy"),
        Column("bytes of state", "state_bytes", ".0f"),
        Column("parameters", "parameters", ",.0f"),
    ),
    kept=(),
)
LANGUAGE = Comparison(
    "How do tiny Palimpsa, MetaMamba2, Mamba-2 and transformer models compare on the bytes of real files?",
    "8 runs, 5 minutes each on one core of an Intel Xeon",
    "small",
    range(1),
    {model: {"model": model, "depth": depth} for model, depth in language.DEPTHS.items()},
    config="language",
    main="text",
    rates=(3e-3, 6e-3),
    # Not the files that are reported. A run reads less than a tenth of the training text, so it has seen hardly any of
    # what it reads in its last steps.
    chosen_by="training_bits_per_byte",
    lower=True,
    columns=(
        Column("bits per byte, held-out files", "bits_per_byte", ".3f"),
        Column("... of a 3-gram model", "bits_per_byte_3_gram", ".3f"),
        Column("parameters", "parameters", ",.0f"),
        Column("ms a step", "step_ms_end", ".0f"),
    ),
    kept=(),
)

COMPARISONS = {
    "tuning": Comparison(
        "Which learning rate suits each baseline on sequences of 256 events?", "12 runs", "small", range(9, 10), TUNING
    ),
    "tuning_mamba2": Comparison(
        "Which state, decays and learning rate suit Mamba-2 on sequences of 256 events?",
        "4 runs",
        "small",
        range(9, 10),
        TUNING_MAMBA2,
    ),
    "table_1": Comparison(
        "How do CRAM and the paper's baselines compare in retrieval, attention, dynamics and cost on sequences of 256 "
        "events?",
        "25 runs, 4 to 12 minutes each on one core of an Intel Xeon, two at a time",
        "small",
        range(5),
        TABLE_1,
    ),
    "jamba": Comparison(
        "How does Jamba compare with the models of table_1 on sequences of 256 events?",
        "5 runs, 3 minutes each on a GPU (H200), six at a time",
        "small",
        range(5),
        JAMBA,
    ),
    "tuning_jamba": Comparison(
        "Which learning rate suits Jamba on sequences of 256 events?",
        "3 runs on a GPU (H200)",
        "small",
        range(9, 10),
        TUNING_JAMBA,
    ),
    "paper_size": Comparison(
        "Does attention fall without consolidation, too, on the paper's 2,048 events?",
        "1 run, beside srcd_paper and srcd_paper_transformer",
        "paper",
        range(1),
        WITHOUT_CONSOLIDATION,
    ),
    "jamba_paper_size": Comparison(
        "How does Jamba retrieve on the paper's 2,048 events, and at what cost?",
        "1 run, an hour on one core of an Intel Xeon",
        "paper",
        range(1),
        JAMBA,
    ),
    "ablations": Comparison(
        "Which parts of CRAM do retrieval and the fall of attention depend on?",
        "90 runs, a minute or two each",
        "tiny",
        range(3),
        ABLATIONS,
    ),
    "working_memory": Comparison(
        "Does a working memory with a matrix for a state take attention below the share of new bindings?",
        "6 runs, 10 to 13 minutes each on one core of an Intel Xeon, two at a time",
        "small",
        range(3),
        WORKING_MEMORY,
    ),
    "single_table": Comparison(
        "Does a memory that is solved, not trained, cost fewer operations and less time than no consolidation?",
        "6 runs, 7 to 11 minutes each on one core of an AMD EPYC",
        "paper",
        range(3),
        SINGLE_TABLE,
    ),
    "recurrence": Comparison(
        "Does attention need a share of recurring queries above which it begins to fall?",
        "15 runs, a minute or two each",
        "tiny",
        range(3),
        RECURRENCE,
    ),
    "static": Comparison(
        "Can a router that is a fixed function of the event attend less than Theorem 1 allows?",
        "42 runs, a minute each",
        "tiny",
        range(3),
        _static(),
    ),
    "mqar": RECALL,
    "mqar_paper": RECALL._replace(
        question="Does importance help associative recall of the paper's size?",
        takes="75 runs on an accelerator; not run yet",
        variant="paper",
        entries=_recall("paper"),
    ),
    "language": LANGUAGE,
}


def configured(comparison: Comparison, seed: int, changes: dict) -> ConfigDict:
    """The settings of one run: the comparison's, in which these are set, by dotted names.

    Raises:
      KeyError: for a setting that does not exist.
    """
    config = import_module(f"configs.{comparison.config}").get_config(comparison.variant)
    config.seed = seed
    return runs.change(config, changes)


def settings(comparison: Comparison, label: str, seed: int) -> ConfigDict:
    """The settings of one run, by the label of its entry."""
    return configured(comparison, seed, comparison.entries[label])
