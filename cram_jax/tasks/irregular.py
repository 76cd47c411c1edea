"""Irregular time series: readers of two public file formats.

- `physionet_2012`, the PhysioNet/CinC Challenge 2012. A series is the record of a stay in intensive care. A channel is
  a parameter, with one value. Times are in hours. The label, death in hospital, is at the last event.
- `person_activity`, the UCI 'Localization Data for Person Activity'. A series is a recording of a person who wears four
  tags. A channel is a tag, with values x, y and z. Times are in seconds. The label, an activity, is at each event.

Nothing here downloads files. `irregular_generated.py` writes made-up files of both formats. They do not replace the
published data: call them "generated" wherever they are used.
"""

import csv
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

DESCRIPTORS = ("Age", "Gender", "Height", "ICUType", "Weight")  # given at 00:00; -1 means unknown
PARAMETERS = (
    *DESCRIPTORS, "Albumin", "ALP", "ALT", "AST", "Bilirubin", "BUN", "Cholesterol", "Creatinine", "DiasABP", "FiO2",
    "GCS", "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "Mg", "MAP", "MechVent", "Na", "NIDiasABP", "NIMAP",
    "NISysABP", "PaCO2", "PaO2", "pH", "Platelets", "RespRate", "SaO2", "SysABP", "Temp", "TroponinI", "TroponinT",
    "Urine", "WBC",
)  # fmt: skip
OUTCOMES = ("survived", "died")
HEADER = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"

TAGS = ("010-000-024-033", "010-000-030-096", "020-000-033-111", "020-000-032-221")  # ankles, chest, belt
ACTIVITIES = (
    "walking", "falling", "lying down", "lying", "sitting down", "sitting", "standing up from lying", "on all fours",
    "sitting on the ground", "standing up from sitting", "standing up from sitting on the ground",
)  # fmt: skip
SPELLINGS = {"standing up from sit on grnd": "standing up from sitting on the ground"}
TICKS = 10_000_000  # units of a time stamp in a second

FORMATS = ("physionet_2012", "person_activity")
SPLITS = ("train", "validation", "held_out")
FARTHEST = 5.0  # standard deviations at which values are clipped; values beyond are often typing errors


class Series(NamedTuple):
    """One record or recording, in order of time: N events with X values each.

    Attributes:
      name: name in the files.
      time_N: time since the first event, in hours or seconds.
      channel_N: parameter or tag that was measured.
      value_NxX: measured values.
      label_N: class to predict at an event; -1 for none.
      described: number of events at the start that describe the person. Windows always include them.
    """

    name: str
    time_N: Float[np.ndarray, "N"]
    channel_N: Int[np.ndarray, "N"]
    value_NxX: Float[np.ndarray, "N X"]
    label_N: Int[np.ndarray, "N"]
    described: int = 0


def _lines(path: Path):
    """Yields (line number, fields) of each line that is not empty.

    Raises:
      ValueError: if the file cannot be read as text.
    """
    try:
        with open(path, newline="") as file:
            for number, fields in enumerate(csv.reader(file), 1):
                if fields:
                    yield number, [field.strip() for field in fields]
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give a folder that holds it") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a file of comma-separated text ({error}); unpack it first") from error


def _wrong(path: Path, number: int, found: str, fix: str) -> ValueError:
    return ValueError(f"{path}, line {number}: {found}; {fix}")


def _number(text: str, path: Path, number: int, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise _wrong(path, number, f"{what} is {text!r}", "give a finite number, or remove the line")
    return value


def read_physionet_2012(records: Path, outcomes: Path) -> list[Series]:
    """Reads all records of a folder, with their labels, in order of their names.

    The known general descriptors come first, as events at hour 0. ICUType is a number from 1 to 4. Lines without a
    parameter's name are skipped.

    Args:
      records: folder with one text file for each record (`set-a`).
      outcomes: file with the labels (`Outcomes-a.txt`).

    Raises:
      ValueError: if a file is wrong. The message names the file, the line and the fix.
    """
    paths = sorted(Path(records).glob("*.txt"))
    if not paths:
        raise ValueError(f"{records} holds no record, such as 132539.txt; give the folder that the archive unpacks to")
    died = _outcomes(Path(outcomes))
    return [_record(path, died, Path(outcomes)) for path in paths]


def _outcomes(path: Path) -> dict[str, int]:
    lines = list(_lines(path))
    names = HEADER.split(",")
    if not lines or lines[0][1] != names:
        raise ValueError(f"{path}, line 1: the header is not {HEADER}; give the outcomes file of the records")
    died = {}
    for number, fields in lines[1:]:
        if len(fields) != len(names) or fields[-1] not in ("0", "1"):
            raise _wrong(path, number, f"{','.join(fields)!r} does not end in a death of 0 or 1", f"give {HEADER}")
        died[fields[0]] = int(fields[-1])
    return died


def _record(path: Path, died: dict[str, int], outcomes: Path) -> Series:
    if path.stem not in died:
        raise ValueError(f"{outcomes} has no line for {path}; give the outcomes of these records, or remove it")
    events = []
    for number, fields in _lines(path):
        if number == 1:
            if fields != ["Time", "Parameter", "Value"]:
                raise _wrong(path, number, f"{','.join(fields)!r} is not Time,Parameter,Value", "give a record file")
            continue
        if len(fields) != 3:
            raise _wrong(path, number, f"{len(fields)} fields", "give Time,Parameter,Value")
        time, name, text = fields
        if name in ("", "RecordID"):
            continue
        if name not in PARAMETERS:
            raise _wrong(path, number, f"unknown parameter {name!r}", f"known are {', '.join(PARAMETERS)}")
        value = _number(text, path, number, name)
        hours = _hours(time, path, number)
        describes = hours == 0 and name in DESCRIPTORS
        if name in DESCRIPTORS and value == -1:  # unknown
            continue
        events.append((not describes, hours, PARAMETERS.index(name), value))
    if not events:
        raise ValueError(f"{path} holds no measurement; remove the file")
    events.sort(key=lambda event: event[:2])  # stable
    later, time_N, channel_N, value_N = map(np.array, zip(*events, strict=True))
    label_N = np.full(len(events), -1)
    label_N[-1] = died[path.stem]
    return Series(path.stem, time_N, channel_N, value_N[:, None], label_N, int(np.sum(~later)))


def _hours(text: str, path: Path, number: int) -> float:
    hours, _, minutes = text.partition(":")
    if not (hours.isdigit() and minutes.isdigit() and int(minutes) < 60):
        raise _wrong(path, number, f"the time is {text!r}", "give hours and minutes since admission as HH:MM")
    return int(hours) + int(minutes) / 60


def read_person_activity(path: Path) -> list[Series]:
    """Reads all recordings of a file, in order of their names (A01 to E05 in the published file).

    Raises:
      ValueError: if the file is wrong. The message names the file, the line and the fix.
    """
    path, events = Path(path), {}
    form = "give sequence,tag,time stamp,date,x,y,z,activity"
    for number, fields in _lines(path):
        if len(fields) != 8:
            raise _wrong(path, number, f"{len(fields)} fields", form)
        name, tag, stamp, _, *xyz, said = fields
        said = SPELLINGS.get(said, said)
        if tag not in TAGS:
            raise _wrong(path, number, f"unknown tag {tag!r}", f"known are {', '.join(TAGS)}")
        if said not in ACTIVITIES:
            raise _wrong(path, number, f"unknown activity {said!r}", f"known are {', '.join(ACTIVITIES)}")
        if not stamp.isdigit():
            raise _wrong(path, number, f"the time stamp is {stamp!r}", "give a whole number of 100 nanoseconds")
        place = [_number(text, path, number, axis) for axis, text in zip("xyz", xyz, strict=True)]
        events.setdefault(name, []).append((int(stamp), TAGS.index(tag), place, ACTIVITIES.index(said)))
    if not events:
        raise ValueError(f"{path} holds no event; {form} on each line")
    return [_recording(name, events[name]) for name in sorted(events)]


def _recording(name: str, events: list[tuple]) -> Series:
    events.sort(key=lambda event: event[0])  # stable
    stamp_N, channel_N, value_NxX, label_N = zip(*events, strict=True)
    time_N = (np.array(stamp_N) - stamp_N[0]) / TICKS  # subtracted as integers: a stamp has 18 digits
    return Series(name, time_N, np.array(channel_N), np.array(value_NxX), np.array(label_N))


@dataclasses.dataclass(frozen=True, eq=False)
class Collection:
    """All series of some files, in three splits, with standardised values.

    Attributes:
      train, validation, held_out: the series of each split.
      mean_AxX, deviation_AxX: statistics of each channel in `train`. All three splits are standardised with them.
    """

    train: tuple[Series, ...]
    validation: tuple[Series, ...]
    held_out: tuple[Series, ...]
    mean_AxX: Float[np.ndarray, "A X"]
    deviation_AxX: Float[np.ndarray, "A X"]

    @property
    def fingerprint(self) -> str:
        """Counts, and a digest of all names, times, values and labels. A run is only resumed on the same data."""
        sha = hashlib.sha256()
        for split in SPLITS:
            for series in getattr(self, split):
                sha.update(f"{split} {series.name} {series.described}".encode())
                for array in series[1:5]:
                    sha.update(np.ascontiguousarray(array).tobytes())
        counts = "+".join(str(len(getattr(self, split))) for split in SPLITS)
        events = sum(len(series.time_N) for split in SPLITS for series in getattr(self, split))
        return f"{counts} series, {events} events, {sha.hexdigest()[:16]}"


@functools.lru_cache(maxsize=8)
def open_collection(
    format: str, paths: tuple[str, ...], validation_share: float = 0.1, held_out_share: float = 0.2
) -> Collection:
    """Reads files of one of FORMATS and splits their series into training, validation and held-out data.

    A hash of its name puts each series into one split. Different recordings of one person may be in different splits:
    the published file has five recordings of each of five people. The values of each channel are standardised with
    statistics of the training split alone, then clipped at FARTHEST standard deviations.

    Args:
      paths: arguments of the format's reader.
      validation_share, held_out_share: shares of the series.

    Raises:
      ValueError: if a file is wrong, or there are too few series for three splits.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {FORMATS}, got {format!r}")
    if not (validation_share > 0 and held_out_share > 0 and validation_share + held_out_share < 1):
        raise ValueError(
            "validation_share and held_out_share must be above 0 and add up to less than 1, got "
            f"{validation_share} and {held_out_share}"
        )
    read, channels = {
        "physionet_2012": (read_physionet_2012, len(PARAMETERS)),
        "person_activity": (read_person_activity, len(TAGS)),
    }[format]
    ranked = sorted(read(*map(Path, paths)), key=lambda series: hashlib.sha256(series.name.encode()).digest())
    if len(ranked) < 3:
        raise ValueError(f"{', '.join(paths)} hold {len(ranked)} series; three splits need at least 3")
    held_out = max(1, round(held_out_share * len(ranked)))
    rest = held_out + max(1, round(validation_share * len(ranked)))
    splits = {"held_out": ranked[:held_out], "validation": ranked[held_out:rest], "train": ranked[rest:]}
    if not splits["train"]:
        raise ValueError(f"{', '.join(paths)} hold {len(ranked)} series, and none is left to train on; give more")
    mean_AxX, deviation_AxX = _statistics(splits["train"], channels)
    standard = {
        split: tuple(_standardised(series, mean_AxX, deviation_AxX) for series in some)
        for split, some in splits.items()
    }
    return Collection(**standard, mean_AxX=mean_AxX, deviation_AxX=deviation_AxX)


def _statistics(train: list[Series], channels: int):
    channel_N = np.concatenate([series.channel_N for series in train])
    value_NxX = np.concatenate([series.value_NxX for series in train])
    mean_AxX, deviation_AxX = np.zeros((channels, value_NxX.shape[1])), np.ones((channels, value_NxX.shape[1]))
    for channel in np.unique(channel_N):  # a channel that never occurs in training is not changed
        among = value_NxX[channel_N == channel]
        deviation = among.std(axis=0)
        mean_AxX[channel], deviation_AxX[channel] = among.mean(axis=0), np.where(deviation > 1e-9, deviation, 1)
    return mean_AxX, deviation_AxX


def _standardised(series: Series, mean_AxX, deviation_AxX) -> Series:
    standard_NxX = (series.value_NxX - mean_AxX[series.channel_N]) / deviation_AxX[series.channel_N]
    return series._replace(value_NxX=np.clip(standard_NxX, -FARTHEST, FARTHEST))
