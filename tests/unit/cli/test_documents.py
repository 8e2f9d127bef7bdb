"""What commands print for programs where they store, write or delete something: one document, and nothing beside it."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.cli import main
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import RecordUnavailableError, ScanError
from controlled_rollout.evidence.collected import joined_rows, row_files
from controlled_rollout.image import scan
from controlled_rollout.image.scan import ScanDecision, Severity, Vulnerability
from controlled_rollout.target.local import client
from controlled_rollout.target.local.process_status import ProcessStatus
from controlled_rollout.view.followed_record import FollowedLine, FollowedRecord
from tests.unit.steps.memory_target import MemoryTarget

IMAGE = f"models/digits@sha256:{'0' * 64}"


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> MemoryTarget:
    """The target of every workspace."""
    memory = MemoryTarget()
    monkeypatch.setattr("controlled_rollout.target.connect.connect", memory.open)
    return memory


def document(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    """Run a command with `--output json`; return the document, which has to be all that is on stdout."""
    assert main([*arguments, "--output", "json"]) == code
    return json.loads(capsys.readouterr().out)


async def stored(target: MemoryTarget, name: str = "digits") -> None:
    from controlled_rollout.target.protocol import Change

    first = Endpoint(name=name).create_version("v1a", is_control=True, image=IMAGE).create_version("v2a", image=IMAGE)
    held = first.claim("v2a", owner="weekly/run-1", at=datetime.now(UTC))
    await target.apply(held, Change(who="setup"))


def test_a_deletion_says_whether_there_was_an_endpoint_and_which_rollout_it_has_ended(
    target: MemoryTarget, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    asyncio.run(stored(target))
    delete = ["delete", "digits", "--yes", "--root", str(tmp_path), "--output", "json"]

    assert main(delete) == 0
    first = capsys.readouterr()
    assert json.loads(first.out) == {
        "endpoint": "digits",
        "deleted": True,
        "ended_rollout": {"version": "v2a", "owner": "weekly/run-1"},
    }
    assert first.err == "warning: this ends the rollout of 'v2a' by weekly/run-1\n"
    assert main(delete) == 0
    assert json.loads(capsys.readouterr().out) == {"endpoint": "digits", "deleted": False, "ended_rollout": None}


def test_a_stored_secret_is_named_and_its_value_is_not_repeated(
    target: MemoryTarget, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("hunter2\n"))

    shown = document(capsys, "secret", "store", "token", "--root", str(tmp_path))

    assert shown == {"secret": "store", "key": "token"}
    assert target.secrets == {"store": {"token": "hunter2"}}


def test_written_data_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(joined_rows, "read_collected", lambda *_, **__: nullcontext())
    monkeypatch.setattr(row_files, "write_rows", lambda rows, file: 1234)
    file = str(tmp_path / "rows.csv")

    shown = document(capsys, "data", "digits", "v1a", "--file", file, "--root", str(tmp_path))

    assert shown == {"file": file, "rows": 1234}


@pytest.mark.parametrize("passes", [True, False])
def test_a_scan_gives_its_findings_also_where_they_block_the_image(
    passes: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Vulnerability(
        "CVE-2026-1", "numpy", "2.0", Severity.HIGH, ("2.1",), frozenset({"GHSA-1"}), source="grype, pip-audit"
    )
    decision = ScanDecision(() if passes else (found,), (found,) if passes else (), {}, n_accepted=int(passes))

    async def scan_image(*_: Any, on_decision: Any, progress: Any, **__: Any) -> ScanDecision:
        progress("scan: 1 high")
        on_decision(decision)
        if not passes:
            raise ScanError("must not be rolled out")
        return decision

    monkeypatch.setattr(scan, "scan_image", scan_image)

    shown = document(capsys, "scan", IMAGE, "--root", str(tmp_path), code=0 if passes else 1)

    listed = shown["passing" if passes else "blocking"]
    assert (shown["image"], shown["passes"], shown["accepted"], shown["not_scanned"]) == (
        IMAGE,
        passes,
        int(passes),
        {},
    )
    assert listed == [
        {
            "id": "CVE-2026-1", "severity": "high", "package": "numpy", "version": "2.0", "fixed_in": ["2.1"],
            "aliases": ["GHSA-1"], "source": "grype, pip-audit",
        }
    ]  # fmt: skip


def test_the_status_of_the_local_workspace_has_its_endpoints_and_processes(
    target: MemoryTarget, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    async def process_statuses() -> list[ProcessStatus]:
        return [ProcessStatus(name="router", pid=7), ProcessStatus(name="collector", pid=None, problem="not running")]

    asyncio.run(stored(target))
    monkeypatch.setattr(target, "process_statuses", process_statuses, raising=False)
    monkeypatch.setattr(client.LocalTarget, "open", target.open)

    shown = document(capsys, "local", "status", "--root", str(tmp_path))

    assert [each["endpoint"]["name"] for each in shown["endpoints"]] == ["digits"]
    assert shown["processes"] == [
        {"name": "router", "pid": 7, "problem": None},
        {"name": "collector", "pid": None, "problem": "not running"},
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_the_records_of_all_endpoints_are_read_at_once_and_one_that_cannot_be_read_is_a_warning(
    fails: bool,
    target: MemoryTarget,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import asyncio

    names = ["aaa", "bbb", "ccc", "ddd"]
    for name in names:
        asyncio.run(stored(target, name))
    # Passed only by as many readers as there are endpoints, together.
    together = threading.Barrier(len(names))

    def read(_: FollowedRecord) -> Iterator[FollowedLine]:
        together.wait(5)
        if fails:
            raise RecordUnavailableError("the record in the share does not answer within 15 s")
        yield from ()

    monkeypatch.setattr(FollowedRecord, "new_lines", read)

    shown = document(capsys, "status", "--root", str(tmp_path))
    assert main(["status", "--root", str(tmp_path)]) == 0

    warning = "what its rollout waits for is not known: the record in the share does not answer within 15 s"
    assert [endpoint["name"] for endpoint in shown] == names
    assert [warning in endpoint["warnings"] for endpoint in shown] == [fails] * len(names)
    assert capsys.readouterr().out.count(f"warning: {warning}\n") == fails * len(names)
