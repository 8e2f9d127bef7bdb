import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.record import Decision
from scripts.demo.airflow import TaskState
from scripts.demo.load_report import LoadReport, VersionReport
from scripts.demo.view import Preparation, Snapshot, View, draw

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


def look(outcome: str, claims: list[dict[str, Any]], why: str = "") -> Decision:
    verdict = {"claims": claims, "treatment_requests": 250, "control_requests": 2250}
    return Decision(
        time=AT, endpoint="digits", version="second", step="look", who="run", outcome=outcome, verdict=verdict, why=why
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


def drawn(snapshot: Snapshot) -> str:
    console = Console(width=150, file=io.StringIO(), record=True)
    console.print(draw(snapshot, width=150))
    return console.export_text()


def lines(*snapshots: Snapshot) -> list[list[str]]:
    """Return the lines that each snapshot adds where there is no terminal."""
    said = []
    output = io.StringIO()
    with View(Console(file=output, width=80)) as view:
        for snapshot in snapshots:
            view.show(snapshot)
            said.append([line.split("] ", 1)[1] for line in output.getvalue().splitlines()])
            output.seek(0)
            output.truncate()
    return said


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


def test_every_line_has_the_time_in_front() -> None:
    output = io.StringIO()
    with View(Console(file=output, width=40)) as view:
        view.show(SNAPSHOT)

    assert all(line.startswith("[  33.4 s] ") for line in output.getvalue().splitlines())
