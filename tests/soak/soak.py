"""Attacks trainings for as long as asked, and compares what they end with: make soak MINUTES=30.

python tests/soak/soak.py MINUTES [SEED [ATTACK ...]]    by default all attacks that attacks.py has

Short trainings (`subject.py`) run in processes of their own. At random, each is killed, signalled, limited in what it
may write, or damaged on disk between two starts, and started again until it is done. Then its last checkpoint must be,
bit for bit, that of a training that nothing happened to. No logged step may be there twice, and none may be missing,
unless `metrics.jsonl` was damaged; then the summary must say so.

Beside it, one long training runs all the time. Its memory and its open files must not grow.
"""

import json
import random
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from attacks import ATTACKS, DONE, HERE, STEPS, STOPPED, Attack, ended, process, saves

from cram_jax.training import files
from cram_jax.training.metrics import CLOCK

SUBJECTS = ("srcd", "streams", "text")


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
    want, last = dict(wanted[1]), lines.get(STEPS, {})
    if "metrics.jsonl" in attack.damaged and len(lines) == 1 and "train/loss" not in last:
        # All lines were lost, with no step left to do. The last one was measured again.
        want[STEPS] = {n: v for n, v in want[STEPS].items() if not n.startswith("train/")}
    different = [step for step, line in lines.items() if line != want[step]]
    missing = sorted(want.keys() - lines.keys())
    assert not different, f"lines differ at steps {different}"
    assert not missing or "metrics.jsonl" in attack.damaged, f"lines are missing at steps {missing}"
    summary = json.loads((attack.workdir / "summary.json").read_text())
    assert summary["steps"] == STEPS and summary["missing_lines"] == len(missing)


def attacked(attack: Attack, cache: Path, dice: random.Random, often: dict) -> None:
    """Attacks a training three times, and then lets it end."""
    for one in dice.choices(list(often), list(often.values()), k=3):
        one(attack, cache, dice)
    status, said = ended(process(attack.subject, attack.workdir, cache))
    assert status == DONE, f"exit status {status}:\n{said[-3000:]}"


class Watch:
    """A long training, whose memory and open files are looked at from time to time."""

    def __init__(self, workdir: Path, cache: Path):
        self.workdir, self.looks, self.said = workdir, [], workdir.with_suffix(".log").open("w+")
        # tensorstore (0.1.86) loses some 50 kB of memory with each save of 60 arrays, so this training saves every half
        # minute, as a real one might. Steps and logged lines lose none.
        self.process = process("streams", workdir, cache, steps=10**7, saves_every=1000, said=self.said)

    def look(self) -> None:
        """Notes its megabytes and its open files."""
        place = Path(f"/proc/{self.process.pid}")
        pages = int((place / "statm").read_text().split()[1])
        self.looks.append((pages * resource.getpagesize() / 1e6, len(list((place / "fd").iterdir()))))

    def end(self) -> str:
        """Ends it, and returns what was seen. Raises AssertionError if anything grew."""
        self.process.send_signal(signal.SIGTERM)
        status, _ = ended(self.process, 15)
        assert status == STOPPED, f"exit status {status}, see {self.said.name}"
        step, quarter = saves(self.workdir)[-1].name, len(self.looks) // 4
        if not quarter:
            return f"a long training: step {step}; too short to see whether it grows"
        (mb, opened), (mb_last, opened_last) = (
            map(statistics.median, zip(*looks, strict=True))
            for looks in (self.looks[quarter : 2 * quarter], self.looks[-quarter:])
        )
        seen = f"a long training: step {step}; in the second quarter of the time {mb:.0f} MB and {opened:.0f} files, "
        seen += f"in the last {mb_last:.0f} and {opened_last:.0f}"
        assert mb_last < 1.02 * mb and opened_last <= opened, seen
        return seen


def main(minutes: float, seed: int = 0, *names: str) -> int:
    """Returns the exit status: 0 if all trainings ended as they must.

    Args:
      names: of the attacks, functions of attacks.py; all by default.
    """
    often = {attack: times for attack, times in ATTACKS.items() if not names or attack.__name__ in names}
    dice, counts, failed, done = random.Random(seed), Counter(), 0, 0
    root = Path(tempfile.mkdtemp(prefix="soak_"))
    cache, wanted = HERE.parents[1] / ".pytest_cache" / "jax", {}
    for subject in SUBJECTS:
        status, said = ended(process(subject, root / subject, cache), 600)
        assert status == DONE, said
        wanted[subject] = outcome(root / subject)
    watch, until = Watch(root / "long", cache), time.time() + 60 * minutes
    while time.time() < until:
        attack = Attack(SUBJECTS[done % len(SUBJECTS)], root / f"attacked_{done}", counts)
        try:
            attacked(attack, cache, dice, often)
            check(attack, wanted[attack.subject])
            shutil.rmtree(attack.workdir)
        except AssertionError as error:
            failed += 1
            print(f"FAILED: {attack.subject} in {attack.workdir}, after {attack.done_to_it}: {error}", flush=True)
        done += 1
        watch.look()
        print(f"{done} trainings, {failed} failed; {dict(counts)}", flush=True)
    try:
        print(watch.end())
    except AssertionError as error:
        failed += 1
        print(f"FAILED: {error}")
    if not failed:
        shutil.rmtree(root)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:]))
