"""The optimizer: AdamW after clipping. Glob patterns on paths select groups of parameters.

A path is the names from the root, joined by dots: `model.0.semantic.up_RxD` belongs to the semantic memory of the
layers in place 0 of the stack's pattern, `task.answer_DxA` is a read-out. `describe` lists what each pattern matches.
"""

import dataclasses
import math
from collections.abc import Callable
from fnmatch import fnmatchcase

import jax
import optax

from cram_jax.functional.checks import check_at_least_one, check_fields, check_not_negative
from cram_jax.models.stack import Stack


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """learning_rate: peak of the learning rate.
    warmup: steps of the linear rise from 0 to the peak.
    steps: steps of the schedule, warmup included. After the warmup the rate falls as a cosine.
    final: learning rate after `steps` steps, as a share of the peak.
    weight_decay: weight decay of matrices, except those in a layer's `no_decay`. Vectors and scalars do not decay.
    clip: largest global norm of the gradient.
    accumulate: steps whose gradients are averaged for one change of the parameters, for batches that do not fit in
      memory. Each step consolidates. Warmup and schedule go by steps all the same.
    rates: pairs (pattern, factor). The factor multiplies the learning rate of the parameters that the pattern matches.
    frozen: patterns of parameters that do not change. Gradients still pass through them.
    """

    learning_rate: float = 2e-3
    warmup: int = 200
    steps: int = 3000
    final: float = 0.05
    weight_decay: float = 0.7
    clip: float = 1.0
    accumulate: int = 1
    rates: tuple[tuple[str, float], ...] = ()
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        check_fields(self)
        check_at_least_one(self, "steps", "accumulate")
        if self.steps % self.accumulate:
            raise ValueError(f"accumulate must divide steps, got {self.accumulate} and {self.steps}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        check_not_negative(self, "weight_decay", "final", "warmup")
        for pattern, factor in self.rates:
            if not 0 < factor < math.inf:
                raise ValueError(
                    f"rates must be above 0 and finite, got {factor} for {pattern!r}; use frozen to stop learning"
                )


def build(cfg: OptimizerConfig, stack: Stack) -> optax.GradientTransformation:
    """Returns the optimizer of parameters `Params(task, model)`. Its state holds the step count.

    Its `init` raises a ValueError if a pattern matches no parameter.
    """
    peak, steps = cfg.learning_rate, max(cfg.steps, cfg.warmup + 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, cfg.warmup, steps, cfg.final * peak)
    by_step = lambda changes: schedule(changes * cfg.accumulate)
    adamw = optax.adamw(by_step, weight_decay=cfg.weight_decay, mask=lambda params: decays(cfg, stack, params))
    # Gradients of frozen parameters are zeroed first, so that they do not count in the norm that is clipped.
    held = [optax.masked(optax.set_to_zero(), lambda params: matches(cfg.frozen, params))] if cfg.frozen else []
    scaled = [
        optax.masked(optax.scale(factor), lambda params, pattern=pattern: matches((pattern,), params))
        for pattern, factor in cfg.rates
    ]
    change = optax.chain(*held, optax.clip_by_global_norm(cfg.clip), adamw, *scaled)
    return optax.MultiSteps(change, cfg.accumulate).gradient_transformation() if cfg.accumulate > 1 else change


def decays(cfg: OptimizerConfig, stack: Stack, params):
    """Returns True for each parameter that decays."""
    spared = tuple(f"model.{pattern}" for pattern in stack.patterns("no_decay"))
    excluded = matches((*spared, *cfg.frozen), params)
    # Parameters of the stack have an extra leading axis, that of repeats.
    is_matrix = lambda path, leaf: leaf.ndim - path.startswith("model.") >= 2
    return jax.tree.map(lambda matrix, out: matrix and not out, by_path(is_matrix, params), excluded)


def matches(patterns: tuple[str, ...], params):
    """Returns True for each parameter whose path matches one of the patterns.

    Raises:
      ValueError: if a pattern matches no parameter. The message lists all paths.
    """
    paths = jax.tree.leaves(by_path(lambda path, _: path, params))
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ValueError(f"pattern {pattern!r} matches no parameter; there are {', '.join(sorted(paths))}")
    return by_path(lambda path, _: any(fnmatchcase(path, pattern) for pattern in patterns), params)


def by_path(choose: Callable, params):
    """Returns the tree of `choose(path, leaf)` for each parameter."""
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return jax.tree_util.tree_map_with_path(lambda path, leaf: choose(name(path), leaf), params)


def describe(cfg: OptimizerConfig, stack: Stack, params) -> list[str]:
    """Returns one line for each group of parameters, listing its paths, for a log."""
    paths = jax.tree.leaves(by_path(lambda path, _: path, params))
    named = lambda chosen: [path for path, one in zip(paths, jax.tree.leaves(chosen), strict=True) if one]
    groups = {f"weight decay {cfg.weight_decay:g}": decays(cfg, stack, params)}
    groups |= {f"rate x {factor:g} ({pattern})": matches((pattern,), params) for pattern, factor in cfg.rates}
    groups |= {f"frozen ({pattern})": matches((pattern,), params) for pattern in cfg.frozen}
    found = {group: named(chosen) for group, chosen in groups.items()}
    return [f"{group}: {len(some)} of {len(paths)} parameters: {', '.join(some)}" for group, some in found.items()]
