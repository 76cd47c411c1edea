"""Every committed figure is drawn again from committed results, can be read, and shows what they hold."""

import matplotlib
import numpy as np
import pytest
from lib import results
from lib.figures import catalogue, change, comparison, exposure, plasticity, recall, style, text, theorems, training
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

RESULTS = catalogue.load()
DRAWN = {name: catalogue.drawers(name, result) for name, result in RESULTS.items()}
DRAWN = {name: drawers for name, drawers in DRAWN.items() if drawers}


@pytest.fixture(scope="module")
def again() -> dict[str, list[tuple[str, Figure]]]:
    """By name of a result: each of its figures, by name, drawn again as a PNG would be."""
    out = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save", lambda figure, folder, name, about: (name, figure))
        for name in DRAWN:
            out[name] = catalogue.draw(name, RESULTS[name], results.RESULTS)
            for _, figure in out[name]:
                FigureCanvasAgg(figure)
                with matplotlib.rc_context(style.RC):
                    figure.draw_without_rendering()
    return out


@pytest.fixture
def make(monkeypatch):
    """Calls a drawer: the figure that it would save."""
    monkeypatch.setattr(style, "save", lambda figure, *_: figure)
    return lambda draw, result: draw(result, None)


def test_every_committed_figure_is_one_that_is_drawn_and_the_other_way_round(again):
    for suffix in ("png", "svg"):
        committed = {str(path.relative_to(results.RESULTS)) for path in results.RESULTS.rglob(f"*.{suffix}")}
        assert committed == {f"{name}/{figure}.{suffix}" for name, found in again.items() for figure, _ in found}


@pytest.mark.parametrize("name", DRAWN)
def test_the_committed_figure_shows_the_committed_numbers(name):
    for path in (results.RESULTS / name).glob("*.svg"):
        shown = f"{style.SHOWS} {style.digest(RESULTS[name])}<"
        assert shown in path.read_text()[:2000], "a figure of other numbers: draw it again by `make figures`"


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_of_one_width_and_of_a_modest_size(name, again):
    for figure, drawn in again[name]:
        assert drawn.get_size_inches()[0] == style.WIDTH and drawn.dpi == style.DPI
        path = results.RESULTS / name / f"{figure}.png"
        with Image.open(path) as image:
            assert image.size[0] == style.WIDTH * style.DPI
        assert 10_000 < path.stat().st_size < 200_000 and path.with_suffix(".svg").stat().st_size < 300_000


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_cut_and_all_type_has_one_size(name, again):
    for called, figure in again[name]:
        width, height = figure.bbox.size
        for one in _texts(figure):
            box = one.get_window_extent()
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
            assert inside, f"{called}: {one.get_text()!r} leaves the figure"
            assert one.get_fontsize() == style.TYPE, f"{called}: {one.get_text()!r} is of another size"


@pytest.mark.parametrize("name", DRAWN)
def test_labels_do_not_lie_on_one_another(name, again):
    for called, figure in again[name]:
        boxes = [(one.get_text(), one.get_window_extent().padded(-2)) for one in _texts(figure)]
        for i, (said, box) in enumerate(boxes):
            for other, beside in boxes[i + 1 :]:
                assert not box.overlaps(beside), f"{called}: {said!r} lies on {other!r}"


def _texts(figure) -> list[Text]:
    """All text that a figure shows."""
    hidden = set()  # matplotlib keeps ticks outside the limits, which it does not draw
    for axis in figure.axes:
        for across, which in enumerate((axis.xaxis, axis.yaxis)):
            low, high = sorted((axis.bbox.min[across], axis.bbox.max[across]))
            for tick in which.get_major_ticks() + which.get_minor_ticks():
                at = tick.label1.get_transform().transform(tick.label1.get_position())[across]
                if not low - 0.5 <= at <= high + 0.5:
                    hidden |= {tick.label1, tick.label2}
    texts = figure.findobj(Text)
    return [one for one in texts if one.get_visible() and one.get_text().strip() and one not in hidden]


def test_drawing_twice_gives_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        catalogue.draw("mqar", RESULTS["mqar"], tmp_path / folder)
    for suffix in ("png", "svg"):
        one, two = ((tmp_path / folder / "mqar" / f"figure.{suffix}").read_bytes() for folder in ("one", "two"))
        assert one == two, suffix


def test_a_figure_of_other_numbers_is_told():
    result = {"question": "?", "config": None, "entries": {}, "data": {"x": 1}, "made_by": {"notes": []}}
    assert style.digest(result) != style.digest(result | {"data": {"x": 1.5}})
    assert style.digest(result) == style.digest(result | {"made_by": {"notes": ["another"]}})


def test_series_are_told_apart_without_colour():
    for part in ("color", "marker", "ls"):
        assert len({str(line[part]) for line in style.SERIES}) == len(style.SERIES), part


def test_shares_are_told_with_the_digits_that_matter():
    told = [style.percent(share) for share in (1.0, 0.99997, 0.9998, 0.5, 0.0155, 0.0)]
    assert told == ["100%", "100.00%", "99.98%", "50.0%", "1.55%", "0.00%"]


def test_all_runs_on_srcd_stand_side_by_side():
    entries = RESULTS["srcd"]["entries"]
    names = [name for name in results.names() if name.startswith("srcd_")]
    assert [label.split(":")[0] for label in entries] == [name[5:].replace("_", " ") for name in names]
    assert "paper: 2048 events, 6000 steps" in entries


def test_a_new_result_gets_the_figure_of_its_kind():
    over_steps = {"entries": {"cram": {"curves": [{}]}}}
    assert catalogue.drawers("srcd_other", over_steps) == [training.draw, training.details]
    assert catalogue.drawers("srcd_other", {"entries": {"cram": {}}}) == []  # collected before curves were kept
    assert catalogue.drawers("a comparison", {"entries": {"a": {}, "b": {}}}) == [comparison.draw]
    assert catalogue.drawers("kernels_scans", {"entries": {}}) == []


def test_a_band_goes_from_the_lowest_seed_to_the_highest():
    # Given two seeds, of which one has no number at the first step and none has one at the last
    axis = Figure().subplots()
    curves = [{"step": [0, 5, 9], "x": [None, 0.2, None]}, {"step": [0, 5, 9], "x": [0.1, 0.4, None]}]
    training.band(axis, curves, "x", "of x", {"color": "k"})
    training.band(axis, curves, "y", "of y", {"color": "k"})  # in no curve: nothing
    # Then the line is their median and the band holds both, where there are any
    (line,), (shade,) = axis.lines, axis.collections
    assert line.get_xdata().tolist() == [0, 5] and line.get_ydata() == pytest.approx([10, 30])
    assert shade.get_paths()[0].get_extents().extents == pytest.approx([0, 10, 5, 40])


def test_a_moment_names_the_steps_of_all_seeds_that_have_one():
    axis = Figure().subplots()
    runs = [{"seed": seed, "fell": step} for seed, step in enumerate((7, None, 5, 9))]
    training.came(axis, {"runs": runs, "mean": {}}, "fell", "fall", "it fell")
    training.came(axis, {"runs": runs, "mean": {"never": 3}}, "never", "never", "never")
    assert [(line.get_label(), line.get_xdata()[0]) for line in axis.lines] == [("it fell, steps 5 to 9", 7)]
    # A single run may have told its mean alone
    training.came(axis, {"runs": [{"seed": 0}], "mean": {"fell": 4.0}}, "fell", "fall", "it fell")
    assert axis.lines[-1].get_label() == "it fell, step 4"


def test_the_lead_figure_says_how_much_less_attends_than_in_a_dense_transformer(again):
    mean = RESULTS["srcd_paper"]["entries"]["cram"]["mean"]
    _, figure = again["srcd_paper"][0]
    said = [one.get_text() for one in figure.findobj(Text)]
    assert f"{1 / mean['attention_tokens_end']:.0f} times fewer\nthan all" in said
    assert "dense transformer: 100%" in said and "floor" in said and "release" in said and "transition" in said
    assert f"{100 * mean['attention_tokens_end']:.2f}% attend" in figure.get_suptitle()


@pytest.mark.parametrize(("share", "fewer"), [(0.0, False), (1.0, False), (0.0005, True), (0.2, True)])
def test_attention_of_any_size_is_drawn(share, fewer, make):
    # Given a run at whose end nothing attends, or everything; without new bindings there is no floor
    curve = {"step": [0, 50], "held_out/attention_tokens": [1.0, share], "held_out/attention_utilisation": [1.0, share]}
    curve |= {"held_out/realised_new_share": [0.0, 0.0], "step_ms": [None, 5.0]}
    curve |= {f"held_out/{name}": [0.1, 0.9] for name in training.ACCURACY}
    mean = {"attention_tokens_end": share, "attention_utilisation_end": share, "realised_new_share": 0.0}
    found = {"runs": [{"seed": 0}], "mean": mean | dict.fromkeys(training.ACCURACY, 0.9), "curves": [curve]}
    run = {"length": 64, "batch": 4, "final_tokens": 100}
    result = {"question": "?", "config": {"run": run}, "entries": {"cram": found}, "made_by": {"machines": ["a cpu"]}}
    for draw in (training.draw, training.details):
        figure = make(draw, result)
        figure.draw_without_rendering()
        low, high = figure.axes[0].get_ylim()
        assert 0 < low <= 50 * (share or 1) and high > 100
    said = [one.get_text() for one in make(training.draw, result).findobj(Text)]
    assert any("fewer" in text for text in said) == fewer and "floor" not in said
    for name in training.ACCURACY:  # so few tokens that nothing was asked for
        del found["mean"][name]
    assert "answered right" not in make(training.draw, result).get_suptitle()


def test_ablations_stand_in_groups_beside_a_line_for_the_unchanged_run(again):
    result = RESULTS["ablations"]
    _, figure = again["ablations"][0]
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows[:3] == ["unchanged", "CRAM", "consolidation"] and "other settings" not in rows
    assert [row for row in rows if row in comparison.GROUPS] == list(comparison.GROUPS)
    assert len(rows) == len(result["entries"]) + len(comparison.GROUPS) + 1
    for axis, name in zip(figure.axes, comparison.PANELS, strict=True):
        unchanged = 100 * np.mean([run[name] for run in result["entries"]["cram"]["runs"]])
        assert any(np.allclose(line.get_xdata(), unchanged) for line in axis.lines if line.get_ls() == "--")
        # Every seed of every row is there, at its number
        drawn = {round(x, 6) for line in axis.lines if line.get_marker() == "|" for x in line.get_xdata()}
        assert drawn == {round(100 * run[name], 6) for found in result["entries"].values() for run in found["runs"]}


def test_a_setting_finds_its_group():
    assert comparison.group({"cram.routing.features": ["content"]}) == "router inputs"
    assert comparison.group({"cram.routing.audit_gain": 0.0}) == "audits"
    assert comparison.group({"run.steps": 3}) == "other settings"


def test_recall_shows_every_seed_in_the_order_of_the_means(make):
    entries = {
        "a": {"mean": {"accuracy": 0.5, "state_bytes": 2048}, "runs": [{"accuracy": 0.4}, {"accuracy": 0.6}]},
        "b": {"mean": {"accuracy": 0.1, "state_bytes": 1024}, "runs": [{"accuracy": 0.1}]},
    }
    config = {"data": {"pairs": 10, "length": 40}}
    figure = make(recall.models, {"question": "?", "entries": entries, "config": config})
    axis = figure.axes[0]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines if line.get_marker() == "|"]
    assert drawn == [([10.0], [0]), ([40.0, 60.0], [1, 1])]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["b (1024 B)", "a (2048 B)"]


def test_exposure_draws_what_was_measured_and_every_curve(again):
    _, figure = again["exposure"][0]
    for axis, found in zip(figure.axes, RESULTS["exposure"]["data"].values(), strict=True):
        measured, *curves = axis.lines
        assert len(curves) == len(exposure.CURVES) and len(measured.get_xdata()) == len(found["data"]["k"])
        share = 100 * np.divide(found["data"]["episodic"], found["data"]["count"])
        assert np.allclose(measured.get_ydata(), share)


def test_a_change_is_where_its_two_trainings_meet(make):
    before, after = {"changed": 0, "usual": 0.02, "now": None}, {"changed": 1, "usual": 0.03, "now": 0.5}
    steps = [(90, before), (100, before), (100, after), (110, after)]
    column = lambda name: [line[name] for _, line in steps]
    curve = {"step": [step for step, _ in steps], "changed": column("changed")}
    curve |= {"held_out/attention_tokens": column("usual"), "held_out/attention_query_changed": column("now")}
    runs = [{"at": 100, "attention_tokens_before": 0.02}]
    result = {"question": "?", "entries": {"seed 0": {"runs": runs, "curves": [curve]}}}
    config = {"change": {"patterns": 3}, "data": {"patterns": 30}, "run": {"length": 64}}
    for name in change.ACCURACY:
        curve[f"held_out/{name}"] = column("usual")
    right = make(change.draw, result | {"config": config}).axes[1]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in right.lines]
    assert ([0, 10], [50, 50]) in lines and ([-10, 0], [2, 2]) in lines and ([0, 10], [3, 3]) in lines


def test_plasticity_has_a_row_for_each_layer(make):
    layer = {name: np.ones((4, 2, 3)).tolist() for name in ("importance_TxHx3", "learning_rate_TxHx3")}
    layer["window_TxH"] = np.ones((4, 2)).tolist()
    data = {"layers": [layer, layer], "changes_at": 3, "seed": 0, "accuracy": 0.9}
    figure = make(plasticity.draw, {"question": "?", "config": {"model": "palimpsa"}, "data": data})
    assert len(figure.axes) == 6


def test_text_over_training_has_a_panel_more_for_attention(make):
    kinds = {f"attention_{kind}": 0.1 for kind in text.KINDS} | {"attention_tokens": 0.2}
    mean = kinds | {f"bits_per_byte_{n}_gram": 5.0 - n for n in text.ORDERS} | {"bits_per_byte": 1.9}
    runs = [{"length": 64, "text_megabytes": 3.0, "router_released_step": 5}]
    curve = {"step": [0, 9], "held_out/bits_per_byte": [8.0, 1.9], "held_out/attention_tokens": [1.0, 0.2]}
    curve["held_out/attention_utilisation"] = [1.0, 0.1]
    found = {"mean": mean, "runs": runs, "curves": [curve]}
    result = {"question": "?", "config": {}, "entries": {"cram": found}}
    assert len(make(text.one, result).axes) == 3
    del found["curves"]
    assert len(make(text.one, result).axes) == 2


def test_theorem_1_rules_out_what_answers_with_less_attention_than_queries(again):
    _, figure = again["theorems"][0]
    found = RESULTS["theorems"]["data"]["theorem_1"]
    for axis, condition in zip(figure.axes, theorems.CONDITIONS, strict=False):
        drawn = {(x, y) for line in axis.lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}
        runs = [run for label, one in found.items() if label.endswith(condition) for run in one["runs"]]
        assert drawn == {(100 * run["retrieval_accuracy"], 100 * run["attention_tokens"]) for run in runs}
