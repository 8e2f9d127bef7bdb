import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.record import Decision
from scripts.demo.airflow import TaskState
from scripts.demo.load_report import LoadReport, VersionReport
from scripts.demo.view import Preparation, Snapshot, StepRow, View, draw, folded

AT = datetime(2026, 1, 5, tzinfo=UTC)
CLAIM = {"e_value": 1.0, "threshold": 2000.0, "reached": False, "needed_requests": None, "detail": ""}
CLAIMS = [
    {**CLAIM, "name": "errors are higher", "kind": "alarm", "e_value": 3.25},
    {**CLAIM, "name": "split is wrong", "kind": "split"},
    {**CLAIM, "name": "errors are not worse", "kind": "pass", "threshold": 20.0, "needed_requests": 1412},
    {
        **CLAIM,
        "name": "latency is not worse",
        "kind": "pass",
        "threshold": 20.0,
        "e_value": "Infinity",
        "reached": True,
    },
]


def look(outcome: str, claims: list[dict[str, Any]], reason: str = "") -> Decision:
    verdict = {"claims": claims, "treatment_requests": 250, "control_requests": 2250}
    return Decision(
        time=AT,
        endpoint="digits",
        version="second",
        step="look",
        who="run",
        outcome=outcome,
        verdict=verdict,
        reason=reason,
    )


SNAPSHOT = Snapshot(
    elapsed_s=33.4,
    title="demo",
    preparations=(Preparation("Airflow", 14.2), Preparation("control serves")),
    tasks=(
        TaskState("train", "success", AT, AT + timedelta(seconds=2.4)),
        TaskState("rollout.gate_10", "deferred"),
        TaskState("rollout.promote", None),
    ),
    endpoint=Endpoint(name="digits")
    .create_version("first", is_control=True)
    .create_version("second", traffic_percentile=10),
    report=LoadReport(
        started=0,
        written=1,
        seconds=1,
        rate=100,
        versions={
            "first": VersionReport(requests=2250, recent_requests=452, recent_p50_ms=3.1, recent_p95_ms=6.2),
            "second": VersionReport(requests=250, failures={"status 500": 12}, recent_requests=48),
        },
    ),
    look=look("not_enough_evidence", CLAIMS),
)


def drawn(snapshot: Snapshot, *, width: int = 150, height: int = 40) -> str:
    console = Console(width=width, height=height, file=io.StringIO(), record=True)
    console.print(draw(snapshot, console))
    return console.export_text()


def lines(*snapshots: Snapshot) -> list[list[str]]:
    """Return the lines that each snapshot adds where there is no terminal."""
    outputs = []
    output = io.StringIO()
    with View(Console(file=output, width=80)) as view:
        for snapshot in snapshots:
            view.show(snapshot)
            outputs.append([line.split("] ", 1)[1] for line in output.getvalue().splitlines()])
            output.seek(0)
            output.truncate()
    return outputs


def test_the_view_shows_steps_traffic_and_the_gates_numbers() -> None:
    text = drawn(SNAPSHOT)

    for part in (
        "✓ Airflow",
        "14.2 s",
        "● control serves",
        "✓ train",
        "2.4 s",
        "● gate_10",
        "waits (deferred)",
    ):
        assert part in text
    row = next(line for line in text.splitlines() if " treatment " in line and "10 %" in line)
    for part in ("second", "10 %", "9.6 %", "250", "12"):
        assert part in row
    assert "not enough evidence" in text
    claim = next(line for line in text.splitlines() if "errors are not worse" in line)
    for part in ("1.00", "20.00", "1,412 requests"):
        assert part in claim
    assert "infinite" in next(line for line in text.splitlines() if "latency is not worse" in line)


def test_view_of_a_gate_without_evidence_shows_the_reason() -> None:
    text = drawn(replace(SNAPSHOT, look=look("cannot_see", [], "the store does not answer"), notice="store is stopped"))

    assert "cannot see" in text
    assert "the store does not answer" in text
    assert "store is stopped" in text


def test_a_gate_that_does_not_pass_with_all_claims_reached_says_what_keeps_it() -> None:
    held = replace(SNAPSHOT, look=look("not_enough_evidence", CLAIMS[-1:], "control's p90 says nothing any more"))

    assert "control's p90 says nothing any more" in drawn(held)
    assert [line for line in lines(held)[0] if line.endswith("; control's p90 says nothing any more")]


def test_the_view_says_once_that_it_is_rolled_out_anew_and_prints_the_steps_again() -> None:
    anew = replace(SNAPSHOT, anew="rolled out anew, once")

    assert "rolled out anew, once" in drawn(anew)
    first, second, third = lines(SNAPSHOT, anew, anew)
    assert second[0] == "demo: rolled out anew, once"
    assert set(second[1:]) <= set(first)
    assert third == []


def test_deleted_version_keeps_its_counts() -> None:
    assert SNAPSHOT.endpoint is not None
    text = drawn(replace(SNAPSHOT, endpoint=SNAPSHOT.endpoint.delete_version("second")))

    assert "gone" in next(line for line in text.splitlines() if "second" in line)


def test_view_is_drawn_without_data() -> None:
    assert "no look yet" in drawn(Snapshot(0.0, "demo"))


def test_without_a_terminal_each_change_is_printed_once() -> None:
    changed = replace(
        SNAPSHOT, elapsed_s=34.0, tasks=(*SNAPSHOT.tasks[:2], TaskState("rollout.promote", "running", AT))
    )

    first, again, then = lines(SNAPSHOT, replace(SNAPSHOT, elapsed_s=33.9), changed)

    assert "Airflow: ready after 14.2 s" in first
    assert "train: done in 2.4 s" in first
    assert "rollout.gate_10: waits (deferred)" in first
    assert "traffic: first 90 %, second 10 %" in first
    assert [line for line in first if line.startswith("gate: not enough evidence: errors are higher 3.25 of 2,000,")]
    assert [line for line in first if "errors are not worse 1.00 of 20.00 (1,412 requests needed)" in line]
    assert "requests: first 2,250 (0 failed, p95 6.2 ms); second 250 (12 failed, p95 -)" in first
    assert again == []
    assert then == ["rollout.promote: running"]


def test_a_number_of_requests_that_is_not_known_is_said_so() -> None:
    unknown = replace(SNAPSHOT, look=look("not_enough_evidence", [{**CLAIMS[-2], "needed_requests": None}]))

    assert [line for line in lines(unknown)[0] if "errors are not worse 1.00 of 20.00 (requests not known)" in line]


def test_every_line_has_the_time_in_front() -> None:
    output = io.StringIO()
    with View(Console(file=output, width=40)) as view:
        view.show(SNAPSHOT)

    assert all(line.startswith("[  33.4 s] ") for line in output.getvalue().splitlines())


LONG_NAME = "v20260105t060000-1f0c9ab3"
TASKS = ("retrain", "build", "check", "scan", "roll_out", "shift_to_10", "gate_10", "shift_to_50", "gate_50", "promote")


def test_small_terminal_shows_gate_versions_and_the_present_step() -> None:
    endpoint = Endpoint(name="digits").create_version("first", is_control=True).create_version(LONG_NAME)
    assert SNAPSHOT.report is not None
    versions = {"first": SNAPSHOT.report.versions["first"], LONG_NAME: SNAPSHOT.report.versions["second"]}
    snapshot = replace(
        SNAPSHOT,
        preparations=tuple(Preparation(f"part {number}", 1.0) for number in range(5)),
        tasks=tuple(
            TaskState(name, "success" if number < 6 else "deferred" if number == 6 else None, AT, AT)
            for number, name in enumerate(TASKS)
        ),
        endpoint=endpoint,
        report=SNAPSHOT.report.model_copy(update={"versions": versions}),
    )

    lines = drawn(snapshot, width=80, height=24).splitlines()

    assert len(lines) <= 24
    text = "\n".join(lines)
    treatment = next(line for line in lines if "treatment  " in line)
    assert "v2026" in treatment
    assert "250" in treatment
    for part in ("not enough evidence", "latency is not worse", "● gate_10", "steps", "done"):
        assert part in text


def test_versions_have_no_role_before_the_endpoint_is_known() -> None:
    text = drawn(replace(SNAPSHOT, endpoint=None))

    assert "gone" not in text
    assert "2,250" in text


def rows(done: int, running: int, to_come: int) -> list[StepRow]:
    signs = "✓" * done + "●" * running + "·" * to_come
    return [StepRow(sign, f"step {number}", "", "") for number, sign in enumerate(signs)]


def test_steps_that_fit_are_not_folded() -> None:
    steps = rows(3, 1, 2)

    assert folded(steps, 6) == steps


@pytest.mark.parametrize("max_rows", [3, 4, 5, 8, 11])
def test_folded_steps_fit_and_keep_what_runs(max_rows: int) -> None:
    steps = folded(rows(6, 1, 5), max_rows)

    assert len(steps) <= max_rows
    assert [row.name for row in steps if row.sign == "●"] == ["step 6"]


def test_folded_rows_tell_how_many_steps_they_stand_for() -> None:
    first, *_, last = folded(rows(6, 1, 5), 3)

    assert (first.name, first.state) == ("6 steps", "done")
    assert (last.name, last.state) == ("5 steps", "to come")
