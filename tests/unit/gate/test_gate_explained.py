"""The pictures of docs/statistics.md are those that its page names, and its figures are the simulation's."""

import re
from pathlib import Path

from controlled_rollout.gate import Gate, judge
from tests.benchmarks.gate.explained.__main__ import PICTURES
from tests.benchmarks.gate.explained.evidence import OUTCOMES, rollout
from tests.benchmarks.gate.explained.panels import Line, Panel, picture

DOCS = Path(__file__).parents[3] / "docs"


def test_page_shows_every_picture_that_is_drawn_and_no_other() -> None:
    shown = re.findall(r"\(statistics-([a-z-]+)\.svg\)", (DOCS / "statistics.md").read_text())

    assert sorted(shown) == sorted(PICTURES)


def test_three_rollouts_of_the_picture_end_as_the_page_says() -> None:
    ends = []
    for cell in OUTCOMES.values():
        bins, baseline = rollout(cell)
        ends.append(judge(bins, Gate(), baseline=baseline).outcome)

    assert ends == ["fail", "pass", "not_enough_evidence"]


def test_value_beyond_a_logarithmic_axis_is_drawn_at_its_end() -> None:
    panel = Panel(
        "evidence", (0, 1), (1, 100), [], [(1.0, "1"), (100.0, "100")], [Line([0, 1], [10, 1e9], "red")], log=True
    )

    drawn = re.search(r'<polyline points="([^"]+)"', picture([panel]))

    assert drawn is not None
    heights = [float(point.split(",")[1]) for point in drawn[1].split()]
    assert heights == [46 + panel.height / 2, 46.0]
