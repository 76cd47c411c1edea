"""Compares Theorems 1 to 3 of CRAM with the measurements in the results `static` and `recurrence`.

Theorem 1 (Eq 9): a static route depends only on the token and on fixed parameters. Let f be the share of tokens that
are queries. A static route that answers a share A of the queries uses attention on at least a share A f of the tokens.
The theorem assumes that only attention can answer.

Theorem 2 (Eq 11): at a step size eta below 2 / L^2, consolidation's error after T steps is at most
epsilon^2 + C / (T eta). The theorem is about gradient descent on a convex loss, so it is tested on a linear memory with
fixed retrievals. In the layer the memory is not linear, and the retrievals change.

Theorem 3 (Eq 12): if a share rho of the queries recurs, attention falls to at most 1 - rho + epsilon of its start.
"""

import numpy as np

from lib import results

FROM = ("static", "recurrence")
QUESTION = "Do Theorems 1 to 3 of CRAM hold in what was measured?"


def theorem_1(static: dict) -> dict:
    """Returns, by label and seed: attention, Eq 9's lower bound at that accuracy, and whether it holds.

    Args:
      static: the result `static`, a comparison of static routers.
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
    """Returns, by step size: the error above the best possible one, and its largest share of the bound C / (T eta).

    C is |W_0 - W*|^2 / 2. The memory is a matrix W that starts at W_0 = 0. Its loss is mean |W z - r|^2 / 2 over
    patterns with random codes z and retrievals r. L^2 is the curvature of the loss. There are more patterns than
    inputs, so the best error is not 0.
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
    """Returns, by label and seed: rho, and final attention relative to a model that attends exactly at queries.

    The theorem does not say what attention was at the start. If all tokens attended, as here before the release, the
    bound always holds. If only queries attended, it says something. This uses the second.

    Args:
      recurrence: the result `recurrence`, a comparison of shares of recurring bindings.
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
    """Returns the result's data: each theorem with the measurements."""
    static, recurrence = map(results.load, FROM)
    return {"theorem_1": theorem_1(static), "theorem_2": theorem_2(), "theorem_3": theorem_3(recurrence)}


def table(data: dict) -> list[tuple[str, str]]:
    """Returns the printed table: rows of (what, number)."""
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
