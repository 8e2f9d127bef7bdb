"""The author's metrics in a rollout's report: both versions beside each other, as text and as a picture."""

from datetime import timedelta
from pathlib import Path

import pytest

from controlled_rollout import record
from controlled_rollout.cli import main
from controlled_rollout.gate import Bin, Category, Counts, Gate, Mean, Moments
from controlled_rollout.record.metrics import compared_metrics, most_different_category
from controlled_rollout.record.summary import spans_of, summarize
from controlled_rollout.record.text import text_report
from controlled_rollout.workspace import Workspace
from tests.unit.record_lines import MINUTE, T0, append

GATE = Gate(
    latency_quantiles=(),
    means={"score": Mean(worse="lower", column="predictions.score")},
    categories={"label": Category(column="predictions.label", tolerance=0.1, on_difference="fail")},
)


def data_bins(number: int = 30) -> tuple[Bin, ...]:
    """Control answers eight labels alike, the treatment one of them; bins without values are among them."""

    def counts(requests: int, labels: dict[str, int], mean: float) -> Counts:
        return Counts(requests, 0, (), {"score": Moments(requests, mean, 1.0)}, {"label": labels})

    every = [
        Bin(T0 + minute * MINUTE, counts(80, {f"l{n}": 10 for n in range(8)}, 5.0),
            counts(20, {"l0": 17, "\x1b[2J $x$\n": 3}, 4.0), share=0.2)
        for minute in range(number)
    ]  # fmt: skip
    every[3] = Bin(every[3].start, Counts(80, 0), Counts(0, 0), share=0.2)
    return tuple(every)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace.local(tmp_path)
    for number in (2, 10, 30):
        append(workspace, data_bins()[:number], gate=GATE, thresholds_ms=())
    return workspace


def test_means_and_the_categories_that_differ_most_are_compared() -> None:
    mean, first, *others, rest = compared_metrics(data_bins())
    assert [one.name for one in (mean, first, rest)] == ["score", "label: l0", "label: 4 others"]
    assert [one.treatment for one in (mean, first, rest)] == pytest.approx([4.0, 0.85, 0.0])
    assert [one.control for one in (mean, first, rest)] == pytest.approx([5.0, 0.125, 0.5])
    assert len(others) == 4
    assert most_different_category(data_bins(), "label") == "l0"
    assert most_different_category([], "label") is None


def test_the_data_claims_are_in_the_text_with_their_numbers(workspace: Workspace) -> None:
    text = text_report(summarize(record.read(workspace, "digits")))
    assert "label: l0" in text
    assert "85.00 %" in text
    assert "+72.50 points" in text
    assert "score " in text
    assert "label differs by more than 0.1" in text
    reason = text.rstrip().splitlines()[-1]
    assert reason.startswith("fail: score is lower: e-value")
    assert "(4 against control's 5, difference -1" in reason
    assert "(9 categories, total variation 0.875, 'l0' 85 % against control's 12.5 %)" in reason
    # What callers have written does nothing, and makes no line of its own.
    assert r"label: \x1b[2J $x$\n" in text


def test_spans_have_the_metrics_of_their_bins(workspace: Workspace) -> None:
    (span,) = spans_of(summarize(record.read(workspace, "digits")), most=1)
    assert span.length == timedelta(minutes=30)
    assert span.treatment.categories["label"]["l0"] == 17 * 29
    assert span.control.means["score"].count == 80 * 29
    assert span.control.means["score"].mean == pytest.approx(5.0)


def test_the_picture_has_a_panel_for_each_metric(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "rollout.svg"
    assert main(["report", "digits", "--root", str(workspace.root), "--picture", str(file)]) == 0
    assert b"label, %" in file.read_bytes()
    assert b"score, mean" in file.read_bytes()


def test_a_report_without_metrics_has_no_table_of_them(tmp_path: Path) -> None:
    workspace = Workspace.local(tmp_path)
    append(
        workspace, [Bin(T0, Counts(9, 0), Counts(1, 0), share=0.1)], gate=Gate(latency_quantiles=()), thresholds_ms=()
    )
    assert "metric " not in text_report(summarize(record.read(workspace, "digits")))
