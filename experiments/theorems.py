"""Theorems 1 and 3 of CRAM beside what is measured.

python experiments/theorems.py    # after the comparisons `static` and `recurrence` of experiments/compare.py

Theorem 1 (Eq 9): a static route, a function of the token and fixed parameters, that answers a share A of the queries,
of which there are f a token, uses attention on at least A f of the tokens. It assumes that only attention answers.
Theorem 3 (Eq 12): where a share rho of the queries recurs, attention falls to at most 1 - rho + epsilon of what it was.
"""

import json
from pathlib import Path

from cram_jax.analysis import summary, theorem_figures
from cram_jax.training.metrics import strict

RESULTS = Path("experiments/results")


def theorem_1(static: dict) -> dict:
    """By label and seed: attention, the least that Eq 9 allows at that accuracy, and whether it is kept.

    Args:
      static: result of the comparison of static routers.
    """
    out = {}
    for label, found in static["entries"].items():
        runs = []
        for run in found["runs"]:
            least = run["retrieval_accuracy"] * run["realised_query_share"]
            attention = run["attention_tokens_end"]
            runs.append(
                {
                    "seed": run["seed"],
                    "retrieval_accuracy": run["retrieval_accuracy"],
                    "attention_tokens": attention,
                    "least_by_eq_9": least,
                    "over_least": attention / least,
                }
            )
        out[label] = {"runs": runs, "kept": all(run["over_least"] >= 1 for run in runs)}
    return out


def theorem_3(recurrence: dict) -> dict:
    """By label and seed: rho, and attention at the end over that of a model which attends to every query, and no other.

    The theorem does not say what attention(0) is. Of all tokens, as here before the release, the bound would hold by
    itself; of the queries alone it says something.

    Args:
      recurrence: result of the comparison of recurring shares.
    """
    out = {}
    for label, found in recurrence["entries"].items():
        out[label] = [
            {
                "seed": run["seed"],
                "retrieval_accuracy": run["retrieval_accuracy"],
                "rho": 1 - run["realised_new_share"] / run["realised_query_share"],
                "of_queries": run["attention_tokens_end"] / run["realised_query_share"],
                "epsilon": (run["attention_tokens_end"] - run["realised_new_share"]) / run["realised_query_share"],
                "of_all_tokens": run["attention_tokens_end"],
            }
            for run in found["runs"]
        ]
    return out


def main() -> None:
    load = lambda name: json.loads((RESULTS / f"{name}.json").read_text())
    static, recurrence = load("static"), load("recurrence")
    found = {"theorem_1": theorem_1(static), "theorem_3": theorem_3(recurrence)}
    trained_by = {"static": static["trained_by"], "recurrence": recurrence["trained_by"]}
    target = RESULTS / "theorems.json"
    target.write_text(json.dumps(strict(found | {"trained_by": trained_by} | summary.versions()), indent=1) + "\n")
    theorem_figures.draw(found, target.with_suffix(".png"))
    rows = []
    for label, entry in found["theorem_1"].items():
        ratios = ", ".join(f"{run['over_least']:.2f}" for run in entry["runs"])
        rows.append((f"Theorem 1: {label}", f"{'kept' if entry['kept'] else 'undercut'}; attention over A f: {ratios}"))
    for label, runs in found["theorem_3"].items():
        shares = ", ".join(f"{run['of_queries']:.3f} (1 - rho {1 - run['rho']:.3f})" for run in runs)
        rows.append((f"Theorem 3: {label}", shares))
    summary.show("Attention beside the theorems", rows)


if __name__ == "__main__":
    main()
