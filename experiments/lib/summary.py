"""Summaries of a run: a flat dictionary, made from logged lines and a last evaluation, and printed tables."""

import itertools
import re
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from cram_jax.analysis.transition import rise_at_end, transition_step
from cram_jax.training.machine import peak_memory_mb, versions


class Column(NamedTuple):
    """Attributes: heading; number, its name in a run's summary; written, "%" for a percentage, or a format."""

    heading: str
    number: str
    written: str = "%"


def _step_ms(lines: list[dict], first: bool) -> float:
    """Median step time over the first or last tenth of the logged lines."""
    times = [line["step_ms"] for line in lines if np.isfinite(line["step_ms"])]
    part = max(1, len(times) // 10)
    chosen = times[:part] if first else times[-part:]
    return float(np.median(chosen)) if chosen else float("nan")


def missing_lines(lines: list[dict], steps: int, every: int) -> list[int]:
    """Returns the steps that should have a line, and have none: lines that were damaged or lost.

    A run may begin at another step than 0. Then it begins with a line of no training.

    Args:
      steps: steps of the trained state. every: steps between lines.
    """
    logged = {line["step"] for line in lines}
    begins = lines and lines[0]["step"] < steps and not any(name.startswith("train/") for name in lines[0])
    return [step for step in range(lines[0]["step"] if begins else 0, steps + 1, every) if step not in logged]


def skipped_steps(lines: list[dict]) -> int:
    """How many steps were skipped, of those that are logged."""
    share = lambda line: np.nan_to_num(line.get("train/skipped_share", 0.0))
    return round(sum(share(line) * (line["step"] - last["step"]) for last, line in itertools.pairwise(lines)))


def attention_curve(lines: list[dict]) -> dict:
    """Returns start, peak and transition of attention on held-out data, evaluation audits included, in both units."""
    out = {}
    for unit in ("attention_tokens", "attention_utilisation"):
        curve = [line[f"held_out/{unit}"] for line in lines]
        out |= {f"{unit}_start": curve[0], f"{unit}_peak": max(curve)}
    # Before the release all tokens attend by design, so the transition is searched after it. Lines hold means over
    # steps: if the router was released in one of them, the evaluation comes after the release.
    free = [line for line in lines if line.get("train/released", 0) > 0]
    out["router_released_step"] = free[0]["step"] if free else None
    tokens = [line["held_out/attention_tokens"] for line in free]
    out["attention_tokens_peak_after_release"] = max(tokens, default=None)
    out["transition_step"] = transition_step([line["step"] for line in free], tokens) if free else None
    out["attention_tokens_rise_last_fifth"] = rise_at_end([line["held_out/attention_tokens"] for line in lines])
    out["attention_tokens_training_end"] = lines[-1].get("train/attention_tokens", float("nan"))
    return out


def busiest_layer(lines: list[dict]) -> int:
    """Returns the layer that attends most after the release, or over the whole run if there was none."""
    after = [line for line in lines if line.get("train/released", 0) > 0] or lines
    layers = [n for n in lines[0] if n.startswith("held_out/attention_layer_")]
    return int(np.argmax([np.mean([line[n] for line in after]) for n in layers]))


def calibration_errors(probed: dict, layer: int) -> dict[str, float]:
    """Returns `familiarity_calibration_error_GROUP` of one layer, for all tokens and for the first group."""
    named = re.compile(rf"reliability_(.+)_count_layer_{layer}")
    groups = [found[1] for found in map(named.fullmatch, probed) if found]
    return {f"familiarity_calibration_error_{group}": calibration_error(probed, group, layer) for group in groups}


def calibration_error(probed: dict, group: str, layer: int) -> float:
    """Returns the mean over tokens of |mean q-hat - mean q| in bins of q-hat.

    Within a bin errors of single tokens can cancel. `familiarity_error_*` is the mean error of single tokens.
    """
    parts = ("count", "familiarity", "quality")
    bins = {n: np.array(probed[f"reliability_{group}_{n}_layer_{layer}"]) for n in parts}
    count = bins["count"].sum()
    return float(np.abs(bins["familiarity"] - bins["quality"]).sum() / count) if count else float("nan")


def summarise(lines: list[dict], final: dict, probed: dict, seed: int) -> dict:
    """Returns the flat dictionary of `summary.json`: final metrics, probes, attention curve, times and versions.

    Args:
      lines: logged lines of the run.
      final: metrics of the last held-out evaluation.
      probed: `loop.probe` of the trained state; {} if no layer consolidates.
      seed: the run's seed.
    """
    out = {"seed": seed, "steps": lines[-1]["step"], "skipped_steps": skipped_steps(lines)}
    out |= {name: value for name, value in final.items() if not isinstance(value, list)}
    if "attention_tokens" in final:
        out |= {f"{unit}_end": final[unit] for unit in ("attention_tokens", "attention_utilisation")}
        out |= attention_curve(lines)
        layer = out["busiest_layer"] = busiest_layer(lines)
        out |= calibration_errors(probed, layer)
        out |= {name: value for name, value in probed.items() if not isinstance(value, list)}
        suffix = f"_layer_{layer}"
        out |= {n.removesuffix(suffix) + "_busiest": value for n, value in out.items() if n.endswith(suffix)}
    out |= {"step_ms_start": _step_ms(lines, True), "step_ms_end": _step_ms(lines, False)}
    out |= {"train_seconds": lines[-1]["seconds"]}
    out["peak_memory_mb"] = max([peak_memory_mb(), *(line.get("peak_memory_mb", 0) for line in lines)])
    return out | versions()


def percent(share: float) -> str:
    """Returns a share as a percentage, or a dash if there is none."""
    return "-" if share is None or not np.isfinite(share) else f"{100 * share:.2f}%"


def shares(out: dict, **names: str) -> str:
    """Returns percentages: "all 99.90%  new 98.00%" for all="retrieval_accuracy", new="retrieval_accuracy_new"."""
    return "  ".join(f"{shown.replace('_', ' ')} {percent(out[name])}" for shown, name in names.items())


def attention_rows(out: dict, token: str = "token") -> list[tuple[str, str]]:
    """Returns rows (what, number) about attention. token: the task's word for a token."""
    curve = lambda unit: shares(out, start=f"{unit}_start", highest=f"{unit}_peak", end=f"{unit}_end")
    step = lambda name: "never" if out[name] is None else str(out[name])
    return [
        (f"{token}s that attend in some layer", curve("attention_tokens")),
        (f"  share of all ({token}, layer) pairs that attend", curve("attention_utilisation")),
        (f"  {token}s that attend in training, with random audits", shares(out, end="attention_tokens_training_end")),
        ("first step at which the router decides", step("router_released_step")),
        ("step at which attention fell", step("transition_step")),
        (f"{token}s kept in the buffer", shares(out, busiest_layer="kept_share_busiest", mean_of_layers="kept_share")),
    ]


def time_rows(out: dict, token: str = "token") -> list[tuple[str, str]]:
    """Returns rows (what, number) about time and memory."""
    step = lambda when, length: f"{when} {out[f'step_ms_{when}']:.0f} ms ({length} {token}s)"
    return [
        (
            "time of a training step, by length of the sequences",
            f"{step('start', out['length_start'])}  {step('end', out['length'])}",
        ),
        ("time of the training, peak memory", f"{out['train_seconds']:.0f} s, {out['peak_memory_mb']:.0f} MB"),
    ]


def compared(columns: tuple[Column, ...], entries: dict[str, dict]) -> list[tuple[str, ...]]:
    """Returns a heading, and a row for each entry with mean and standard deviation over seeds in each column."""

    def cell(found: dict, column: Column) -> str:
        write = percent if column.written == "%" else lambda value: format(value, column.written)
        if column.number not in found["mean"]:
            return "-"
        spread = f" +- {write(found['sd'][column.number])}" if found["sd"].get(column.number) else ""
        return write(found["mean"][column.number]) + spread

    rows = [("", *(column.heading for column in columns), "learning rate", "seeds")]
    for label, found in entries.items():
        rate = found.get("chosen", {}).get("learning_rate", found["settings"].get("optimizer.learning_rate"))
        diverged = f", {found['diverged']} diverged" if found.get("diverged") else ""
        cells = [cell(found, column) for column in columns]
        rows.append((label, *cells, f"{rate:g}" if rate else "", f"{len(found['runs'])}{diverged}"))
    return rows


def show(title: str, rows: list[tuple[str, ...]], heading: bool = False) -> None:
    """Prints a table. If `heading` is True, the first row is the heading. A row of one cell begins a section."""
    head, *body = rows if heading else [("",) * max(map(len, rows)), *rows]
    table = Table(title=title, title_justify="left", show_header=heading)
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i and heading else "left")
    for row in body:
        if len(row) == 1:
            table.add_section()
        table.add_row(*row, style="bold" if len(row) == 1 else None)
    Console(width=120).print(table)
