"""Writes made-up files in the formats that `irregular.py` reads. They have structure to learn; the seed decides them.

Use them to check that everything runs without the published files. A model's score on them says nothing about the
published data. Here the data's name means its file format only.
"""

from pathlib import Path

import numpy as np

from cram_jax.tasks.irregular import ACTIVITIES, FORMATS, HEADER, TAGS, TICKS

# Files written for each format: the arguments of its reader
PATHS = {"physionet_2012": ("records", "outcomes.txt"), "person_activity": ("recordings.txt",)}
# Parameter: (mean, standard deviation, shift by one unit of severity in standard deviations, readings a day)
USUAL = {
    "HR": (85, 15, 0.6, 24), "GCS": (12, 3, -0.9, 6), "SysABP": (120, 20, -0.5, 24), "Temp": (37, 0.7, 0.0, 12),
    "Urine": (110, 60, -0.6, 12), "Lactate": (2, 1, 0.9, 2), "BUN": (25, 12, 0.7, 2), "HCT": (31, 5, 0.0, 3),
    "Glucose": (140, 40, 0.2, 4), "pH": (7.37, 0.06, -0.4, 3), "Na": (139, 4, 0.0, 2), "RespRate": (19, 5, 0.4, 12),
}  # fmt: skip
# Activity: (heights of the four tags in metres, mean duration in seconds, activities that may follow)
POSTURES = {
    "walking": ((0.1, 0.1, 1.3, 1.0), 12, ("sitting down", "falling", "lying down", "on all fours")),
    "falling": ((0.2, 0.2, 0.6, 0.5), 2, ("lying",)),
    "lying down": ((0.2, 0.2, 0.5, 0.4), 4, ("lying",)),
    "lying": ((0.1, 0.1, 0.2, 0.2), 15, ("standing up from lying",)),
    "standing up from lying": ((0.1, 0.1, 0.8, 0.6), 4, ("walking",)),
    "sitting down": ((0.1, 0.1, 1.0, 0.8), 3, ("sitting",)),
    "sitting": ((0.1, 0.1, 0.9, 0.5), 15, ("standing up from sitting",)),
    "standing up from sitting": ((0.1, 0.1, 1.1, 0.8), 3, ("walking",)),
    "on all fours": ((0.1, 0.1, 0.5, 0.5), 8, ("sitting on the ground", "walking")),
    "sitting on the ground": ((0.1, 0.1, 0.6, 0.2), 10, ("standing up from sitting on the ground",)),
    "standing up from sitting on the ground": ((0.1, 0.1, 0.9, 0.6), 4, ("walking",)),
}
assert set(POSTURES) == set(ACTIVITIES)


def write_generated(format: str, folder: Path, series: int, events: int, seed: int = 0) -> tuple[str, ...]:
    """Writes generated files of one of FORMATS, and returns their paths, which are the arguments of its reader.

    Args:
      folder: where to write; created if missing.
      series: number of records or recordings.
      events: events of each series. A record has its descriptors in addition.

    Raises:
      ValueError: if the format is unknown, or series or events is below 1.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {FORMATS}, got {format!r}")
    if series < 1 or events < 1:
        raise ValueError(f"series and events must be at least 1, got {series} and {events}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, FORMATS.index(format)])))
    paths = tuple(folder / name for name in PATHS[format])
    {"physionet_2012": _records, "person_activity": _recordings}[format](*paths, series, events, random)
    return tuple(map(str, paths))


def _records(records: Path, outcomes: Path, series: int, events: int, random) -> None:
    """Writes records. A person's severity shifts some parameters; severity and age decide who dies (about 30%)."""
    records.mkdir(exist_ok=True)
    said = [HEADER]
    for number in range(100_000, 100_000 + series):
        severity, age = random.normal(), random.uniform(20, 90)
        died = random.random() < 1 / (1 + np.exp(1.4 - 2.0 * severity - 0.02 * (age - 55)))
        described = {"RecordID": number, "Age": round(age), "Gender": random.integers(2), "Height": -1}
        described |= {"ICUType": random.integers(1, 5), "Weight": round(random.normal(80, 15), 1)}
        lines = ["Time,Parameter,Value", *(f"00:00,{name},{value}" for name, value in described.items())]
        rates = np.array([rate for *_, rate in USUAL.values()], float)
        names = random.choice(list(USUAL), size=events, p=rates / rates.sum())
        for minute, name in zip(np.sort(random.integers(1, 48 * 60, events)), names, strict=True):
            usual, deviation, shift, _ = USUAL[name]
            value = usual + deviation * (shift * severity + random.normal())
            lines.append(f"{minute // 60:02d}:{minute % 60:02d},{name},{value:.2f}")
        (records / f"{number}.txt").write_text("\n".join(lines) + "\n")
        said.append(f"{number},-1,-1,-1,-1,{int(died)}")
    outcomes.write_text("\n".join(said) + "\n")


def _recordings(path: Path, series: int, events: int, random) -> None:
    """Writes recordings. A person goes from activity to activity. Each reading is of a random tag."""
    lines = []
    for index in range(series):
        name, ticks = f"{'ABCDE'[index % 5]}{index // 5 + 1:02d}", 633790226051280329 + index * 3600 * TICKS
        activity, until, x, y = "walking", 0.0, random.uniform(1, 4), random.uniform(0.5, 2)
        seconds = 0.0
        for _ in range(events):
            seconds += random.exponential(0.08)  # about 12 readings a second over all tags
            if seconds > until:
                activity = random.choice(POSTURES[activity][2]) if until else activity
                until = seconds + random.exponential(POSTURES[activity][1])
            if activity == "walking":
                x, y = np.clip(x + random.normal(0, 0.05), 1, 4), np.clip(y + random.normal(0, 0.05), 0.5, 2)
            tag = random.integers(len(TAGS))
            place = np.array([x, y, POSTURES[activity][0][tag]]) + random.normal(0, 0.08, 3)
            fields = [name, TAGS[tag], str(ticks + int(seconds * TICKS)), "27.05.2009 14:03:25:127"]
            lines.append(",".join([*fields, *(f"{number:.6f}" for number in place), str(activity)]))
    path.write_text("\n".join(lines) + "\n")
