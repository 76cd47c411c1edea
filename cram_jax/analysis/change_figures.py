"""A change in mid-training: accuracy and attention of the patterns it concerns; readable in greyscale."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

ACCURACY = (
    ("retrieval_accuracy_changed", "changed patterns", dict(color="k", ls="-")),
    ("retrieval_accuracy_recurring", "all recurring", dict(color="0.4", ls="--")),
    ("retrieval_accuracy_new", "new in the sequence", dict(color="0.6", ls="-.")),
)
ATTENTION = (
    ("attention_query_changed", "queries of changed patterns", dict(color="k", ls="-")),
    ("attention_tokens", "all tokens", dict(color="0.4", ls="--")),
)


def draw(out: dict, path: Path) -> None:
    """The last steps before the change and all after it, as experiments/change.py summarises them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), constrained_layout=True)
    for axis, shown in ((left, ACCURACY), (right, ATTENTION)):
        for name, label, style in shown:
            for phase in ("before", "after"):
                curve = out["curves"][phase]
                if f"held_out/{name}" in curve:
                    values = 100 * np.array(curve[f"held_out/{name}"], float)
                    axis.plot(curve["step"], values, label=label if phase == "after" else None, **style)
        axis.axvline(out["at"], color="0.8", lw=4, zorder=0, label=f"the change, step {out['at']}")
        axis.set(xlabel="training step", xlim=(0.8 * out["at"], 1.4 * out["at"]))
        axis.legend(fontsize=7, frameon=False)
        axis.grid(alpha=0.2)
    left.set(ylabel="answered right (%)", ylim=(-2, 102), title="Answers, held-out")
    right.axhline(100 * out["attention_tokens_before"], color="0.6", ls=":")
    right.set_yscale("symlog", linthresh=1)
    right.set(ylabel="attend (%), linear below 1", ylim=(-0.05, 110))
    right.set_title("Attention, held-out (dotted: all tokens, before)")
    config = out["config"]
    changed = f"{config['change']['patterns']} of {config['data']['patterns']} patterns change"
    figure.suptitle(f"{changed}, {config['run']['length']} events, seed {out['seed']}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
