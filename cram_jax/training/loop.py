"""The training loop, with evaluation, logs and checkpoints. A run that was stopped can be resumed."""

import contextlib
import dataclasses
import logging
import signal
import sys
import time

import jax

from cram_jax.functional.checks import check_at_least_one, check_fields, check_not_negative
from cram_jax.training import files, optimizer, processes, sharding
from cram_jax.training import step as training
from cram_jax.training.checkpoints import Checkpoints
from cram_jax.training.files import Folder
from cram_jax.training.machine import peak_memory_mb, versions
from cram_jax.training.metrics import Records, clock, means, plain, watched
from cram_jax.training.step import Learner, TrainState
from cram_jax.training.task import StreamTask

log = logging.getLogger(__name__)

BAD_STEPS = "bad_steps"  # folder in a run's directory, with what is kept of steps that were skipped
KEPT = 3  # of them; each holds a checkpoint


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """steps: number of training steps.
    length, batch: tokens in a sequence, and sequences in a batch, after the curriculum.
    curriculum: stages before that, each (steps, length, batch). All models of a comparison get the same stages.
    log_every: steps between logged lines. Each line has an evaluation on held-out data.
    held_out_tokens: tokens of each of these evaluations.
    probe_batches: number of batches in which the quality of every token is measured at each logged step.
    checkpoint_every: steps between checkpoints, a multiple of log_every.
    final_tokens: held-out tokens of the last evaluation.
    mesh: devices that train: data:N, or data:-1 for as many as divide all batches. It may go on with ,fsdp:M for
      parameters in M parts, ,tensor:K for heads and hidden units in K parts, ,sequence:L for sequences in L parts.
    """

    steps: int = 3000
    length: int = 256
    batch: int = 16
    curriculum: tuple[tuple[int, int, int], ...] = ()
    log_every: int = 50
    held_out_tokens: int = 16384
    probe_batches: int = 1
    checkpoint_every: int = 500
    final_tokens: int = 1_000_000
    mesh: str = "data:-1"

    def __post_init__(self):
        check_fields(self)
        check_at_least_one(self, "steps", "length", "batch", "log_every", "checkpoint_every")
        check_not_negative(self, "held_out_tokens", "probe_batches", "final_tokens")
        sharding.wanted(self.mesh)
        if self.checkpoint_every % self.log_every or self.steps % self.log_every:
            raise ValueError(
                "steps and checkpoint_every must be multiples of log_every, got "
                f"steps={self.steps}, checkpoint_every={self.checkpoint_every}, log_every={self.log_every}"
            )
        if any(len(stage) != 3 or min(stage) < 1 for stage in self.curriculum):
            raise ValueError(
                f"curriculum stages must be (steps, length, batch), each at least 1, got {self.curriculum}"
            )

    def shape(self, step: int) -> tuple[int, int]:
        """Returns (tokens in a sequence, sequences in a batch) at a step."""
        for steps, length, batch in self.curriculum:
            if step < steps:
                return length, batch
            step -= steps
        return self.length, self.batch

    @property
    def batches(self) -> tuple[int, ...]:
        """All numbers of sequences in a batch."""
        return tuple(sorted({self.batch, *(batch for _, _, batch in self.curriculum)}))

    @property
    def lengths(self) -> tuple[int, ...]:
        """All numbers of tokens in a sequence."""
        return tuple(sorted({self.length, *(length for _, length, _ in self.curriculum)}))

    def layout(self) -> sharding.Layout:
        """Returns what each device holds.

        Raises:
          ValueError: if `mesh` names more devices than there are, or a batch or sequence does not divide among them.
        """
        return sharding.layout(self.mesh, self.batches, self.lengths)

    def held_out_batches(self, tokens: int) -> int:
        """Returns the number of batches that hold at least that many tokens."""
        return max(1, -(-tokens // (self.length * self.batch)))


class Interrupted(Exception):
    """Training was stopped by SIGTERM or SIGINT. The state was saved; the same command resumes it."""


def evaluate(
    learner: Learner, run: RunConfig, state: TrainState, seed: int, tokens: int, split: str = "held_out"
) -> dict[str, float]:
    """Returns the means of all metrics over held-out data at full length, with evaluation audits.

    Held-out streams are fresh: their memory is empty at their first visit, and learns from visit to visit.
    """
    sums, learner = [], _evaluated(learner)
    in_streams, layout = streams(learner, run), run.layout()
    state = layout.state(learner.model, state)
    states = in_streams and layout.states(learner.model, learner.model.for_streams(state.consolidation, in_streams))
    for index in watched(run.held_out_batches(tokens), "evaluation"):
        batch = layout.rows(learner.task.batch(split, seed, index, run.length, run.batch), run.batch)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), training.EVALUATION), index)
        with layout.told():
            if in_streams:
                states, found = training.visit_step(learner, state.params, states, batch, key)
            else:
                found = training.evaluate_step(learner, state, batch, key)
        sums.append(layout.everywhere(found))
        jax.block_until_ready(sums[-2:][0])  # so that the next batch is made while this one is computed
    return means(jax.device_get(sums))


def streams(learner: Learner, run: RunConfig) -> int | None:
    """Returns how many streams a training keeps a memory for: a batch's rows; None if its task has no streams.

    Raises:
      ValueError: for a curriculum, in which the number of rows changes.
    """
    if not isinstance(learner.task, StreamTask):
        return None
    if run.curriculum:
        raise ValueError(f"run.curriculum must be () for a task in streams, whose rows stay, got {run.curriculum}")
    return run.batch


def given(learner: Learner, run: RunConfig, seed: int, step: int):
    """Returns (batch, rows that begin a stream) of a training step, counted from 0; None for a task without streams."""
    length, size = run.shape(step)
    fresh_B = learner.task.fresh("train", step, size) if streams(learner, run) else None
    return learner.task.batch("train", seed, step, length, size), fresh_B


def placed(learner: Learner, run: RunConfig, seed: int, step: int):
    """Returns `given` on the devices of the run."""
    return run.layout().rows(given(learner, run, seed, step), run.shape(step)[1])


def _evaluated(learner: Learner) -> Learner:
    """The parts of a learner that evaluation uses. Learners that differ in other parts share compiled programs."""
    return Learner(learner.task, learner.model)


def probe(learner: Learner, run: RunConfig, state: TrainState, seed: int, batches: int) -> dict:
    """Returns quality and familiarity of all tokens of some held-out batches; {} if no layer consolidates."""
    if not learner.model.consolidates or not batches:
        return {}
    sums, learner, layout = [], _evaluated(learner), run.layout()
    state = layout.state(learner.model, state)
    key = jax.random.fold_in(jax.random.key(seed), training.EVALUATION)
    for index in watched(batches, "probes"):
        batch = layout.rows(learner.task.batch("held_out", seed, index, run.length, run.batch), run.batch)
        with layout.told():
            found = training.probe_step(learner, state, batch, key)
        sums.append(jax.device_get(layout.everywhere(found)))
    return means(sums)


def train(
    learner: Learner, run: RunConfig, seed: int, workdir: Folder, patterns: int = 0
) -> tuple[TrainState, list[dict]]:
    """Trains in `workdir`, from its last checkpoint if it has one; returns (last state, all lines).

    The state is on one device, unless `run.mesh` has parameters in parts.

    Args:
      patterns: number of recurring patterns, whose exposures are counted.

    Raises:
      ValueError: if `workdir` holds a checkpoint of another model, or none of its checkpoints is intact, or another
        process trains there, or `run.mesh` cannot be had.
      OSError: if a checkpoint cannot be read, or the last state cannot be saved.
      FloatingPointError: after 10 steps in a row that were skipped (`step.train_step`).
      Interrupted: after SIGTERM or SIGINT, once the current step has finished and the state is saved. A second signal
        ends the program at once. What was not logged yet is saved with the state, for the line after the run goes on.
    """
    with files.held(workdir) if processes.first() else contextlib.nullcontext():
        return _train(learner, run, seed, workdir, patterns)


def _train(
    learner: Learner, run: RunConfig, seed: int, workdir: Folder, patterns: int
) -> tuple[TrainState, list[dict]]:
    processes.check_shared(workdir)
    state = run.layout().init(learner, seed, patterns, streams(learner, run))
    saves = Checkpoints(workdir / "checkpoints")
    restored = saves.restore(state)
    if restored is not None:
        log.info("going on from step %d in %s", restored[0], workdir)
        state = restored[1]
    first = int(state.step)
    training.check_batch(learner, state.params, given(learner, run, seed, first)[0])
    records = Records(workdir, first if restored else -1)
    stopped = []

    def stop(number, _):
        stopped.append(signal.Signals(number).name)
        signal.signal(number, previous[number])

    previous = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}
    for number, handler in previous.items():
        if handler is not signal.SIG_IGN and not processes.several():  # a shell ignores SIGINT for background jobs
            signal.signal(number, stop)
    try:
        if first < run.steps:
            due = first - first % run.log_every + run.log_every
            log.info("step %d/%d  compiling; a line at step %d, then every %d", first, run.steps, due, run.log_every)
        if records.last is None and first == records.began:  # else lines were lost
            _write(records, learner, run, state, seed, {}, float("nan"), 0.0)
        if first < run.steps:
            records.launch(versions() | {"mesh": run.layout().name})
            groups = optimizer.describe(learner.optimizer, learner.model, state.params)
            if processes.first():
                files.write_whole(workdir / "parameters.txt", "\n".join(groups) + "\n")
        state = _steps(learner, run, seed, state, records, saves, stopped)
        if records.last is None:  # all lines were lost, and no step was left to do
            _write(records, learner, run, state, seed, {}, float("nan"), float("nan"))
        _saved(saves, f"trained to step {run.steps}")
        return run.layout().alone(state), processes.from_first(lambda: files.read(records.path))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        records.close()
        if not processes.lost(sys.exc_info()[1]):  # else the save would wait for those that are gone
            saves.close()


def _steps(learner, run, seed, state, records, saves, stopped: list) -> TrainState:
    """Runs all remaining steps. Writes a logged line and a checkpoint whenever one is due."""
    first, before, start = int(state.step), records.seconds, time.perf_counter()
    reports, compiled, train_step = saves.beside or [], set(), run.layout().step(learner, state)
    timed_step, timed_from = first, start
    for step in range(first, run.steps):
        length, size = run.shape(step)
        state, report = train_step(state, *placed(learner, run, seed, step))
        reports.append(report)
        done = step + 1
        if processes.stop_at(done):
            stopped.append("SIGTERM to one of the processes")
        if (length, size) not in compiled:  # this step was compiled, so its time does not count
            compiled.add((length, size))
            jax.block_until_ready(state.step)
            timed_step, timed_from = done, time.perf_counter()
        if done % run.log_every:
            if stopped:
                saves.save(done, state, beside=plain(jax.device_get(reports)))
                raise _interrupted(saves, stopped, done)
            continue

        reports = jax.device_get(reports)
        now = time.perf_counter()
        step_ms = 1000 * (now - timed_from) / (done - timed_step) if done > timed_step else float("nan")
        if max(report["skipped"][0] for report in reports) >= 10:
            raise FloatingPointError(
                f"10 steps in a row up to step {done} were skipped, because loss, gradient, batch or result was not "
                "finite; lower optimizer.learning_rate or optimizer.clip, or look at the data of these steps"
            )
        if skipped := [done - len(reports) + 1 + i for i, one in enumerate(reports) if one["skipped_share"][0]]:
            log.warning("%d steps were skipped, because something was not finite: %s", len(skipped), skipped)
            _keep(saves, skipped[0])
        line = _write(records, learner, run, state, seed, means(reports), step_ms, before + now - start)
        _progress(line, learner.task.headline, run, done, first, now - start)
        reports = []
        if done % run.checkpoint_every == 0 or done == run.steps or stopped:
            saves.save(done, state)
        if stopped and done < run.steps:
            raise _interrupted(saves, stopped, done)
        timed_step, timed_from = done, time.perf_counter()
    return state


def _keep(saves: Checkpoints, number: int) -> None:
    """Keeps what `replay.repeat` needs of a step that was skipped; of KEPT steps at most."""
    folder = saves.directory.with_name(BAD_STEPS) / str(number)
    if not folder.exists() and len(list(folder.parent.glob("*"))) < KEPT:
        saves.keep(folder)
        log.warning("--replay=%d repeats step %d and says what was not finite", number, number)


def _interrupted(saves: Checkpoints, stopped: list[str], done: int) -> Interrupted:
    said = f"stopped by {stopped[0]} at step {done}"
    _saved(saves, said)
    return Interrupted(f"{said}; the same command goes on from there")


def _saved(saves: Checkpoints, said: str) -> None:
    if not saves.wait():
        raise OSError(f"{said}, but this state could not be saved; the same command goes on from the last checkpoint")


def _write(records, learner, run, state, seed, trained: dict, step_ms: float, seconds: float) -> dict:
    """Writes a logged line: means over the steps since the last line, held-out metrics, and times."""
    line = {"step": int(state.step), "step_ms": step_ms, "seconds": seconds, "peak_memory_mb": peak_memory_mb()}
    line |= {f"train/{name}": value for name, value in trained.items()}
    line |= {f"held_out/{n}": v for n, v in evaluate(learner, run, state, seed, run.held_out_tokens).items()}
    line |= {f"probe/{n}": v for n, v in probe(learner, run, state, seed, run.probe_batches).items()}
    records.write(line)
    return line


def _progress(line: dict, headline: str, run: RunConfig, done: int, first: int, seconds: float) -> None:
    rate = (done - first) / seconds
    shown = {"loss": "train/loss", headline.replace("_", " "): f"held_out/{headline}"}
    shown |= {"attention": "held_out/attention_tokens", "price": "train/price"}
    parts = [f"{label} {line[name]:.4f}" for label, name in shown.items() if name in line]
    left = clock((run.steps - done) / rate)
    log.info("step %d/%d  %.1f steps/s  %s left  %s", done, run.steps, rate, left, "  ".join(parts))
