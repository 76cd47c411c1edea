"""Converts settings between frozen dataclasses and `ml_collections.ConfigDict`, which the experiments use."""

import dataclasses
import json
import logging
import math
import typing

from ml_collections import ConfigDict, config_dict

from cram_jax.training import files
from cram_jax.training.files import Folder

log = logging.getLogger(__name__)

# Settings that change nothing that is learned, and those of a longer run.
LOOKS = ("run.held_out_tokens", "run.probe_batches", "run.final_tokens", "run.checkpoint_every")
LOOKS += ("run.mesh", "rolled", "remat")
LENGTH = ("run.steps", "optimizer.steps")


def to_config(settings) -> ConfigDict:
    """Returns a dataclass, and those inside it, as a ConfigDict. Flags can override each field."""
    config = ConfigDict()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value is None:  # without the other type of its "TYPE | None" a flag could not be read
            kind, *_ = [one for one in typing.get_args(field.type) if one is not type(None)]
            value = config_dict.placeholder(kind)
        config[field.name] = to_config(value) if dataclasses.is_dataclass(value) else value
    return config


def from_config(like, config: ConfigDict):
    """Returns `like` with the values of `config`: the inverse of `to_config`.

    Raises:
      KeyError: if `like` has no field of that name. The message lists its fields.
      ValueError: for a number that is not finite.
    """
    names = {field.name for field in dataclasses.fields(like)}
    for key in config:
        if key not in names:
            raise KeyError(f"unknown setting {key!r}; {type(like).__name__} has {sorted(names)}")
    values = {}
    for key, value in config.items():
        old = getattr(like, key)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} must be finite, got {value} for {type(like).__name__}")
        values[key] = from_config(old, value) if dataclasses.is_dataclass(old) else _hashable(value)
    return dataclasses.replace(like, **values)


def _hashable(value):
    return tuple(_hashable(v) for v in value) if isinstance(value, (list, tuple)) else value


def claim_workdir(workdir: Folder, config: ConfigDict, looks: bool = False, extend: bool = False) -> None:
    """Creates the directory with a `config.json`, or checks that an existing one is for the same settings.

    Args:
      looks: settings of evaluations and devices (`LOOKS`) may differ. They are written to `config.json` and logged.
      extend: so may the number of steps, if it grows.

    Raises:
      ValueError: if the directory cannot be written, or holds a run with other settings. The message lists those.
    """
    path = files.folder(workdir) / "config.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_suffix(".writable")
        probe.touch()
        probe.unlink()
    except Exception as error:  # those of a bucket are of many kinds
        if not isinstance(error, OSError) and not files.is_remote(path):
            raise
        why = getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"--workdir={workdir} cannot be written ({why}); name another directory") from error
    new = json.loads(config.to_json())
    text = json.dumps(new, indent=1, sort_keys=True) + "\n"
    if path.exists():
        found = _parsed(path)
        differ = {} if found is None else _differences(_flat(found), _flat(new))
        if found is not None and not differ:
            return
        other = _listed(differ) if differ else "a damaged config.json"
        launches = files.read(path.with_name("launches.jsonl"))
        if _may_differ(differ, looks, extend):
            log.warning("%s: goes on with other settings: it had %s", workdir, other)
        elif files.settings_digest(text) in {line.get("settings") for line in launches}:
            log.warning(
                "%s is damaged; launches.jsonl says that the run had these settings, so it is written again", path
            )
        else:
            longer = ", or --extend to train for more steps" if looks and _may_differ(differ, looks, True) else ""
            raise ValueError(
                f"{workdir} holds a run with {other}; give the same settings to go on with it, or another --workdir"
                f"{longer}"
            )
    files.write_whole(path, text)


def _may_differ(differ: dict[str, tuple], looks: bool, extend: bool) -> bool:
    """Whether these differences, (value found, value wanted) by name, are of evaluations or of a longer run only."""
    more = lambda old, new: isinstance(old, int) and new > old
    return bool(differ) and all(
        (looks and name in LOOKS) or (extend and name in LENGTH and more(*values)) for name, values in differ.items()
    )


def _parsed(path: Folder) -> dict | None:
    try:
        found = json.loads(path.read_text())
    except ValueError:  # no JSON, or no text
        return None
    return found if isinstance(found, dict) else None


def _differences(found: dict, wanted: dict) -> dict[str, tuple]:
    """Returns (value found, value wanted) of each setting that differs."""
    both = {name: (found.get(name), wanted.get(name)) for name in sorted(found.keys() | wanted.keys())}
    return {name: (old, new) for name, (old, new) in both.items() if old != new}


def _listed(differ: dict[str, tuple]) -> str:
    return "; ".join(f"config.{name}={old}, this one has {new}" for name, (old, new) in differ.items())


def _flat(tree: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
