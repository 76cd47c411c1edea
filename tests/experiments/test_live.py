import numpy as np
from lib import live
from rich.console import Console


def test_a_curve_falls_from_its_highest_bar():
    assert live.bars(np.array([4.0, 2.0, 0.0]), visits=3) == "█▅▁"


def test_a_curve_has_as_many_bars_as_visits_were_read():
    shares = np.ones(30)
    assert len(live.bars(shares, visits=60)) == live.WIDTH // 2
    assert len(live.bars(shares, visits=30)) == live.WIDTH
    assert live.bars(np.zeros(30), visits=30) == "▁" * live.WIDTH  # nothing attended, and nothing is divided by 0


def test_the_numbers_are_of_the_last_visits_alone():
    # Given two streams that attended at every token for 5 visits and at half of them for 10
    attended = np.repeat([[8, 8], [4, 4]], [5, 10], axis=0)
    counts = {"attended": attended, "least": attended // 4, "right": attended, "queries": attended}
    console = Console(width=120, record=True)
    console.print(live.table("title", counts, length=8, visits=15))
    rows = [line for line in console.export_text().splitlines() if "█" in line]
    assert len(rows) == 2
    for row in rows:
        assert "50.0%" in row and "12.5%" in row and "100.0%" in row
