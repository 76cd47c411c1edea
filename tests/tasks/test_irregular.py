"""Irregular series: both formats are read, wrong files are reported, splits do not leak, and nothing is padded."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.tasks import irregular
from cram_jax.tasks.irregular_generated import write_generated
from cram_jax.tasks.irregular_task import FORMATS, IrregularTask, area_under_curve
from cram_jax.training.metrics import means

RECORD = """Time,Parameter,Value
00:00,RecordID,132539
00:00,Age,54
00:00,Gender,0
00:00,Height,-1
00:00,ICUType,4
00:00,Weight,-1
00:07,GCS,15
00:07,HR,73
47:37,Temp,-1
00:37,HR,77
"""
OUTCOMES = irregular.HEADER + "\n132539,6,1,5,-1,0\n132540,16,8,8,3,1\n"
ACTIVITY = """A01,010-000-024-033,633790226051280329,27.05.2009 14:03:25:127,4.062931,1.8924434,0.50742954,walking
A01,020-000-033-111,633790226051820913,27.05.2009 14:03:25:183,4.291954,1.78114,1.3444951,walking
A02,010-000-030-096,633790226000000000,27.05.2009 14:03:20:000,1,2,0.1,standing up from sit on grnd
A01,020-000-032-221,633790226052091205,27.05.2009 14:03:25:210,4.359101,1.8265749,0.96840304,falling
"""


def physionet(folder, record=RECORD, outcomes=OUTCOMES):
    (folder / "set-a").mkdir(exist_ok=True)
    (folder / "set-a" / "132539.txt").write_text(record)
    (folder / "Outcomes-a.txt").write_text(outcomes)
    return irregular.read_physionet_2012(folder / "set-a", folder / "Outcomes-a.txt")


def activity(folder, text=ACTIVITY):
    path = folder / "ConfLongDemo_JSI.txt"
    path.write_text(text)
    return irregular.read_person_activity(path)


def test_a_record_is_read_in_order_with_its_label_at_the_end(tmp_path):
    (record,) = physionet(tmp_path)
    names = [irregular.PARAMETERS[channel] for channel in record.channel_N]
    # Unknown descriptors are none, a temperature of -1 is one; lines of one time keep their order
    assert names == ["Age", "Gender", "ICUType", "GCS", "HR", "HR", "Temp"] and record.described == 3
    assert record.value_NxX[:, 0].tolist() == [54, 0, 4, 15, 73, 77, -1]
    np.testing.assert_allclose(record.time_N, [0, 0, 0, 7 / 60, 7 / 60, 37 / 60, 47 + 37 / 60])
    assert record.label_N.tolist() == [-1] * 6 + [0] and record.name == "132539"


def test_a_record_of_descriptors_alone_is_a_record(tmp_path):
    (record,) = physionet(
        tmp_path, "".join(line for line in RECORD.splitlines(True) if "00:00" in line or "T" in line[:1])
    )
    assert record.described == len(record.time_N) == 3 and record.label_N[-1] == 0


def test_a_recording_is_read_in_order_of_time(tmp_path):
    first, second = activity(tmp_path)
    assert (first.name, second.name) == ("A01", "A02") and first.channel_N.tolist() == [0, 2, 3]
    # 540584 ticks of 100 ns after the first; as floats the stamps would be off by 64 of them
    np.testing.assert_allclose(first.time_N, [0, 0.0540584, 0.0810876], atol=1e-12)
    np.testing.assert_array_equal(first.value_NxX[0], [4.062931, 1.8924434, 0.50742954])
    assert [irregular.ACTIVITIES[label] for label in first.label_N] == ["walking", "walking", "falling"]
    assert irregular.ACTIVITIES[second.label_N[0]] == "standing up from sitting on the ground"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("00:07,HR,73", "00:07,HR", r"132539.txt, line 9: 2 fields; give Time,Parameter,Value"),
        ("00:07,HR,73", "00:07,Pulse,73", r"line 9: unknown parameter 'Pulse'; known are Age,"),
        ("00:07,HR,73", "00:07,HR,high", r"line 9: HR is 'high'; give a finite number"),
        ("00:07,HR,73", "00:07,HR,nan", r"line 9: HR is 'nan'"),
        ("00:07,HR,73", "7 min,HR,73", r"line 9: the time is '7 min'; give hours and minutes since admission as HH:MM"),
        ("00:07,HR,73", "00:77,HR,73", r"line 9: the time is '00:77'"),
        ("Time,Parameter,Value", "t,p,v", r"line 1: 't,p,v' is not Time,Parameter,Value"),
        (RECORD[21:], "", r"132539.txt holds no measurement"),
    ],
)
def test_a_wrong_line_of_a_record_is_named(tmp_path, old, new, said):
    with pytest.raises(ValueError, match=said):
        physionet(tmp_path, RECORD.replace(old, new))


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ("RecordID,Death\n132539,1\n", r"Outcomes-a.txt, line 1: the header is not RecordID,SAPS-I"),
        (
            OUTCOMES.replace("132539,6,1,5,-1,0", "132539,6,1,5,-1"),
            r"line 2: '132539,6,1,5,-1' does not end in a death",
        ),
        (OUTCOMES.replace("132539", "1"), r"has no line for .*132539.txt; give the outcomes of these records"),
    ],
)
def test_wrong_outcomes_are_named(tmp_path, outcomes, said):
    with pytest.raises(ValueError, match=said):
        physionet(tmp_path, outcomes=outcomes)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no record, such as 132539.txt"):
        irregular.read_physionet_2012(tmp_path, tmp_path / "Outcomes-a.txt")
    with pytest.raises(ValueError, match=r"nowhere.txt cannot be read \(No such file or directory\)"):
        irregular.read_person_activity(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (",falling", "", r"ConfLongDemo_JSI.txt, line 4: 7 fields; give sequence,tag,time stamp,date,x,y,z,activity"),
        ("falling", "flying", r"line 4: unknown activity 'flying'; known are walking, falling"),
        ("020-000-032-221", "020", r"line 4: unknown tag '020'"),
        ("633790226052091205", "6.3e17", r"line 4: the time stamp is '6.3e17'; give a whole number of 100 nanoseconds"),
        ("4.359101", "inf", r"line 4: x is 'inf'"),
        (ACTIVITY, "\n", r"holds no event"),
    ],
)
def test_a_wrong_line_of_a_recording_is_named(tmp_path, old, new, said):
    with pytest.raises(ValueError, match=said):
        activity(tmp_path, ACTIVITY.replace(old, new))


@pytest.fixture(scope="module", params=irregular.FORMATS)
def task(request, tmp_path_factory):
    """A task on 20 generated series of about 100 events."""
    folder = tmp_path_factory.mktemp(request.param)
    return IrregularTask(request.param, write_generated(request.param, folder, 20, 100))


def test_generated_files_are_of_the_format_and_a_function_of_their_seed(task, tmp_path):
    again = IrregularTask(task.format, write_generated(task.format, tmp_path / "again", 20, 100))
    other = IrregularTask(task.format, write_generated(task.format, tmp_path / "other", 20, 100, seed=1))
    assert again.collection.fingerprint == task.collection.fingerprint != other.collection.fingerprint
    labels = np.concatenate([one.label_N for one in task.collection.train])
    assert len(set(labels[labels >= 0].tolist())) > 1


def test_no_series_is_in_two_splits_and_statistics_are_those_of_training(task):
    collection = task.collection
    names = [{one.name for one in getattr(collection, split)} for split in irregular.SPLITS]
    assert [len(some) for some in names] == [14, 2, 4]
    assert not any(a & b for a, b in itertools.combinations(names, 2))
    # Standardised by the training part: there each channel has mean 0 and deviation 1, but for what was cut off
    value = np.concatenate([one.value_NxX for one in collection.train])
    channel = np.concatenate([one.channel_N for one in collection.train])
    for number in np.unique(channel):
        among = value[channel == number]
        if among.std() > 0 and np.abs(among).max() < irregular.FARTHEST:
            np.testing.assert_allclose([among.mean(0), among.std(0)], [0 * among[0], 1 + 0 * among[0]], atol=1e-9)


def test_other_held_out_values_change_nothing_of_training(tmp_path):
    # Given two sets of files that differ in the held-out record alone
    paths = write_generated("physionet_2012", tmp_path, 10, 50)
    task = IrregularTask("physionet_2012", paths)
    before, held_out = task.collection, task.collection.held_out[0].name
    (tmp_path / "records" / f"{held_out}.txt").write_text("Time,Parameter,Value\n01:00,HR,9999\n02:00,GCS,3\n")
    after = irregular.open_collection.__wrapped__(task.format, task.paths)
    for one, two in zip(before.train, after.train, strict=True):
        assert one.name == two.name and np.array_equal(one.value_NxX, two.value_NxX)
    assert before.fingerprint != after.fingerprint


def test_a_sequence_is_a_stretch_of_one_series_without_padding(task):
    for split in irregular.SPLITS:
        batch = task.batch(split, 0, 3, 32, 6)
        series = getattr(task.collection, split)
        for value_TxX, channel_T, label_T, gap_T in zip(
            *map(np.asarray, (batch.value_BxTxX, batch.channel_BxT, batch.label_BxT, batch.gap_BxT)), strict=True
        ):
            # Every event is one of the files', the window's last 20 in a row
            tail = value_TxX[12:]
            rows = lambda one: range(len(one.time_N) - 19)
            found = [(one, i) for one in series for i in rows(one) if np.allclose(one.value_NxX[i : i + 20], tail)]
            ((one, i),) = found
            assert np.array_equal(one.channel_N[i : i + 20], channel_T[12:])
            gaps = np.maximum(np.diff(one.time_N[i : i + 20]), task.about.gap)
            np.testing.assert_allclose(gap_T[13:], gaps, rtol=1e-5)
            assert np.array_equal(one.label_N[i : i + 20], label_T[12:]) and np.all(gap_T > 0)
            if task.about.at_end:
                assert i + 20 == len(one.time_N) and label_T[-1] >= 0 and np.all(label_T[:-1] == -1)
                assert np.allclose(value_TxX[: one.described], one.value_NxX[: one.described])
            else:
                assert np.all(label_T >= 0)


def test_evaluation_goes_through_every_window_once(task):
    windows = task.windows("held_out", 32)
    assert len(windows.series_N) == (4 if task.about.at_end else 12) and windows.left_out == 0
    first = [np.asarray(task.batch("held_out", seed, 0, 32, 4).value_BxTxX) for seed in (0, 1)]
    assert np.array_equal(*first)
    seen = np.concatenate([task.batch("held_out", 0, i, 32, 4).value_BxTxX for i in range(len(windows.series_N) // 4)])
    assert len(np.unique(seen.reshape(len(seen), -1), axis=0)) == len(seen)
    trained = [np.asarray(task.batch("train", 0, i, 32, 4).value_BxTxX) for i in (0, 0, 1)]
    assert np.array_equal(*trained[:2]) and not np.array_equal(*trained[1:])


def test_training_draws_every_window_alike(tmp_path):
    # Given recordings of different lengths
    (path,) = write_generated("person_activity", tmp_path, 8, 12)
    lines, kept = Path(path).read_text().splitlines(True), {"A01": 10, "B01": 12, "C01": 11, "A02": 9}
    some = [line for name in kept for line in [one for one in lines if one.startswith(name)][: kept[name]]]
    Path(path).write_text("".join(some))
    task = IrregularTask("person_activity", (path,))
    # When 2000 windows of 10 events are drawn
    values = np.asarray(task.batch("train", 0, 0, 10, 2000).value_BxTxX)
    windows = [one.value_NxX[i : i + 10] for one in task.collection.train for i in range(len(one.time_N) - 9)]
    # Then each comes with its share, within five standard deviations
    p = 1 / len(windows)
    for window in windows:
        share = np.mean(np.all(np.isclose(values, window, atol=1e-6), axis=(1, 2)))
        assert abs(share - p) <= 5 * np.sqrt(p * (1 - p) / 2000)


def test_series_that_are_too_short_are_left_out_and_counted(tmp_path):
    paths = write_generated("physionet_2012", tmp_path, 30, 40)
    for path in sorted((tmp_path / "records").glob("*.txt"))[:10]:
        path.write_text("".join(path.read_text().splitlines(True)[:20]))
    task = IrregularTask("physionet_2012", paths)
    windows = [task.windows(split, 32) for split in irregular.SPLITS]
    assert sum(one.left_out for one in windows) == 10
    with pytest.raises(ValueError, match="no series of the train split has 64 events, the longest has 44"):
        task.batch("train", 0, 0, 64, 2)


def test_the_area_under_the_curve_of_binned_logits_is_the_exact_one(tmp_path):
    task = IrregularTask("physionet_2012", write_generated("physionet_2012", tmp_path, 10, 40))
    # Given logits with much overlap, over several batches, in which few are positive
    random, D, sums, logits, labels = np.random.default_rng(0), 4, [], [], []
    params = task.init(jax.random.key(0), D)
    params = params._replace(label_DxA=jnp.zeros((D, 2)).at[0, 1].set(1.0))
    score = jax.jit(task.score)
    for i in range(5):
        batch = task.batch("train", 0, i, 32, 64)
        label_B = (random.random(64) < 0.2).astype(np.int32)
        batch = batch._replace(label_BxT=batch.label_BxT.at[:, -1].set(label_B))
        y_BxTxD = random.normal(size=(64, 32, D)).astype(np.float32)
        y_BxTxD[:, -1, 0] += label_B
        sums.append(jax.device_get(score(params, jnp.asarray(y_BxTxD), batch)[1]))
        logits.append(y_BxTxD[:, -1, 0] / np.sqrt(np.mean(y_BxTxD[:, -1] ** 2, axis=-1)))
        labels.append(label_B)
    # Then the area is that of all pairs of a positive and a negative, but for those that share a bin
    logit_N, label_N = np.concatenate(logits), np.concatenate(labels)
    above = logit_N[label_N == 1][:, None] - logit_N[label_N == 0]
    exact = np.mean((above > 0) + 0.5 * (above == 0))
    found = means(sums)
    area = area_under_curve(found["negative_bins"], found["positive_bins"])
    # a share of about 1 / 80 of pairs is in one bin of 0.05 among logits within +-2; each is off by half at most
    assert 0.6 < exact < 0.95 and abs(area - exact) < 0.01
    # ... and the counts are those of labels, nothing of the 31 events without one
    assert sum(one["positive_bins"][0].sum() for one in sums) == label_N.sum() and sums[0]["accuracy"][1] == 64


def test_the_area_under_the_curve_at_its_ends():
    low, high = np.eye(10)[1] * 7, np.eye(10)[6] * 3
    assert area_under_curve(low, high) == 1 and area_under_curve(high, low) == 0 and area_under_curve(low, low) == 0.5
    assert np.isnan(area_under_curve(low, 0 * high))


def test_which_label_is_asked_for_does_not_show(task):
    one, params = task.batch("train", 0, 0, 32, 4), task.init(jax.random.key(0), 8)
    classes = FORMATS[task.format].classes
    other = one._replace(label_BxT=jnp.where(one.label_BxT >= 0, (one.label_BxT + 1) % classes, -1))
    x_BxTxD, gap_BxT = task.embed(params, one)
    np.testing.assert_array_equal(x_BxTxD, task.embed(params, other)[0])
    assert np.all(gap_BxT > 0) and np.all(np.isfinite(x_BxTxD))
