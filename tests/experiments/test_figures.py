"""Every committed figure is drawn again from committed results, and shows what they hold."""

import figures
import pytest

from cram_jax.analysis import comparison_figures
from cram_jax.analysis import figures as over_steps

RESULTS = figures.load()
DRAWN = [name for name, result in RESULTS.items() if figures.drawer(name, result)]


def test_every_committed_figure_is_one_that_is_drawn_and_the_other_way_round():
    committed = {str(path.relative_to(figures.RESULTS).with_suffix("")) for path in figures.RESULTS.rglob("*.png")}
    assert committed == set(DRAWN)


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_from_its_result_alone(name, tmp_path):
    path = figures.draw(name, RESULTS[name], tmp_path)
    assert path == tmp_path / f"{name}.png" and path.stat().st_size > 15_000


def test_all_runs_on_srcd_stand_side_by_side():
    entries = RESULTS["srcd"]["entries"]
    files = sorted(path.stem for path in figures.RESULTS.glob("srcd_*.json"))
    assert [label.split(":")[0] for label in entries] == [name[5:].replace("_", " ") for name in files]
    assert "paper: 2048 events, 6000 steps" in entries


@pytest.mark.parametrize(
    ("name", "result", "wanted"),
    [
        ("srcd_other", {"curves": [], "runs": [{"router_released_step": 500}]}, over_steps.figure_2),
        ("srcd_other", {"runs": [{"router_released_step": 500}]}, None),  # collected before curves were kept
        ("srcd_other", {"curves": [], "runs": [{}]}, None),  # a transformer
        ("a comparison", {"entries": {}}, comparison_figures.draw),
        ("kernels/scans", {}, None),
    ],
)
def test_a_new_result_gets_the_figure_of_its_kind(name, result, wanted):
    assert figures.drawer(name, result) is wanted
    assert wanted is not None or figures.draw(name, result, None) is None


def test_a_band_goes_from_the_lowest_seed_to_the_highest():
    # Given two seeds, of which one has no number at the first step and none has one at the last
    figure, axis = over_steps.plt.subplots()
    curves = [{"step": [0, 5, 9], "x": [None, 0.2, None]}, {"step": [0, 5, 9], "x": [0.1, 0.4, None]}]
    over_steps.band(axis, curves, "x", "of x", {"color": "k"})
    over_steps.band(axis, curves, "y", "of y", {"color": "k"})  # in no curve: nothing
    # Then the line is their median and the band holds both, where there are any
    (line,), (shade,) = axis.lines, axis.collections
    assert line.get_xdata().tolist() == [0, 5] and line.get_ydata() == pytest.approx([10, 30])
    assert shade.get_paths()[0].get_extents().extents == pytest.approx([0, 10, 5, 40])
    over_steps.plt.close(figure)


def test_a_mark_names_the_steps_of_all_seeds_that_have_one():
    figure, axis = over_steps.plt.subplots()
    over_steps.mark(axis, [7, None, 5, 9], "fell", {"color": "k"})
    over_steps.mark(axis, [None], "never", {"color": "k"})
    assert [(line.get_label(), line.get_xdata()[0]) for line in axis.lines] == [("fell, steps 5 to 9", 7)]
    over_steps.plt.close(figure)
