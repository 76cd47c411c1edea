"""Experiments are launched alike: no effect on import, flags and settings with their meaning, errors in one line."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import ROOT, environment, refused, run
from lib import launch, manual, runs

from cram_jax.functional.cram import CRAMConfig
from cram_jax.training.loop import Interrupted

EXPERIMENTS = ROOT / "experiments"
MAINS = sorted(path.stem for path in EXPERIMENTS.glob("*.py"))


def test_all_mains_can_be_imported_into_one_interpreter_without_effects():
    code = """
import logging, sys
sys.path.insert(0, "experiments")
from absl import flags
import jax, optax, orbax.checkpoint, ml_collections.config_flags
before, handlers = set(flags.FLAGS), len(logging.getLogger().handlers)
import MAINS
assert set(flags.FLAGS) == before, f"flags were defined: {set(flags.FLAGS) - before}"
assert len(logging.getLogger().handlers) == handlers, "logging was set up"
assert not jax._src.xla_bridge.backends_are_initialized(), "a device was taken"
""".replace("MAINS", ", ".join(MAINS))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stdout


def test_help_shows_every_setting_with_its_meaning():
    out = run("srcd", "--help", "--config=experiments/configs/srcd.py:tiny")
    assert out.startswith("Trains a model on SRCD") and "--workdir=runs/srcd" in out
    assert "cram.episodic.memory = 16\n        M, kept events that the buffer holds; the oldest leaves first." in out
    lines = out.splitlines()
    settings = [i for i, line in enumerate(lines) if line.startswith("    ") and " = " in line and line[4] != " "]
    assert len(settings) > 80
    # The task's docstring explains it
    unexplained = [lines[i].split()[0] for i in settings if not lines[i + 1].startswith(" " * 8)]
    assert set(unexplained) <= {"dynamics_weight"}


@pytest.mark.parametrize("main", [main for main in MAINS if "launch.run(" in (EXPERIMENTS / f"{main}.py").read_text()])
def test_every_main_has_help(main):
    out = run(main, "--help")
    _, told, flags = out.partition("Flags:")
    assert told and "--list" in flags and max(map(len, flags.splitlines())) <= 120


def test_meanings_are_those_of_the_docstring():
    @dataclasses.dataclass
    class Some:
        """one: of it.
        two, three: more of it. Note: this belongs to them.
        """

        one: int = 1
        two: int = 2
        three: int = 3
        four: int = 4

    both = "more of it. Note: this belongs to them."
    assert manual.meanings(Some) == {"one": "of it.", "two": both, "three": both}
    assert set(manual.meanings(CRAMConfig)) >= {"D", "F", "compute_dtype"}


def test_the_list_names_all_experiments_and_comparisons_with_their_time():
    out = run("transfer", "--list")
    for main in MAINS:
        assert f"experiments/{main}.py" in out
    assert "--name=ablations" in out and "Which parts of CRAM do retrieval" in out and "90 runs" in out
    assert "1 (tiny) to 10 minutes (paper)" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.run.stepz=5"], "unknown setting 'stepz': config.run has ['batch', "),
        (["--config.zzzz.steps=5"], "unknown setting 'zzzz': config has ['cram', "),
        (["--config.price.ramp=0"], "ramp must be at least 1"),
        (["--config.cram.compute_dtype=int8"], "compute_dtype must be one of ('float32', 'bfloat16'), or None"),
        (["--config.model=lstm"], "config.model must be one of ['circular', 'cram', 'jamba', "),
        (["--config=experiments/configs/srcd.py:huge"], "unknown variant 'huge' of this config; there are"),
        (["--workdir=/proc/nowhere"], "--workdir=/proc/nowhere cannot be written"),
        (["--config.run.checkpoint_every=7"], "multiples of log_every"),
        (["--config.cram.routing.features=('colour',)"], "features must be some of"),
        (["--work=here"], "Unknown command line flag 'work'. Did you mean: workdir ?"),
        (["runs/here"], "runs/here is no flag; flags are given as --NAME=VALUE"),
    ],
)
def test_wrong_settings_end_before_the_first_step_in_one_line(flags, message, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.loop, "train", lambda *_: pytest.fail("a training began"))
    said = refused("srcd", f"--workdir={tmp_path}", *flags)
    assert said.startswith("error: ") and message in said and "\n" not in said and "Traceback" not in said


def test_a_bug_shows_its_traceback_and_a_known_error_does_when_asked(monkeypatch):
    with pytest.raises(ZeroDivisionError), launch.explained():
        print(1 / 0)
    monkeypatch.setenv("CRAM_TRACEBACK", "1")
    with pytest.raises(ValueError), launch.explained():
        raise ValueError("known")


def test_a_run_that_a_signal_stopped_ends_with_a_status_of_its_own(capsys):
    with pytest.raises(SystemExit) as ended, launch.explained():
        raise Interrupted("stopped by SIGTERM at step 8; the same command goes on from there")
    assert ended.value.code == 75 and capsys.readouterr().err.startswith("stopped by SIGTERM at step 8")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_so_does_one_that_a_signal_stops_before_or_after_its_training(number, capsys):
    # Given the handlers that Python starts with; a shell has SIGINT ignored in background jobs
    first = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}[number]
    outer = signal.signal(number, first)
    try:
        with pytest.raises(SystemExit) as ended, launch.explained():
            os.kill(os.getpid(), number)
            time.sleep(5)
        assert signal.getsignal(number) == first
    finally:
        signal.signal(number, outer)
    said = f"stopped by {number.name}; the same command goes on from the last checkpoint\n"
    assert ended.value.code == 75 and capsys.readouterr().err == said


def test_a_flag_has_a_default_a_meaning_and_choices(monkeypatch):
    monkeypatch.setattr(launch, "quiet", lambda: None)
    found = []
    flags = dict(
        runs="runs/x", kind=launch.Flag("a", "Which.", ("a", "b")), entry=launch.Flag([], "Some."), n=launch.Flag(3, "")
    )
    for argv in ([], ["--kind=b", "--entry=x", "--entry=y, z", "--n=4", "--runs=there"]):
        monkeypatch.setattr(sys, "argv", ["main.py", *argv])
        launch.run(found.append, **flags)
    assert vars(found[0]) == {"runs": "runs/x", "kind": "a", "entry": [], "n": 3}
    assert vars(found[1]) == {"runs": "there", "kind": "b", "entry": ["x", "y, z"], "n": 4}
    monkeypatch.setattr(sys, "argv", ["main.py", "--kind=c"])
    with pytest.raises(SystemExit, match="error: flag --kind=c: value should be one of <a.b>"):
        launch.run(found.append, **flags)


def test_the_config_file_may_be_named_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "quiet", lambda: None)
    monkeypatch.setattr(sys, "argv", ["srcd.py", "--config.seed=4"])
    found = []
    launch.run(found.append, config="srcd.py:tiny")
    monkeypatch.setattr(sys, "argv", ["srcd.py", f"--config={EXPERIMENTS}/configs/srcd.py:small"])
    launch.run(found.append, config="srcd.py:tiny")
    assert (found[0].config.seed, found[0].config.run.length, found[1].config.run.length) == (4, 64, 256)
