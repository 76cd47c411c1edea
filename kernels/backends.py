"""The registry of backends: what each kernel family has, which of them "auto" takes, and why one cannot run here.

A backend is one file in its family's folder and one line in a table at the end of this file. It is imported when it is
first used, so a machine without an accelerator imports no accelerator code. The file defines:

- `supported(call)`: None, or the reason why this backend cannot run the call here;
- `preferred(call)`: whether "auto" takes this backend for a call that it supports. A file without it runs by name only,
  so "auto" never picks a kernel whose numbers were not verified;
- what the family asks for: `forward` and `backward` (skip_attention), or `scan` (ssd, palimpsa).

The backend `NAME` of an accelerator also gives `NAME_interpret`: the same kernels under JAX's interpreter, which runs
on a CPU, looks for races, and is slow. So a kernel that no test could run is not added. The functions of such a file,
except `preferred`, take `interpret=True`.
"""

from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import jax


class NotSupported(ValueError):
    """The backend that was named cannot run this call here. The message says why, and what to take instead."""


class Call(NamedTuple):
    """What decides which backends can run a call.

    Attributes:
      platform: where it is to run, as JAX names it: "cpu", "gpu" or "tpu".
      rows: query rows of a sequence; the tokens of a scan.
      keys: key slots of a sequence; the tokens of a scan.
      dtype: of queries, keys and values.
      device: platform of the device that holds the arrays; None if unknown. Traced arrays are on no device: what is
        made of them may be compiled for a platform other than this machine's.
    """

    platform: str
    rows: int
    keys: int
    dtype: Any
    device: str | None = None


def device_of(x) -> str | None:
    """Platform of the device that holds an array; None for a traced array, or one of NumPy."""
    held = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    return next(iter(x.devices())).platform if held else None


class Backend(NamedTuple):
    """A line of the registry.

    Attributes:
      name: of the backend and of its file.
      platform: the accelerator it needs; None for a backend that runs everywhere.
    """

    name: str
    platform: str | None = None


class _Interpreted:
    """The functions of an accelerator's file, with their kernels run by the interpreter."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name: str):
        return partial(getattr(self._module, name), interpret=True)


class Backends:
    """The backends of one family by name; looking one up imports its file.

    Attributes:
      family: name of the family, and of its folder.
      names: of all backends, the interpreted ones last.
    """

    def __init__(self, family: str, *listed: Backend):
        """Lists the backends in the order in which "auto" tries them; the last one runs everywhere and is preferred."""
        self.family, self._platform = family, dict(listed)
        self._interpreted = tuple(f"{name}_interpret" for name, platform in listed if platform)
        self.names = *self._platform, *self._interpreted

    def __getitem__(self, name: str):
        """The functions of a backend. Raises KeyError for an unknown name."""
        if name not in self.names:
            raise KeyError(name)
        module = import_module(f".{self.family}.{name.removesuffix('_interpret')}", __package__)
        return _Interpreted(module) if name in self._interpreted else module

    def everywhere(self) -> list[str]:
        """Names of the backends that need neither an accelerator nor an interpreter."""
        return [name for name, platform in self._platform.items() if platform is None]

    def resolve(self, name: str, call: Call) -> str:
        """The name of the backend that runs the call: the one named, or the one that "auto" stands for.

        Raises:
          ValueError: for a name that no backend of the family has.
          NotSupported: for a backend that was named and cannot run the call here.
        """
        if name == "auto":
            return next(name for name in self._platform if self._chosen(name, call))
        if name in ("tpu", "gpu") and name not in self.names:
            raise NotSupported(
                f'backend "{name}": there is no {name.upper()} kernel of {self.family}; take backend="xla", as "auto" '
                "does there"
            )
        if name not in self.names:
            raise ValueError(f"backend must be one of {('auto', *self.names)}, got {name!r}")
        reason = self._why_not(name, call)
        if reason:
            raise NotSupported(f'backend "{name}" of {self.family} {reason}; take "auto"')
        return name

    def _chosen(self, name: str, call: Call) -> bool:
        """Whether "auto" takes the backend. What needs another platform is not even imported."""
        if self._platform[name] not in (None, call.platform) or self._why_not(name, call):
            return False
        return getattr(self[name], "preferred", lambda call: False)(call)

    def _why_not(self, name: str, call: Call) -> str | None:
        needed = self._platform.get(name)
        if needed and call.device not in (needed, None):
            where = f"runs on a {needed.upper()}, but the arrays are on a {call.device.upper()}"
            return f'{where} ("{name}_interpret" runs anywhere, slowly)'
        try:
            return self[name].supported(call)
        except ImportError as error:
            return f"cannot be imported here ({error})"


# One line a backend, in the order in which "auto" tries them.
SKIP_ATTENTION = Backends(
    "skip_attention",
    Backend("gpu", platform="gpu"),
    Backend("tpu", platform="tpu"),
    Backend("reference"),
    Backend("xla"),
)
SSD = Backends(
    "ssd",
    Backend("tpu", platform="tpu"),
    Backend("reference"),
    Backend("xla"),
)
PALIMPSA = Backends(
    "palimpsa",
    Backend("tpu", platform="tpu"),
    Backend("reference"),
    Backend("xla"),
)
FAMILIES = {backends.family: backends for backends in (SKIP_ATTENTION, SSD, PALIMPSA)}
