"""Converts settings between frozen dataclasses and `ml_collections.ConfigDict`, which the experiments use."""

import dataclasses
import json
from pathlib import Path

from ml_collections import ConfigDict


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
    """
    names = {field.name for field in dataclasses.fields(like)}
    for key in config:
        if key not in names:
            raise KeyError(f"unknown setting {key!r}; {type(like).__name__} has {sorted(names)}")
    values = {}
    for key, value in config.items():
        old = getattr(like, key)
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
    if path.exists():
        found, wanted = _flat(json.loads(path.read_text())), _flat(new)
        names = sorted(found.keys() | wanted.keys())
        other = [name for name in names if found.get(name) != wanted.get(name)]
        if other:
            said = "; ".join(f"config.{name}={found.get(name)}, this one has {wanted.get(name)}" for name in other)
            raise ValueError(
                f"{workdir} holds a run with {said}; give the same settings to go on with it, or another --workdir"
            )
    path.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n")


def _flat(tree: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
