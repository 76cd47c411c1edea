"""Theorems 1 to 3 of CRAM beside what the results `static` and `recurrence` measured.

Theorem 1 (Eq 9): a static route is a function of the token and fixed parameters. If it answers a share A of the
queries, of which there are f a token, it uses attention on at least A f of the tokens. The theorem assumes that only
attention answers.
Theorem 2 (Eq 11): below a step size of 2 / L^2, consolidation's error after T steps is at most epsilon^2 + C / (T eta).
It is about gradient descent on a convex loss. So it is tried on a linear memory and fixed retrievals; the layer's
memory is not linear, and its retrievals change.
Theorem 3 (Eq 12): if a share rho of the queries recurs, attention falls to at most 1 - rho + epsilon of what it was.
"""

import numpy as np

from lib import results

FROM = ("static", "recurrence")
QUESTION = "Do Theorems 1 to 3 of CRAM hold in what was measured?"


def theorem_1(static: dict) -> dict:
    """By label and seed: attention, the least that Eq 9 allows at that accuracy, and whether the bound is kept.

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


STEP_SIZES = (0.1, 0.5, 1.0, 1.9, 2.1)  # in units of 1 / L^2


def theorem_2(patterns: int = 100, width: int = 64, steps: int = 2000, seed: int = 0) -> dict:
    """By step size: the error above the best, and its largest share of C / (T eta), C = |W_0 - W*|^2 / 2.

    The memory is a matrix W that begins at 0. Its loss is mean |W z - r|^2 / 2 over patterns with random codes z and
    retrievals r; L^2 is the loss's curvature. There are more patterns than inputs, so the best error is not 0.
    """
    random = np.random.default_rng(seed)
    z_PxD, r_PxD = random.standard_normal((2, patterns, width))
    best_DxD = np.linalg.lstsq(z_PxD, r_PxD, rcond=None)[0]
    loss = lambda w_DxD: 0.5 * np.mean(np.sum((z_PxD @ w_DxD - r_PxD) ** 2, axis=1))
    least, C = loss(best_DxD), 0.5 * np.sum(best_DxD**2)
    curvature = np.linalg.norm(z_PxD, 2) ** 2 / patterns
    out = {"least_error": float(least)}
    for size in STEP_SIZES:
        eta, w_DxD, errors = size / curvature, np.zeros((width, width)), []
        for _ in range(steps):
            w_DxD = w_DxD - eta * z_PxD.T @ (z_PxD @ w_DxD - r_PxD) / patterns
            errors.append(loss(w_DxD) - least)
        share = np.array(errors) * np.arange(1, steps + 1) * eta / C
        marks = np.unique(np.geomspace(1, steps, 40).astype(int))
        out[f"{size:g} / L^2"] = {
            "largest_share_of_bound": float(share.max()),
            "error_end": float(errors[-1]),
            "step": marks.tolist(),
            "error": [float(f"{errors[T - 1]:.4g}") for T in marks],
            "bound": [float(f"{C / (T * eta):.4g}") for T in marks],
        }
    return out


def theorem_3(recurrence: dict) -> dict:
    """By label and seed: rho, and attention at the end over that of a model which attends for queries alone.

    The theorem does not say what attention was at first. If all tokens attended, as here before the release, the bound
    holds whatever happens. If only queries did, it says something.

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


def compute() -> dict:
    """The result's data: each theorem beside what was measured."""
    static, recurrence = map(results.load, FROM)
    return {"theorem_1": theorem_1(static), "theorem_2": theorem_2(), "theorem_3": theorem_3(recurrence)}


def table(data: dict) -> list[tuple[str, str]]:
    """Rows of (what, figure) for a person."""
    rows = []
    for label, entry in data["theorem_1"].items():
        ratios = ", ".join(f"{run['over_least']:.2f}" for run in entry["runs"])
        rows.append((f"Theorem 1: {label}", f"{'kept' if entry['kept'] else 'undercut'}; attention over A f: {ratios}"))
    for size in STEP_SIZES:
        share = data["theorem_2"][f"{size:g} / L^2"]["largest_share_of_bound"]
        rows.append((f"Theorem 2: largest share of C / (T eta) at a step of {size:g} / L^2", f"{share:.3g}"))
    for label, runs in data["theorem_3"].items():
        shares = ", ".join(f"{run['of_queries']:.3f} (1 - rho {1 - run['rho']:.3f})" for run in runs)
        rows.append((f"Theorem 3: {label}", shares))
    return rows
