"""Converts settings between frozen dataclasses and `ml_collections.ConfigDict`, which the experiments use."""

import dataclasses
import json
import logging
import math
from pathlib import Path

from ml_collections import ConfigDict

from cram_jax.training import files

log = logging.getLogger(__name__)


def to_config(settings) -> ConfigDict:
    """Returns a dataclass, and those inside it, as a ConfigDict. Flags can override each field."""
    config = ConfigDict()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
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


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Creates the directory with a `config.json`, or checks that an existing one is for the same settings.

    Raises:
      ValueError: if the directory cannot be written, or holds a run with other settings. The message lists those.
    """
    path = Path(workdir) / "config.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_suffix(".writable")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--workdir={workdir} cannot be written ({error.strerror}); name another directory") from error
    new = json.loads(config.to_json())
    text = json.dumps(new, indent=1, sort_keys=True) + "\n"
    if path.exists():
        found = _parsed(path)
        other = "a damaged config.json" if found is None else _differences(_flat(found), _flat(new))
        if not other:
            return
        launches = files.read(path.with_name("launches.jsonl"))
        if files.settings_digest(text) not in {line.get("settings") for line in launches}:
            raise ValueError(
                f"{workdir} holds a run with {other}; give the same settings to go on with it, or another --workdir"
            )
        log.warning("%s is damaged; launches.jsonl says that the run had these settings, so it is written again", path)
    files.write_whole(path, text)


def _parsed(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text())
    except ValueError:  # no JSON, or no text
        return None
    return found if isinstance(found, dict) else None


def _differences(found: dict, wanted: dict) -> str:
    names = sorted(found.keys() | wanted.keys())
    other = [name for name in names if found.get(name) != wanted.get(name)]
    return "; ".join(f"config.{name}={found.get(name)}, this one has {wanted.get(name)}" for name in other)


def _flat(tree: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
