"""The supervisor's checks whether somebody looks after rollouts go on, whatever happens to one of them."""

import errno
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.rollout import OnSilence
from controlled_rollout.target import silence
from controlled_rollout.target.local import silence_watch
from controlled_rollout.target.local.child_process import ChildProcess
from controlled_rollout.target.local.revisions import RevisionStore
from controlled_rollout.target.local.silence_watch import SilenceWatch
from controlled_rollout.target.protocol import Change, Revision
from controlled_rollout.workspace import Workspace
from tests.polling import until

Answer = TypeVar("Answer")


class Unlisted(RevisionStore):
    """Revisions whose folder cannot be listed."""

    asked = 0

    def endpoints(self) -> list[str]:
        self.asked += 1
        raise OSError(errno.EMFILE, "too many open files")


async def test_a_folder_that_cannot_be_listed_ends_neither_the_checks_nor_the_supervisors_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence_watch, "INTERVAL_S", 0.01)
    revisions = Unlisted(tmp_path)
    watch = SilenceWatch(Workspace.local(tmp_path), revisions, runtime=tmp_path, credentials={})
    watch.start()

    await until(lambda: revisions.asked > 2, "it checks again and again", timeout_s=60)
    [sentence] = watch.warnings("digits")
    assert "cannot be checked" in sentence and "too many open files" in sentence
    await watch.stop()


class Canary(RevisionStore):
    """One endpoint whose treatment has traffic, and that nobody has looked at for a day."""

    def endpoints(self) -> list[str]:
        return ["digits"]

    def exists(self, name: str) -> bool:
        return False

    def newest(self, name: str) -> Revision:
        endpoint = Endpoint(name=name).create_version("v1a", is_control=True)
        endpoint = endpoint.claim("v2a", owner="dag/run", at=self.shifted, on_silence=OnSilence.ROLL_BACK)
        endpoint = endpoint.create_version("v2a", traffic_percentile=10)
        return Revision(number=self.number, endpoint=endpoint, change=Change(who="dag/run/shift"), created=self.shifted)

    number = 2
    shifted = datetime.now(UTC) - timedelta(days=1)


class Failing(Canary):
    """The same endpoint, in a supervisor with a fault: its endpoints cannot be listed, or its revision not be read."""

    fails: str | None = None
    asked = 0

    def endpoints(self) -> list[str]:
        return self._answer("list", super().endpoints())

    def newest(self, name: str) -> Revision:
        return self._answer("read", super().newest(name))

    def _answer(self, what: str, answer: Answer) -> Answer:
        if self.fails == what:
            self.asked += 1
            raise RuntimeError(f"no idea how to {what}")
        return answer


@pytest.mark.parametrize("fault", ["list", "read"])
async def test_a_fault_nobody_has_foreseen_ends_no_checks_and_is_in_the_log_once_and_in_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    monkeypatch.setattr(silence_watch, "INTERVAL_S", 0.01)
    revisions = Failing(tmp_path)
    revisions.fails = fault
    watch = SilenceWatch(Workspace.local(tmp_path), revisions, runtime=tmp_path, credentials={})
    watch.start()

    await until(lambda: revisions.asked > 2, "it checks again and again", timeout_s=60)
    [sentence] = watch.warnings("digits")
    assert f"a treatment that nobody looks at keeps its traffic: no idea how to {fault} (look into" in sentence
    [line] = [line for line in caplog.records if "cannot be checked" in line.message]
    assert line.exc_info is not None, "with where it was found"
    revisions.fails = None
    await until(lambda: not watch.warnings("digits"), "it checks, and status has nothing to say", timeout_s=60)
    assert watch._checks.names == ["digits"]
    await watch.stop()


async def test_a_supervisor_that_takes_over_goes_on_where_the_one_before_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence_watch, "INTERVAL_S", 0.01)
    file = tmp_path / silence_watch.WATCHED_FILE
    sinces = []
    for damaged in (False, False, True):
        if damaged:
            file.write_text("{")
        watch = SilenceWatch(Workspace.local(tmp_path), Canary(tmp_path), runtime=tmp_path, credentials={})
        begun = datetime.now(UTC)
        watch.start()
        await until(lambda: bool(watch._checks.names), "it has checked", timeout_s=60)  # noqa: B023 - awaited here
        await until(lambda: file.exists() and file.read_text() != "{", "it is written down", timeout_s=60)
        await watch.stop()
        since = watch._checks.watched_since
        assert since is not None
        sinces.append((since, begun))
    assert sinces[0][0] >= sinces[0][1]
    assert sinces[1][0] < sinces[1][1], "another one has watched until a moment ago"
    assert sinces[2][0] >= sinces[2][1]


async def test_a_take_back_whose_process_fails_as_nobody_has_foreseen_waits_for_its_next_try_and_status_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(*_: object, **__: object) -> None:
        raise RuntimeError("no loop")

    monkeypatch.setattr(silence_watch, "INTERVAL_S", 0.01)
    monkeypatch.setattr(silence, "GRACE", timedelta(0))
    monkeypatch.setattr(ChildProcess, "start", start)
    watch = SilenceWatch(Workspace.local(tmp_path), Canary(tmp_path), runtime=tmp_path, credentials={})
    watch.start()
    await until(lambda: bool(watch.warnings("digits")), "a try has failed", timeout_s=60)
    [sentence] = watch.warnings("digits")
    assert "taking it back has failed once" in sentence and "no loop" in sentence
    await watch.stop()


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("echo 'endpoint digits: the record is damaged'; exit 1", "the record is damaged (look into "),
        ("kill -9 $$", "its process was ended by SIGKILL (look into "),
        ("echo 'ZeroDivisionError: division by zero'; exit 1", "its process exited with code 1 (look into "),
    ],
    ids=["it says why", "it is killed", "it crashes"],
)
async def test_a_take_back_that_fails_is_tried_ever_more_rarely_and_status_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, problem: str
) -> None:
    monkeypatch.setattr(silence_watch, "INTERVAL_S", 0.01)
    monkeypatch.setattr(silence, "GRACE", timedelta(0))
    monkeypatch.setattr(silence, "FIRST_PAUSE", timedelta(seconds=0.01))
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    # As on a full disk: the reason is known although no log takes it.
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "silence.log").mkdir()
    watch = SilenceWatch(Workspace.local(tmp_path), Canary(tmp_path), runtime=tmp_path, credentials={})
    assert watch.warnings("digits") == ()
    watch.start()

    def has_failed_twice() -> bool:
        return any("taking it back has failed 2 times" in sentence for sentence in watch.warnings("digits"))

    await until(has_failed_twice, "two tries have failed", timeout_s=60)
    [sentence] = watch.warnings("digits")
    assert sentence.startswith("version 'v2a' keeps its traffic although nobody looked since ")
    assert problem in sentence
    monkeypatch.setattr(Canary, "shifted", datetime.now(UTC))
    monkeypatch.setattr(Canary, "number", 3)
    await until(lambda: not watch.warnings("digits"), "somebody is there, and it is not said any more", timeout_s=60)
    await watch.stop()
