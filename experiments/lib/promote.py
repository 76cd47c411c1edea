"""The one way into the committed results: finished runs are gathered, held to what evidence must be, and written."""

import datetime
import json
from pathlib import Path

from lib import gather, results


class Refused(ValueError):
    """Why runs do not become a result."""


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
    """Writes `folder`/NAME/result.json from finished run directories, and returns what it holds.

    A directory holds a `result.json`, as a comparison or a measurement leaves it, or a `summary.json` of one run. Runs
    become one entry, labelled by their model. Several results become one if their entries have different labels.

    Args:
      question, command: of the result. Needed for runs, unless a result of that name is renewed, which has them.
      notes: what a reader must know, beside what the runs' result says.
      replace: whether a result of another question, or of other settings, may be overwritten.

    Raises:
      Refused: for runs that are unfinished, of an unclean tree, of different commits, of equal seeds or of different
        settings; and for a result that must not be overwritten. Nothing is written then.
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
    question, command = question or (old and old["question"]), command or (old and old["command"])
    if not (question and command):
        raise Refused(f"{name} is a new result: give its --question, and the --command that makes its runs")
    found, config = gather.of_directories(workdirs)
    made = gather.made_by([json.loads((workdir / "summary.json").read_text()) for workdir in workdirs])
    return gather.result(name, question, command, made, config=config, entries={config["model"]: found})


def _merged(parts: list[dict]) -> dict:
    """One result of several, whose settings differ in their seed alone."""
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
    """Of all seeds alike."""
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
    """Raises where the new result would take the place of one about something else."""
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
