"""What `soak.py` does to a training: kills, signals, full disks, errors of reading, damaged files."""

import dataclasses
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import quick

HERE = Path(__file__).parent
STEPS, PATIENCE = 40, 120  # of a training; seconds after which a process hangs
DONE, STOPPED = 0, 75


@dataclasses.dataclass
class Attack:
    """A directory of a training, and what was done to it.

    Attributes:
      damaged: names of damaged files.
      counts: of what was done to all trainings.
    """

    subject: str
    workdir: Path
    counts: Counter
    done_to_it: list[str] = dataclasses.field(default_factory=list)
    damaged: list[str] = dataclasses.field(default_factory=list)

    def did(self, what: str, where: Path | str = "") -> None:
        """Notes that something was done."""
        self.counts[what] += 1
        self.done_to_it.append(f"{what} {where}".strip())


def process(
    subject: str,
    workdir: Path,
    cache: Path,
    largest: int = resource.RLIM_INFINITY,
    failing: float = 0.0,
    steps: int = STEPS,
    saves_every: int = 2,
    said=subprocess.PIPE,
) -> subprocess.Popen:
    """A training in a process of its own, whose files may have so many bytes at most.

    Args:
      failing: the share of reads of checkpoints that fail.
      said: where what it says goes. A pipe that nobody reads stops it in the end.
    """
    command = [
        sys.executable,
        str(HERE / "subject.py"),
        subject,
        str(workdir),
        str(steps),
        str(saves_every),
        str(failing),
    ]
    streams = {"stdout": said, "stderr": subprocess.STDOUT, "text": True}

    def begin():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell ignores it for background jobs
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))

    return subprocess.Popen(command, env={**os.environ, **quick.environment(cache, {})}, preexec_fn=begin, **streams)


def ended(running: subprocess.Popen, seconds: float = PATIENCE) -> tuple[int, str]:
    """(exit status, output) of a process. Raises AssertionError if it hangs."""
    try:
        said, _ = running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        running.kill()
        raise AssertionError(f"still running after {seconds} s:\n{running.communicate()[0][-2000:]}") from None
    return running.returncode, said


def saves(workdir: Path) -> list[Path]:
    """Its finished checkpoints, the newest last."""
    folder = workdir / "checkpoints"
    return sorted((p for p in folder.glob("*") if p.name.isdigit()), key=lambda p: int(p.name))


def wait_for(running: subprocess.Popen, moment) -> None:
    """Waits until moment() is true or the process has ended."""
    until = time.time() + PATIENCE
    while not moment() and running.poll() is None and time.time() < until:
        time.sleep(0.001)


def killed(attack: Attack, cache: Path, dice: random.Random) -> None:
    """SIGKILL some time after the start."""
    running = process(attack.subject, attack.workdir, cache)
    wait_for(running, lambda: saves(attack.workdir))
    time.sleep(dice.random() * 4)
    running.kill()
    attack.did("killed")
    ended(running)


def killed_in_a_save(attack: Attack, cache: Path, dice: random.Random) -> None:
    """SIGKILL while a checkpoint is being written."""
    before = len(saves(attack.workdir))
    running = process(attack.subject, attack.workdir, cache)
    unfinished = lambda: list((attack.workdir / "checkpoints").glob("*tmp*"))
    wait_for(running, lambda: unfinished() and (before or saves(attack.workdir)))
    time.sleep(dice.random() * 0.02)
    running.kill()
    ended(running)
    attack.did("killed in a save" if unfinished() else "killed after a save")


def signalled(attack: Attack, cache: Path, dice: random.Random) -> None:
    """SIGTERM or SIGINT: it saves, and ends within seconds. A process that has done all may die of it."""
    before, running = saves(attack.workdir), process(attack.subject, attack.workdir, cache)
    wait_for(running, lambda: saves(attack.workdir) != before)
    time.sleep(dice.random() * 3)
    number = dice.choice((signal.SIGTERM, signal.SIGINT))
    running.send_signal(number)
    attack.did(number.name)
    status, said = ended(running, 15)
    done = (attack.workdir / "summary.json").exists()
    assert status in (DONE, STOPPED) or (done and status == -number), f"exit status {status}:\n{said[-2000:]}"


def unreadable(attack: Attack, cache: Path, dice: random.Random) -> None:
    """Half of all reads of checkpoints fail: the run goes on from the newest, or stops and changes nothing."""
    had = saves(attack.workdir)
    attack.did("unreadable")
    running = process(attack.subject, attack.workdir, cache, failing=0.5)
    status, said = ended(running)
    assert status == DONE or explained(said), f"exit status {status}:\n{said[-3000:]}"
    assert status == DONE or saves(attack.workdir) == had, f"saves {had} became {saves(attack.workdir)}"
    assert not had or "step 0/" not in said, f"it began anew:\n{said[-3000:]}"


def limited(attack: Attack, cache: Path, dice: random.Random) -> None:
    """No file may grow beyond a few kB, as on a disk that is almost full: the run ends soon, or goes on."""
    size = dice.choice((0, 200, 2000, 6000))
    had = [path.name for path in saves(attack.workdir)]
    attack.did(f"no file beyond {size} bytes")
    running = process(attack.subject, attack.workdir, cache, largest=size)
    status, said = ended(running)
    assert status == DONE or explained(said), f"exit status {status}:\n{said[-3000:]}"
    left = [path.name for path in saves(attack.workdir)]
    assert not had or had[-1] in left or (left and int(left[-1]) > int(had[-1])), f"saves {had} became {left}"


TOGETHER = {"config.json", "launches.jsonl"}


def damaged(attack: Attack, cache: Path, dice: random.Random) -> None:
    """One to six times: a bit of a file flips, or the file is cut or deleted. One good checkpoint stays."""
    if len(saves(attack.workdir)) < 2:
        return killed(attack, cache, dice)
    for _ in range(dice.randint(1, 6)):
        _damage(attack, dice)


def _damage(attack: Attack, dice: random.Random) -> None:
    newest = saves(attack.workdir)[-1]
    spared = {path for save in saves(attack.workdir)[:-1] for path in save.rglob("*")}
    if TOGETHER & set(attack.damaged):  # the settings of a run are lost if both are
        spared |= {attack.workdir / name for name in TOGETHER}
    there = [p for p in sorted(attack.workdir.rglob("*")) if p.is_file() and p not in spared and p.name != "lock"]
    of_newest = [p for p in there if newest in p.parents]
    path = dice.choice(dice.choice((there, of_newest or there)))
    content, how = path.read_bytes(), dice.choice(("flipped", "cut", "deleted"))
    at = dice.randrange(max(len(content), 1))
    if how == "flipped" and content:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :])
    elif how == "cut":
        path.write_bytes(content[:at])
    else:
        path.unlink()
    attack.did(how, path.relative_to(attack.workdir))
    attack.damaged.append(path.name)


def vanished(attack: Attack, cache: Path, dice: random.Random) -> None:
    """The directory is moved away under the run, which ends within seconds or goes on, and then put back."""
    aside = attack.workdir.with_name(f"{attack.workdir.name}_aside")
    running = process(attack.subject, attack.workdir, cache)
    wait_for(running, lambda: saves(attack.workdir))
    time.sleep(dice.random())
    attack.workdir.rename(aside)
    attack.did("vanished")
    start = time.time()
    status, said = ended(running)
    soon = time.time() - start < 30
    assert status == DONE or (soon and explained(said)), f"exit status {status}, soon: {soon}:\n{said[-3000:]}"
    shutil.rmtree(attack.workdir, ignore_errors=True)
    aside.rename(attack.workdir)


def explained(said: str) -> bool:
    """Whether a process ended with an error in one line. Threads of orbax print more of their own around it."""
    return any(line.startswith("error: ") for line in said.splitlines())


# How often, of 15 times
ATTACKS = {killed: 2, killed_in_a_save: 3, signalled: 2, limited: 1, vanished: 1, unreadable: 1, damaged: 5}
