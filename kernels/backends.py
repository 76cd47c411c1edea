"""The registry of backends: lists those of each kernel family, chooses one for "auto", and says why one cannot run.

A backend is one file in its family's folder and one line in a table at the end of this file. It is imported when it is
first used, so a machine without an accelerator imports no accelerator code. The file defines:

- `supported(call)`: None, or the reason why this backend cannot run the call here;
- `preferred(call)`: whether "auto" takes this backend for a call that it supports. A file without it runs by name only,
  so "auto" never picks a kernel whose numbers were not verified;
- the functions of the family: `forward` and `backward` (skip_attention), or `scan` (ssd, palimpsa).

The backend `NAME` of an accelerator also gives `NAME_interpret`: the same kernels under JAX's interpreter, which runs
on a CPU, checks for races, and is slow. So tests can run every kernel. The functions of such a file, except
`preferred`, take `interpret=True`.
"""

import contextlib
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import jax


class NotSupported(ValueError):
    """The chosen backend cannot run this call here. The message says why, and which backend to use instead."""


class Call(NamedTuple):
    """The properties of a call that decide which backends can run it.

    Attributes:
      platform: platform that the call will run on, in JAX's names: "cpu", "gpu" or "tpu".
      rows: number of query rows in a sequence; for a scan, of tokens.
      keys: number of key slots in a sequence; for a scan, of tokens.
      dtype: dtype of queries, keys and values.
      device: platform of the device that holds the arrays; None if unknown. Traced arrays have no device, because the
        program may be compiled for another platform than this machine's.
    """

    platform: str
    rows: int
    keys: int
    dtype: Any
    device: str | None = None


_TARGET = ContextVar("target", default=None)


@contextlib.contextmanager
def compiling_for(device):
    """Within it, programs that are traced are for another device than JAX's default one, such as of a topology."""
    before = _TARGET.set(device)
    try:
        yield
    finally:
        _TARGET.reset(before)


def platform() -> str:
    """Returns the platform of the devices that programs are made for: "cpu", "gpu" or "tpu"."""
    return _TARGET.get().platform if _TARGET.get() else jax.default_backend()


def device_kind() -> str:
    """Returns the kind of these devices, in the words of their maker."""
    return device().device_kind


def device():
    """Returns the device that programs are made for: JAX's first, or that of `compiling_for`."""
    return _TARGET.get() or jax.devices()[0]


def device_of(x) -> str | None:
    """Returns the platform of the device that holds an array; None for a traced array or a NumPy array."""
    held = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    return next(iter(x.devices())).platform if held else None


class Backend(NamedTuple):
    """A line of the registry.

    Attributes:
      name: name of the backend, and of its file.
      platform: platform of the accelerator that it needs; None for a backend that runs everywhere.
    """

    name: str
    platform: str | None = None


class _Interpreted:
    """The functions of an accelerator's file, with `interpret=True`."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name: str):
        return partial(getattr(self._module, name), interpret=True)


class Backends:
    """The backends of one family, by name. A look-up imports the backend's file.

    Attributes:
      family: name of the family, and of its folder.
      names: names of all backends, the interpreted ones last.
    """

    def __init__(self, family: str, *listed: Backend):
        """Takes the backends in the order in which "auto" tries them. The last must run everywhere and be preferred."""
        self.family, self._platform = family, dict(listed)
        self._interpreted = tuple(f"{name}_interpret" for name, platform in listed if platform)
        self.names = *self._platform, *self._interpreted

    def __getitem__(self, name: str):
        """Returns the functions of a backend. Raises KeyError for an unknown name."""
        if name not in self.names:
            raise KeyError(name)
        module = import_module(f".{self.family}.{name.removesuffix('_interpret')}", __package__)
        return _Interpreted(module) if name in self._interpreted else module

    def everywhere(self) -> list[str]:
        """Returns the names of the backends that need neither an accelerator nor the interpreter."""
        return [name for name, platform in self._platform.items() if platform is None]

    def check(self, name: str) -> None:
        """Raises ValueError if the family has no backend of that name, NotSupported if another family has."""
        if name in ("tpu", "gpu") and name not in self.names:
            raise NotSupported(
                f'backend "{name}": there is no {name.upper()} kernel of {self.family}; take backend="xla", as "auto" '
                "does there"
            )
        if name not in ("auto", *self.names):
            raise ValueError(f"backend must be one of {('auto', *self.names)}, got {name!r}")

    def resolve(self, name: str, call: Call) -> str:
        """Returns the name of the backend that runs the call: `name` itself, or the choice of "auto".

        Raises:
          ValueError: if the family has no backend of that name.
          NotSupported: if the named backend cannot run the call here.
        """
        self.check(name)
        if name == "auto":
            return next(name for name in self._platform if self._chosen(name, call))
        reason = self._why_not(name, call)
        if reason:
            raise NotSupported(f'backend "{name}" of {self.family} {reason}; take "auto"')
        return name

    def _chosen(self, name: str, call: Call) -> bool:
        """Whether "auto" chooses the backend. Backends for other platforms are not imported."""
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
