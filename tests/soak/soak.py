"""Attacks trainings for as long as asked, and compares what they end with: make soak MINUTES=30.

Short trainings (`subject.py`) run in processes of their own. At random, each is killed, signalled, limited in what it
may write, or damaged on disk between two starts, and started again until it is done. Then its last checkpoint must be,
bit for bit, that of a training that nothing happened to. No logged step may be there twice, and none may be missing,
unless `metrics.jsonl` was damaged; then the summary must say so.
"""

import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import quick

from cram_jax.training import files
from cram_jax.training.metrics import CLOCK

HERE = Path(__file__).parent
STEPS, PATIENCE = 40, 120  # of a training; seconds after which a process hangs
SUBJECTS = ("srcd", "streams", "text")
DONE, STOPPED = 0, 75


@dataclasses.dataclass
class Attack:
    """A directory of a training, and what was done to it.

    Attributes:
      damaged: names of damaged files.
    """

    subject: str
    workdir: Path
    done_to_it: list[str] = dataclasses.field(default_factory=list)
    damaged: list[str] = dataclasses.field(default_factory=list)


def process(subject: str, workdir: Path, cache: Path, largest: int = resource.RLIM_INFINITY) -> subprocess.Popen:
    """A training in a process of its own, whose files may have so many bytes at most."""
    command = [sys.executable, str(HERE / "subject.py"), subject, str(workdir), str(STEPS)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}

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
    ended(running)


def killed_in_a_save(attack: Attack, cache: Path, dice: random.Random) -> None:
    """SIGKILL while a checkpoint is being written."""
    before = len(saves(attack.workdir))
    running = process(attack.subject, attack.workdir, cache)
    unfinished = lambda: list((attack.workdir / "checkpoints").glob("*tmp*"))
    wait_for(running, lambda: unfinished() and (before or saves(attack.workdir)))
    time.sleep(dice.random() * 0.02)
    running.kill()
    attack.done_to_it[-1] += " (in it)" if unfinished() else " (after it)"
    ended(running)


def signalled(attack: Attack, cache: Path, dice: random.Random) -> None:
    """SIGTERM or SIGINT: it saves, and ends within seconds."""
    before, running = saves(attack.workdir), process(attack.subject, attack.workdir, cache)
    wait_for(running, lambda: saves(attack.workdir) != before)
    time.sleep(dice.random() * 3)
    running.send_signal(dice.choice((signal.SIGTERM, signal.SIGINT)))
    status, said = ended(running, 15)
    assert status in (DONE, STOPPED), f"exit status {status}:\n{said[-2000:]}"


def limited(attack: Attack, cache: Path, dice: random.Random) -> None:
    """No file may grow beyond a few kB, as on a disk that is almost full: the run ends soon, or goes on."""
    size = dice.choice((0, 200, 2000, 6000))
    had = [path.name for path in saves(attack.workdir)]
    running = process(attack.subject, attack.workdir, cache, largest=size)
    status, said = ended(running)
    assert status == DONE or explained(said), f"exit status {status}:\n{said[-3000:]}"
    left = [path.name for path in saves(attack.workdir)]
    assert not had or had[-1] in left or (left and int(left[-1]) > int(had[-1])), f"saves {had} became {left}"


TOGETHER = {"config.json", "launches.jsonl"}


def damaged(attack: Attack, cache: Path, dice: random.Random) -> None:
    """A bit of a file flips, or the file is cut or deleted. One good checkpoint stays."""
    if len(saves(attack.workdir)) < 2:
        return killed(attack, cache, dice)
    newest = saves(attack.workdir)[-1]
    spared = {path for save in saves(attack.workdir)[:-1] for path in save.rglob("*")}
    if TOGETHER & set(attack.damaged):  # the settings of a run are lost if both are
        spared |= {attack.workdir / name for name in TOGETHER}
    there = [p for p in sorted(attack.workdir.rglob("*")) if p.is_file() and p not in spared and p.name != "lock"]
    of_newest = [p for p in there if newest in p.parents]
    path = dice.choice(dice.choice((there, of_newest)))
    content, how = path.read_bytes(), dice.choice(("flipped", "cut", "deleted"))
    at = dice.randrange(max(len(content), 1))
    if how == "flipped" and content:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :])
    elif how == "cut":
        path.write_bytes(content[:at])
    else:
        path.unlink()
    attack.done_to_it[-1] += f": {path.relative_to(attack.workdir)} {how}"
    attack.damaged.append(path.name)


def vanished(attack: Attack, cache: Path, dice: random.Random) -> None:
    """The directory is moved away under the run, which ends within seconds, and then put back."""
    running, aside = process(attack.subject, attack.workdir, cache), attack.workdir.with_name("aside")
    wait_for(running, lambda: saves(attack.workdir))
    time.sleep(dice.random())
    attack.workdir.rename(aside)
    status, said = ended(running, 30)
    assert status == DONE or explained(said), f"exit status {status}:\n{said[-3000:]}"
    shutil.rmtree(attack.workdir, ignore_errors=True)
    aside.rename(attack.workdir)


ATTACKS = (killed, killed_in_a_save, signalled, limited, vanished, damaged, damaged)


def explained(said: str) -> bool:
    """Whether a process ended with an error in one line. Threads of orbax print more of their own around it."""
    return any(line.startswith("error: ") for line in said.splitlines())


def outcome(workdir: Path) -> tuple[str, dict[int, dict]]:
    """(digest of the last checkpoint, logged lines by step)."""
    newest = saves(workdir)[-1]
    assert newest.name == str(STEPS), f"the newest checkpoint is {newest.name}"
    digest = json.loads((newest / "facts" / "metadata").read_text())["digest"]
    lines = [{n: v for n, v in line.items() if n not in CLOCK} for line in files.read(workdir / "metrics.jsonl")]
    assert len({line["step"] for line in lines}) == len(lines), "a step is there twice"
    return digest, {line["step"]: json.loads(files.as_line(line)) for line in lines}


def check(attack: Attack, wanted: tuple[str, dict]) -> None:
    """Raises AssertionError unless a training that was attacked ended as the one that was not."""
    digest, lines = outcome(attack.workdir)
    assert digest == wanted[0], "the last checkpoint is another one"
    different = [step for step, line in lines.items() if line != wanted[1][step]]
    missing = sorted(wanted[1].keys() - lines.keys())
    assert not different, f"lines differ at steps {different}"
    assert not missing or "metrics.jsonl" in attack.damaged, f"lines are missing at steps {missing}"
    summary = json.loads((attack.workdir / "summary.json").read_text())
    assert summary["steps"] == STEPS and summary["missing_lines"] == len(missing)


def attacked(attack: Attack, cache: Path, dice: random.Random, counts: Counter) -> None:
    """Attacks a training until it is done."""
    while True:
        one = dice.choice(ATTACKS)
        attack.done_to_it.append(one.__name__)
        one(attack, cache, dice)
        counts[attack.done_to_it[-1].split(":")[0]] += 1
        if len(attack.done_to_it) % 3 and len(attack.done_to_it) < 12:
            continue
        status, said = ended(process(attack.subject, attack.workdir, cache))
        assert status == DONE, f"exit status {status}:\n{said[-3000:]}"
        return


def main(minutes: float, seed: int) -> int:
    """Returns the exit status: 0 if all trainings ended as they must."""
    until, dice, counts, failed, done = time.time() + 60 * minutes, random.Random(seed), Counter(), 0, 0
    root = Path(tempfile.mkdtemp(prefix="soak_"))
    cache, wanted = HERE.parents[1] / ".pytest_cache" / "jax", {}
    for subject in SUBJECTS:
        status, said = ended(process(subject, root / subject, cache), 600)
        assert status == DONE, said
        wanted[subject] = outcome(root / subject)
    while time.time() < until:
        attack = Attack(SUBJECTS[done % len(SUBJECTS)], root / f"attacked_{done}")
        try:
            attacked(attack, cache, dice, counts)
            check(attack, wanted[attack.subject])
            shutil.rmtree(attack.workdir)
        except AssertionError as error:
            failed += 1
            print(f"FAILED: {attack.subject} in {attack.workdir}, after {attack.done_to_it}: {error}", flush=True)
        done += 1
        print(f"{done} trainings, {failed} failed; {dict(counts)}", flush=True)
    if not failed:
        shutil.rmtree(root)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
