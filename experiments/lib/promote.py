"""Makes committed results: gathers finished runs, checks that they can serve as evidence, and writes them.

Nothing else writes committed results.
"""

import datetime
import json
from pathlib import Path

from lib import gather, results


class Refused(ValueError):
    """The runs cannot become a result. The message says why."""


def promote(
    name: str,
    workdirs: list[Path],
    *,
    question: str | None = None,
    command: str | None = None,
    notes: tuple[str, ...] = (),
    replace: bool = False,
    folder: Path = results.RESULTS,
) -> dict:
    """Writes `folder`/NAME/result.json from finished run directories, and returns the result.

    A directory holds either the `result.json` of a comparison or measurement, or the `summary.json` of one run. Runs
    become one entry, with their model as label. Several results become one if the labels of their entries differ.

    Args:
      name: name of the result.
      workdirs: the run directories.
      question, command: question and command of the result. Runs need them, unless a result of that name exists.
      notes: further notes for readers.
      replace: True to overwrite a result with another question or other settings.

    Raises:
      Refused: if runs are unfinished, have uncommitted code, different commits, equal seeds or different settings, or
        if a result must not be overwritten. Then nothing is written.
    """
    old = results.load(name, folder) if name in results.names(folder) else None
    try:
        new = _gathered(name, [Path(workdir) for workdir in workdirs], old, question, command)
        results.check(new)
    except ValueError as error:
        raise Refused(str(error)) from error
    _one_clean_commit(new["made_by"]["commits"])
    _distinct_seeds(new["entries"])
    if old is not None and not replace:
        _same_question(old, new)
    new["made_by"]["date"] = datetime.date.today().isoformat()
    new["made_by"]["notes"] += notes
    results.write(Path(folder) / name, new)
    return new


def _gathered(name: str, workdirs: list[Path], old: dict | None, question: str | None, command: str | None) -> dict:
    if len(set(map(Path.resolve, workdirs))) < len(workdirs):
        raise Refused(f"a directory is named twice: {' '.join(map(str, workdirs))}")
    made = [workdir for workdir in workdirs if (workdir / "result.json").exists()]
    if made and len(made) < len(workdirs):
        rest = " ".join(str(workdir) for workdir in workdirs if workdir not in made)
        raise Refused(f"some directories hold a result.json and some do not: {rest}")
    if made:
        out = _merged([json.loads((workdir / "result.json").read_text()) for workdir in workdirs])
        return out | {"name": name, "question": question or out["question"], "command": command or out["command"]}
    unfinished = [str(workdir) for workdir in workdirs if not (workdir / "summary.json").exists()]
    if unfinished:
        raise Refused(f"not finished, no summary.json or result.json: {' '.join(unfinished)}. Run their commands again")
    gaps = [str(workdir) for workdir in workdirs if _summary(workdir).get("missing_lines")]
    if gaps:
        raise Refused(f"metrics.jsonl has lost lines in {' '.join(gaps)}: train anew in another directory")
    question, command = question or (old and old["question"]), command or (old and old["command"])
    if not (question and command):
        raise Refused(f"{name} is a new result: give its --question, and the --command that makes its runs")
    found, config = gather.of_directories(workdirs)
    made = gather.made_by([_summary(workdir) for workdir in workdirs])
    return gather.result(name, question, command, made, config=config, entries={config["model"]: found})


def _summary(workdir: Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def _merged(parts: list[dict]) -> dict:
    """Merges several results into one. Their settings may differ only in the seed."""
    for part in parts:
        results.check(part)
    first, *rest = parts
    out = json.loads(json.dumps(first))
    for part in rest:
        if part["question"] != first["question"]:
            raise Refused(f"the results ask different questions: {first['question']!r} and {part['question']!r}")
        if names := list(gather.difference(_settings(first), _settings(part))):
            raise Refused(f"the results have different settings: {', '.join(names)}")
        if twice := sorted(out["entries"].keys() & part["entries"].keys()):
            raise Refused(f"the results have the same entries: {', '.join(twice)}")
        if part["data"] != first["data"]:
            raise Refused("the results hold different data beside their entries, which cannot be added up")
        seeded = gather.difference(first["config"] or {}, part["config"] or {})
        for label, entry in part["entries"].items():
            out["entries"][label] = entry | {"settings": seeded | entry["settings"]}
        for key in ("commits", "machines", "notes"):
            out["made_by"][key] += [one for one in part["made_by"][key] if one not in out["made_by"][key]]
        if part["made_by"]["versions"] != first["made_by"]["versions"]:
            raise Refused(f"made by {first['made_by']['versions']} and {part['made_by']['versions']}")
    return out


def _settings(result: dict) -> dict:
    """Settings of a result without those that depend on the seed."""
    return gather.unseeded(result["config"] or {})


def _one_clean_commit(commits: list[str]) -> None:
    if not commits:
        raise Refused("no commit is noted: the code that ran was in no repository")
    if unclean := [commit for commit in commits if commit.endswith("+")]:
        raise Refused(
            f"made by a tree with uncommitted changes, {', '.join(unclean)}: nobody else has that code. Commit the "
            "changes and run again"
        )
    if len(commits) > 1:
        raise Refused(f"made by different commits, {', '.join(commits)}, so the numbers may not compare")


def _distinct_seeds(entries: dict) -> None:
    for label, entry in entries.items():
        seeds = [run["seed"] for run in entry["runs"] if "seed" in run]
        if len(set(seeds)) < len(seeds):
            raise Refused(f"runs of {label!r} must have different seeds, got {seeds}")


def _same_question(old: dict, new: dict) -> None:
    """Raises Refused if the old result is about something else than the new one."""
    about = lambda result: {
        "question": result["question"],
        "config": _settings(result),
        "entries": {label: entry["settings"] for label, entry in result["entries"].items()},
    }
    if names := list(gather.difference(about(old), about(new))):
        raise Refused(
            f"{old['name']} is already a result that differs in {', '.join(names)}. Give the new one another name, or "
            "--replace to put it in the old one's place"
        )
