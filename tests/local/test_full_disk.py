"""A local workspace whose disk is full: whoever wants to go back can."""

import errno
import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from controlled_rollout import record, steps
from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.steps import Change
from controlled_rollout.target.local import supervisor_process
from controlled_rollout.target.local.reserve import Reserve
from controlled_rollout.target.local.supervisor_state import SupervisorState
from controlled_rollout.workspace import Workspace
from tests.local.local_target_lab import Lab, running
from tests.small_disk import fill, small_disk

OWNER = "weekly/run-1"
CHANGE = Change(who=f"{OWNER}/task")
TIMEOUT = timedelta(seconds=60)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small disk for the workspace and the configuration of its router, in a short path as sockets need it."""
    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder) / "disk", "48m") as disk:
        temporary = disk / "t"
        temporary.mkdir()
        monkeypatch.setenv("TMPDIR", str(temporary))
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield disk
        monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def lab(disk: Path) -> Iterator[Lab]:
    with running(disk) as lab:
        yield lab


def test_a_supervisor_that_starts_on_a_full_disk_is_found_all_the_same(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        workspace, reserve = Workspace.local(disk), Reserve(disk / "reserve", number=2)
        reserve.fill()
        fill(disk)
        state = SupervisorState(
            pid=1, runtime=disk, socket=disk / "socket", router_url="http://127.0.0.1:8088", telemetry_url="",
            telemetry_workspace_id=None, telemetry_token_file=disk / "token", envoy_admin=disk / "admin",
        )  # fmt: skip
        with pytest.raises(OSError, match="No space left"):
            state.write(workspace)

        state.write(workspace, reserve)

        assert SupervisorState.read(workspace) == state


@pytest.mark.parametrize("is_named", [True, False])
def test_a_start_that_finds_no_space_says_so_in_a_sentence(
    is_named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(spools: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([str(spools)] if is_named else []))

    monkeypatch.setattr(supervisor_process, "end_spools", full)
    reports: list[supervisor_process.StartReport] = []

    code = supervisor_process.run_supervisor(
        Workspace.local(tmp_path), port=0, host="127.0.0.1", report=reports.append, credentials={}
    )

    assert (code, [report["goes_on"] for report in reports]) == (1, [False])
    where = tmp_path / "spools" if is_named else f"{tmp_path} or {tempfile.gettempdir()}"
    expected = f"did not start: No space left on device in {where}: free disk space there, and start it again"
    assert expected in reports[0]["message"]


async def status_of_answer(url: str, key: str) -> int:
    async with httpx.AsyncClient(timeout=30) as caller:
        answer = await caller.post(url, json={}, headers={"Authorization": f"Bearer {key}"})
    return answer.status_code


async def test_a_treatment_is_rolled_back_and_retired_and_a_key_revoked_on_a_full_disk(lab: Lab, disk: Path) -> None:
    messages: list[str] = []
    for version in ("old", "new"):
        await steps.deploy(
            lab.workspace, "digits", version, image=await lab.image(version), owner=OWNER, change=CHANGE,
            progress=messages.append,
        )  # fmt: skip
    await steps.shift(lab.workspace, "digits", "new", percentile=50, change=CHANGE, progress=messages.append)
    url, revoked = await lab.url("digits"), (await lab.target.keys("digits")).primary
    ballast = fill(disk)

    with pytest.raises(TargetUnavailableError, match="No space left"):
        await lab.apply((await lab.target.endpoint("digits")).shift("new", 60))
    await steps.roll_back(
        lab.workspace, "digits", "new", change=CHANGE, owner=OWNER, timeout=TIMEOUT, progress=messages.append
    )
    assert (await lab.target.status("digits")).weight_ppm == {"old": 1_000_000}
    fill(disk)  # what the files of the reserve did not need
    key = (await lab.target.regenerate_key("digits", "primary")).primary
    assert (await status_of_answer(url, revoked), await status_of_answer(url, key)) == (401, 200)
    fill(disk)
    await steps.retire(lab.workspace, "digits", "new", change=CHANGE, timeout=TIMEOUT, progress=messages.append)

    assert list((await lab.target.endpoint("digits")).versions) == ["old"]
    ballast.unlink()
    await steps.deploy(
        lab.workspace, "digits", "next", image=await lab.image("new"), owner=OWNER, change=CHANGE,
        progress=messages.append,
    )  # fmt: skip
    lines = [(line.step, line.version) for line in record.read(lab.workspace, "digits")]
    assert lines[-3:] == [("roll_back", "new"), ("retire", "new"), ("deploy", "next")]
