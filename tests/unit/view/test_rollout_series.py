"""The charts of a rollout from its record: the same whether it is read at once or line by line, bounded, and robust."""

import json
import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout import record
from controlled_rollout.gate import Gate, Mean
from controlled_rollout.record import Decision, storage, storage_of
from controlled_rollout.record.file_storage import FilePart
from controlled_rollout.view import rollout_series
from controlled_rollout.view.comparison import POINTS, comparison
from controlled_rollout.view.followed_record import FollowedLine, FollowedRecord
from controlled_rollout.view.models import Comparison
from controlled_rollout.view.rollout_series import RolloutSeries
from controlled_rollout.workspace import Workspace
from tests.unit.record_lines import GATE, MINUTE, T0, append, bins


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.local(tmp_path)


def charts(followed: FollowedRecord, series: RolloutSeries) -> Comparison:
    for line in followed.new_lines():
        series.add(line)
    found = comparison(series)
    assert found is not None
    return found


def read_anew(workspace: Workspace) -> Comparison:
    return charts(FollowedRecord(storage_of(workspace, "digits")), RolloutSeries())


def step(workspace: Workspace, name: Any, minute: int, share: float) -> None:
    decision = Decision(
        time=T0 + minute * MINUTE,
        endpoint="digits",
        version="v2a",
        step=name,
        who="weekly/run-1/x",
        share=share,
        revision=1,
    )
    record.append(workspace, decision)


def test_charts_have_the_counts_the_claims_the_steps_and_the_verdict(workspace: Workspace) -> None:
    step(workspace, "shift", 0, 10.0)
    made = bins(40, treatment_errors=0.4)
    for number in (10, 40):
        append(workspace, made[:number])
    step(workspace, "roll_back", 44, 0.0)

    found = read_anew(workspace)
    assert (found.treatment, found.control, found.end, found.look_count) == ("v2a", "v1a", "rolled back", 2)
    assert sum(found.treatment_counts.requests) == 400
    assert len(found.quantiles) == len(found.treatment_counts.slower) == 2
    assert found.times[0] == T0.timestamp()
    assert set(found.shares) == {10.0}
    [errors] = [claim for claim in found.claims if claim.name.startswith("errors are higher")]
    assert errors.reached
    assert len(errors.e_values) == len(found.look_times) == 2
    assert [mark.label for mark in found.marks] == ["10 %", "roll back"]
    assert found.marks[0].run is not None
    assert found.verdict is not None
    assert found.verdict.sentence == "v2a is worse than v1a: it is rolled back."
    assert [look.outcome for look in found.looks][0] == "fail"  # noqa: RUF015 - the list is what is shown
    # Infinity is no JSON.
    json.loads(found.model_dump_json(), parse_constant=pytest.fail)


def test_what_is_appended_later_is_all_that_is_read_and_gives_the_same_charts(workspace: Workspace) -> None:
    followed, series = FollowedRecord(storage_of(workspace, "digits")), RolloutSeries()
    made = bins(30)
    for number in range(1, 31):
        append(workspace, made[:number])
        found = charts(followed, series)
    assert list(followed.new_lines()) == []
    assert found == read_anew(workspace)
    assert sum(found.treatment_counts.requests) == 300


def test_a_rollout_of_many_looks_and_full_parts_is_a_chart_of_few_points(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MAX_PART_BYTES", 100_000)
    monkeypatch.setattr(storage, "LONGEST_PIECE", 4_000)
    monkeypatch.setattr(rollout_series, "LOOKS", 5)
    made = bins(120)
    for number in range(1, 121):
        append(workspace, made[:number])
    assert len(storage_of(workspace, "digits").parts()) > 2
    lines = list(FollowedRecord(storage_of(workspace, "digits")).new_lines())
    assert max(len(line.content) for line in lines) <= 4_000 < max(len(b"".join(line.pieces())) for line in lines)

    found = read_anew(workspace)
    assert found.look_count == 120
    assert len(found.look_times) <= 11
    assert sum(found.treatment_counts.requests) == 1_200
    assert found.look_times[-1] == found.looks[0].time.timestamp()
    assert len(found.times) <= POINTS


def test_a_line_that_a_crash_cut_short_is_left_out_and_one_being_written_is_read_later(workspace: Workspace) -> None:
    made = bins(20)
    append(workspace, made[:10])
    file = Path(storage_of(workspace, "digits").name)
    followed, series = FollowedRecord(storage_of(workspace, "digits")), RolloutSeries()
    before = charts(followed, series)
    with file.open("ab") as open_file:
        open_file.write(b'{"step":"look","time"')
    assert list(followed.new_lines()) == []
    with file.open("ab") as open_file:
        open_file.write(b"\n")
    assert charts(followed, series) == before
    for damaged in (b"", b"[]", b'{"step":"look"}', b'{"step":"look","add":[' + b"1" * 300_000):
        series.add(FollowedLine(damaged, False))
    series.add(FollowedLine(b'{"step":"look","add":[', False, (zlib.compress(b"1" * 300_000),)))
    assert comparison(series) == before


@pytest.mark.parametrize("length", [1, 10, 1_000])
def test_a_long_line_is_the_same_look_wherever_it_is_cut_into_pieces(workspace: Workspace, length: int) -> None:
    append(workspace, bins(20))
    [line] = FollowedRecord(storage_of(workspace, "digits")).new_lines()
    # The first piece of a line says that it is a look.
    begin = line.content.index(b'"bins"')
    rest = [line.content[at : at + length] for at in range(begin, len(line.content), length)]
    series = RolloutSeries()
    series.add(FollowedLine(line.content[:begin], False, tuple(map(zlib.compress, rest))))
    assert comparison(series) == read_anew(workspace)


def test_a_storage_that_gives_a_long_line_in_one_piece_gives_the_same_charts(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(workspace, bins(20))
    expected = read_anew(workspace)
    monkeypatch.setattr(storage, "LONGEST_PIECE", 500)
    monkeypatch.setattr(FilePart, "pieces_from", lambda part, offset: [part.path.read_bytes()[offset:]])
    [line] = FollowedRecord(storage_of(workspace, "digits")).new_lines()
    assert len(line.content) == 500
    assert read_anew(workspace) == expected


def test_the_newest_rollout_is_shown_and_the_claims_about_data_are_told_apart(workspace: Workspace) -> None:
    made = bins(10)
    append(workspace, made, version="v2a")
    append(
        workspace,
        made,
        version="v3a",
        gate=Gate(latency_quantiles=GATE.latency_quantiles, means={"score": Mean(worse="lower")}),
    )

    found = read_anew(workspace)
    assert (found.treatment, found.look_count) == ("v3a", 1)
    assert not any(claim.about_data for claim in found.claims if claim.name.startswith("errors"))


def test_without_a_look_that_could_see_there_are_no_charts(workspace: Workspace) -> None:
    step(workspace, "shift", 0, 10.0)
    series = RolloutSeries()
    for line in FollowedRecord(storage_of(workspace, "digits")).new_lines():
        series.add(line)
    assert comparison(series) is None


def test_only_the_end_of_a_record_is_read_where_that_is_enough(workspace: Workspace) -> None:
    made = bins(30)
    for number in range(1, 31):
        append(workspace, made[:number])
    size = Path(storage_of(workspace, "digits").name).stat().st_size
    followed = FollowedRecord(storage_of(workspace, "digits"), size // 3)
    lines = list(followed.new_lines())
    assert 0 < len(lines) < 15
    newest = Decision.model_validate_json(lines[-1].content)
    assert newest.time == T0 + 30 * MINUTE + timedelta(minutes=3)
