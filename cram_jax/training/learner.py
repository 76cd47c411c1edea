"""What is trained and how, and one training step as a pure function of (state, batch)."""

import dataclasses
import re
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from cram_jax.analysis import accounting
from cram_jax.dims import Array, Float, Int, Key, Scalar
from cram_jax.functional import consolidation, objective
from cram_jax.functional.common import at_least_one, check_inputs
from cram_jax.functional.objective import ObjectiveConfig
from cram_jax.functional.routing import EPISODIC
from cram_jax.models.stack import Stack
from cram_jax.training import price
from cram_jax.training.price import PriceConfig, PriceState

# What is folded into a run's key for each purpose; a task's data takes 0 and 1.
INIT, EVALUATION = 2, 3

Sums = dict[str, tuple[Array, Array]]  # by name, (sum, count); means are taken on the host, over all batches


@runtime_checkable
class Task(Protocol):
    """Data, its embedding and its score. Static: frozen and hashable.

    headline: the metric of `score` that a person watches.
    """

    headline: str

    def batch(self, split: str, seed: int, index: int, length: int, size: int):
        """Batch number `index` of "train" or "held_out", a pure function of the arguments. Where settings are chosen by
        results, on "validation", which a task may have too."""

    def init(self, key: Key, D: int):
        """Parameters of embedding and read-out."""

    def embed(self, params, batch):
        """(x_BxTxD, gap_BxT or None)."""

    def score(self, params, y_BxTxD, batch) -> tuple[Scalar, Sums]:
        """(loss, metrics)."""

    def groups(self, batch) -> dict[str, Array]:
        """Kinds of tokens to report by name, each (B T) bool; the first is what figures are about."""

    def asked(self, batch) -> Int[Array, "B T"]:
        """Which recurring pattern each token asks for; -1 for none."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW after clipping. learning_rate: its peak. warmup: steps to it. steps: of the cosine that follows, to
    `final` times the peak. clip: largest global norm of a gradient.
    weight_decay: on matrices. What memorised a pattern beside the semantic memory forgets it again once that answers,
        and the router's logits stay where it goes on learning. Spared are the semantic memory, where knowledge is to
        end up, and the regressions of q-hat and of use, which hold no answer.
    semantic_rate: the semantic memory's learning rate, over that of all else.
    frozen: parts of the layers that neither gradient nor weight decay changes, by the names of their parameters, such
        as ("semantic", "router"); "model" is all of the layers. Losses go through them to what is before them.
    """

    learning_rate: float = 2e-3
    warmup: int = 200
    steps: int = 3000
    final: float = 0.05
    weight_decay: float = 0.7
    clip: float = 1.0
    semantic_rate: float = 1.0
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        at_least_one(self, "steps")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.semantic_rate <= 0:
            raise ValueError(f"semantic_rate must be above 0, got {self.semantic_rate}")
        if self.clip <= 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")

    def build(self) -> optax.GradientTransformation:
        """The optimizer; its state holds the step count.

        Raises:
          ValueError: in its `init`, for parts to freeze that the layers do not have, naming those they have.
        """
        peak = self.learning_rate
        rate = optax.warmup_cosine_decay_schedule(
            0.0, peak, self.warmup, max(self.steps, self.warmup + 1), self.final * peak
        )
        adamw = optax.adamw(rate, weight_decay=self.weight_decay, mask=self._decays)
        faster = optax.masked(optax.scale(self.semantic_rate), _is_semantic)
        # First, so that what is frozen takes no share of the clip either.
        held = (optax.masked(optax.set_to_zero(), self._is_frozen),) if self.frozen else ()
        return optax.chain(*held, optax.clip_by_global_norm(self.clip), adamw, faster)

    def _decays(self, params: "Params"):
        """True for the matrices that decay."""
        decays = _decays(params)
        return jax.tree.map(lambda d, held: d and not held, decays, self._is_frozen(params)) if self.frozen else decays

    def _is_frozen(self, params: "Params"):
        """True for what is not changed."""
        parts = ("model", *params.model._fields)
        unknown = set(self.frozen) - set(parts)
        if unknown:
            raise ValueError(f"optimizer.frozen names {sorted(unknown)}, but the layers' parts are {parts}")
        return _by_name(lambda names: names[0] == "model" and bool({*names[:2]} & set(self.frozen)), params)


SPARED = {"semantic", "familiarity", "write"}
MATRIX = re.compile(r"\w+_[A-Z0-9]+(x[A-Z0-9]+)+")  # as in q_DxHxK: names carry shapes, leading axes of layers apart


def _by_name(choose, params: "Params"):
    """`choose` of each parameter's names, outermost first."""
    names = lambda path: jax.tree_util.keystr(path, simple=True, separator=".").split(".")
    return jax.tree_util.tree_map_with_path(lambda path, _: choose(names(path)), params)


def _decays(params: "Params"):
    """True for the matrices that decay."""
    return _by_name(lambda names: bool(MATRIX.fullmatch(names[-1])) and not SPARED & set(names), params)


def _is_semantic(params: "Params"):
    """True for the semantic memory."""
    return _by_name(lambda names: "semantic" in names, params)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Learner:
    """Everything static about a training: what is learned, with which network, against which loss."""

    task: Task
    model: Stack
    optimizer: OptimizerConfig = OptimizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    price: PriceConfig = PriceConfig()


class Params(NamedTuple):
    """Attributes: the task's embedding and read-out, and the layers between."""

    task: NamedTuple
    model: NamedTuple


class TrainState(NamedTuple):
    """All that a training carries; donated, checkpointed and guarded as one.

    Attributes:
      step: batches seen.
      params, opt_state: of the network.
      consolidation: `ConsolidationState` of all layers; () for models without.
      price: of attention.
      exposures_P: how often each recurring pattern was asked for, for metrics only.
      key: root of all noise; never changes, each step folds itself in.
      skipped: steps in a row whose loss or gradient was not finite and that changed nothing.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    consolidation: consolidation.ConsolidationState | tuple[()]
    price: PriceState
    exposures_P: Int[Array, "P"]
    key: Key
    skipped: Int[Array, ""]


@partial(jax.jit, static_argnums=(0, 2))
def init(learner: Learner, seed: int | Int[Array, ""], patterns: int) -> TrainState:
    """A fresh state; the seed decides parameters and noise."""
    task, model, noise = jax.random.split(jax.random.fold_in(jax.random.key(seed), INIT), 3)
    params = Params(learner.task.init(task, learner.model.layer.D), learner.model.init(model))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=learner.optimizer.build().init(params),
        consolidation=learner.model.init_state(),
        price=price.init_price(),
        exposures_P=jnp.zeros(patterns, jnp.int32),
        key=noise,
        skipped=jnp.zeros((), jnp.int32),
    )


def check_batch(learner: Learner, params: Params, batch) -> None:
    """Looks at the values of one batch, outside any transformation, before anything is trained on it.

    Raises:
      ValueError, TypeError: for embedded tokens or gaps that a layer cannot take, or that are not finite.
    """
    x_BxTxD, gap_BxT = learner.task.embed(params.task, batch)
    check_inputs(x_BxTxD, learner.model.layer.D, gap_BxT, None)
    if not jnp.all(jnp.isfinite(x_BxTxD)):
        raise ValueError("the first batch embeds to values that are not finite; look for NaN or infinity in the data")


def forward(learner: Learner, params: Params, states, batch, key: Key | None, train: bool):
    """(task loss, metrics, aux) of a batch; the operations that were executed are among the metrics."""
    x_BxTxD, gap_BxT = learner.task.embed(params.task, batch)
    y_BxTxD, aux = learner.model.apply(params.model, states, x_BxTxD, gap_BxT=gap_BxT, key=key, train=train)
    loss, metrics = learner.task.score(params.task, y_BxTxD, batch)
    routes = aux.routes if learner.model.routes else ()
    metrics |= accounting.executed(learner.model.layer, learner.model.depth, routes, x_BxTxD.shape[:2], train)
    return loss, metrics, aux


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(learner: Learner, state: TrainState, batch) -> tuple[TrainState, Sums]:
    """One step of Eq 8, then consolidation and price. Not finite: nothing changes but `step` and `skipped`."""

    def total(params):
        key = jax.random.fold_in(state.key, state.step)
        task_loss, metrics, aux = forward(learner, params, state.consolidation, batch, key, train=True)
        memory_loss, parts = 0.0, {}
        if learner.model.consolidates:
            memory_loss, parts = objective.memory_loss(aux.sums, state.price.price, learner.objective)
        return task_loss + memory_loss, (task_loss, metrics, aux, parts)

    (loss, (task_loss, metrics, aux, parts)), gradient = jax.value_and_grad(total, has_aux=True)(state.params)
    norm = optax.tree.norm(gradient)
    change, opt_state = learner.optimizer.build().update(gradient, state.opt_state, state.params)
    states, prices = state.consolidation, state.price
    if learner.model.consolidates:
        prices = price.update(prices, state.step, task_loss, learner.price)
        states = consolidation.release(consolidation.update(states, aux.stats), prices.released)
    if learner.model.routes:
        metrics |= routed_metrics(aux.routes, {})
    asked_BxT, exposures_P = learner.task.asked(batch), state.exposures_P
    if learner.model.consolidates and exposures_P.size:
        metrics |= familiar_metrics(aux.routes.choice_BxT, asked_BxT, exposures_P)
    moved = state._replace(
        params=optax.apply_updates(state.params, change),
        opt_state=opt_state,
        consolidation=states,
        price=prices,
        exposures_P=exposures_P.at[jnp.where(asked_BxT < 0, exposures_P.size, asked_BxT)].add(1, mode="drop"),
        skipped=jnp.zeros((), jnp.int32),
    )
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    held = state._replace(skipped=state.skipped + 1)
    after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, held)
    one = jnp.ones(())
    report = {"loss": (loss, one), "task_loss": (task_loss, one), "gradient_norm": (norm, one)}
    report |= {name: (value, one) for name, value in parts.items()}
    if learner.model.consolidates:
        report |= {"price": (prices.price, one), "released": (prices.released.astype(jnp.float32), one)}
    report |= {"skipped": (after.skipped, one)} | metrics
    return after._replace(step=state.step + 1), report


def routed_metrics(routes, groups: dict[str, Array]) -> Sums:
    """What a batch's tokens did, audits counted as attention.

    Args:
      routes: of all layers (L B T): `attended_BxT` and `kept_BxT`.
      groups: kinds of tokens to report apart.
    """
    attended_LxBxT, kept_LxBxT = routes.attended_BxT, routes.kept_BxT
    L = attended_LxBxT.shape[0]
    share = lambda marks, among=None: (
        jnp.sum(marks, where=among, dtype=jnp.float32),
        jnp.sum(jnp.ones_like(marks), where=among, dtype=jnp.float32),
    )
    anywhere_BxT = jnp.any(attended_LxBxT, axis=0)
    metrics = {
        "attention_tokens": share(anywhere_BxT),
        "attention_utilisation": share(attended_LxBxT),
        "kept_share": share(kept_LxBxT),
    }
    for layer in range(L):
        metrics[f"attention_layer_{layer}"] = share(attended_LxBxT[layer])
        metrics[f"kept_share_layer_{layer}"] = share(kept_LxBxT[layer])
    for name, among_BxT in groups.items():
        metrics[f"attention_{name}"] = share(anywhere_BxT, among_BxT)
        for layer in range(L):
            metrics[f"kept_{name}_layer_{layer}"] = share(kept_LxBxT[layer], among_BxT)
    return metrics


OCTAVE, OCTAVES = 2, 16  # bins of exposures to an octave, and octaves


def familiar_metrics(choice_LxBxT, asked_BxT, exposures_P) -> Sums:
    """Queries of recurring patterns, and how many of them chose episodic memory in some layer; audits are no choice.

    By how often, k, their pattern was asked for in earlier batches (Eq 14): bin i of `exposed` holds k + 1 from
    2^(i / OCTAVE) on. And by pattern, P numbers each.
    """
    asks_BxT = asked_BxT >= 0
    k_BxT = exposures_P[jnp.maximum(asked_BxT, 0)]
    bin_BxT = jnp.floor(OCTAVE * jnp.log2(k_BxT + 1.0)).astype(jnp.int32)
    chose_BxT = jnp.any(choice_LxBxT == EPISODIC, axis=0) & asks_BxT
    count = lambda size, place_BxT, among_BxT: jnp.zeros(size).at[place_BxT].add(among_BxT, mode="drop")
    sums = {}
    for name, size, place_BxT in (
        ("exposed", OCTAVE * OCTAVES, bin_BxT),
        ("asked_by_pattern", exposures_P.size, asked_BxT),
    ):
        sums[name], sums[f"{name}_episodic"] = count(size, place_BxT, asks_BxT), count(size, place_BxT, chose_BxT)
    return {name: (sum, jnp.ones(())) for name, sum in sums.items()}


@partial(jax.jit, static_argnums=0)
def evaluate_step(learner: Learner, state: TrainState, batch, key: Key) -> Sums:
    """Metrics of a batch: hard decisions without noise, evaluation audits counted as attention."""
    _, metrics, aux = forward(learner, state.params, state.consolidation, batch, key, train=False)
    if learner.model.routes:
        metrics |= routed_metrics(aux.routes, learner.task.groups(batch))
    return metrics


def auditing_all(learner: Learner) -> Learner:
    """The same learner with every token audited in evaluation: outputs do not change, quality is known everywhere."""
    routing = dataclasses.replace(learner.model.layer.routing, evaluation_audit_rate=1.0)
    layer = dataclasses.replace(learner.model.layer, routing=routing)
    return dataclasses.replace(learner, model=dataclasses.replace(learner.model, layer=layer))


BINS = 20


@partial(jax.jit, static_argnums=0)
def probe_step(learner: Learner, state: TrainState, batch, key: Key) -> dict[str, Float[Array, "..."]]:
    """Quality q and familiarity q-hat of every token, by retrieving for all of them; not counted as attention.

    Returns:
      Sums: for each layer and group of tokens (and "all") `quality_*`, `familiarity_*` and `familiarity_error_*`, the
      distance of the two, with counts; for the first group the histogram of q; over all tokens, and over the first
      group, the reliability bins (counts, sums of q-hat and of q in bins of q-hat).
    """
    _, _, aux = forward(auditing_all(learner), state.params, state.consolidation, batch, key, train=False)
    groups = learner.task.groups(batch)
    first_name, first = next(iter(groups.items()))
    over = lambda what, where: (jnp.sum(what, where=where), jnp.sum(where, dtype=jnp.float32))
    bins = lambda where, values, weights: jnp.zeros(BINS).at[
        jnp.where(where, jnp.clip((values * BINS).astype(jnp.int32), 0, BINS - 1), BINS)
    ].add(weights, mode="drop")  # fmt: skip
    out = {}
    for layer in range(learner.model.depth):
        q_BxT, q_hat_BxT = aux.routes.quality_BxT[layer], aux.routes.familiarity_BxT[layer]
        known_BxT = aux.routes.retrieved_BxT[layer]  # all, but those with an empty buffer
        for name, among_BxT in {"all": jnp.ones_like(known_BxT), **groups}.items():
            out[f"quality_{name}_layer_{layer}"] = over(q_BxT, among_BxT & known_BxT)
            out[f"familiarity_{name}_layer_{layer}"] = over(q_hat_BxT, among_BxT & known_BxT)
            out[f"familiarity_error_{name}_layer_{layer}"] = over(jnp.abs(q_hat_BxT - q_BxT), among_BxT & known_BxT)
        ones_BxT = jnp.ones_like(q_BxT)
        out[f"quality_bins_layer_{layer}"] = (bins(first & known_BxT, q_BxT, ones_BxT), jnp.ones(()))
        for group, among_BxT in (("all", known_BxT), (first_name, first & known_BxT)):
            for name, weights in (("count", ones_BxT), ("familiarity", q_hat_BxT), ("quality", q_BxT)):
                out[f"reliability_{group}_{name}_layer_{layer}"] = (bins(among_BxT, q_hat_BxT, weights), jnp.ones(()))
    return out
