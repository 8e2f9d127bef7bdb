"""Waiting for a version or a revision: what ends it, its progress messages, and outages of the target."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any, cast

import pytest

from controlled_rollout.errors import AccessError, DeploymentError, EndpointNotFoundError, TargetUnavailableError
from controlled_rollout.target import waiting
from controlled_rollout.target.protocol import EndpointStatus, ReplicaState, ReplicaStatus, Target, VersionStatus
from controlled_rollout.target.waiting import (
    retry_until_available,
    wait_until_ready,
    wait_until_served,
    wait_until_without_traffic,
)

SOON = timedelta(seconds=0.2)
LATE = timedelta(seconds=30)
AWAY = TargetUnavailableError("the API server is away")
REFUSED = AccessError("not allowed")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "RETRY_S", 0.01)


def starting(name: str = "one", **more: Any) -> VersionStatus:
    return VersionStatus(
        name=name, ready=False, replicas=(ReplicaStatus(name="r", state=ReplicaState.STARTING),), **more
    )


READY = VersionStatus(name="one", ready=True)
FAILED = starting(failed=True, cause="replica one-1 exited with code 1", log_tail="no weights found")


def status(
    *versions: VersionStatus, served: int = 1, revision: int = 2, trouble: str | None = None, **split: Any
) -> EndpointStatus:
    return EndpointStatus(
        name="digits",
        url="",
        revision=revision,
        served_revision=served,
        versions={version.name: version for version in versions},
        trouble=trouble,
        **split,
    )


class ScriptedTarget:
    """A target whose watches yield scripted states; the last one stays, an error ends a watch."""

    def __init__(
        self, *script: EndpointStatus | Exception, leisure: EndpointStatus | None = None, log: str | Exception = ""
    ) -> None:
        self.log = log
        self.watches = 0
        self.open = 0
        self._script = list(script)
        self._leisure = leisure

    async def watch(self, name: str, *, reconcile: bool = False) -> AsyncGenerator[EndpointStatus]:
        assert reconcile, "the waiting caller reconciles"
        self.watches += 1
        self.open += 1
        try:
            while True:
                now = self._script[0]
                if isinstance(now, Exception):
                    self._script.pop(0)
                    raise now
                yield now
                if len(self._script) == 1:
                    await asyncio.Event().wait()
                self._script.pop(0)
        finally:
            self.open -= 1

    async def status(self, name: str, *, inspect: bool = True) -> EndpointStatus:
        if not self._leisure:
            raise AWAY
        return self._leisure

    async def logs(self, name: str, version: str, *, tail: int) -> str:
        if isinstance(self.log, Exception):
            raise self.log
        return self.log

    @property
    def target(self) -> Target:
        return cast("Target", self)


async def ready(scripted: ScriptedTarget, messages: list[str], timeout: timedelta = LATE) -> VersionStatus:
    return await wait_until_ready(scripted.target, "digits", "one", timeout=timeout, progress=messages.append)


async def served(scripted: ScriptedTarget, messages: list[str], timeout: timedelta = LATE) -> EndpointStatus:
    return await wait_until_served(scripted.target, "digits", 2, timeout=timeout, progress=messages.append)


async def test_one_watch_reports_each_change_once_until_the_version_is_ready() -> None:
    scripted = ScriptedTarget(status(starting()), status(starting(), starting("two")), status(READY))
    messages: list[str] = []

    assert await ready(scripted, messages) == READY

    assert messages == ["version 'one': 1 starting"]
    assert (scripted.watches, scripted.open) == (1, 0)


async def test_ready_version_and_served_revision_are_returned_at_once() -> None:
    scripted = ScriptedTarget(status(READY, served=3))

    assert await ready(scripted, []) == READY
    assert (await served(scripted, [])).served_revision == 3
    assert scripted.open == 0


async def test_failed_version_ends_the_wait_with_its_last_log_lines() -> None:
    scripted = ScriptedTarget(status(starting()), status(FAILED))

    with pytest.raises(DeploymentError, match=r"did not become ready: replica one-1 exited with code 1\nlast lines of"):
        await ready(scripted, [])

    assert scripted.open == 0


async def test_deleted_or_late_version_is_an_error() -> None:
    with pytest.raises(DeploymentError, match="is not among the versions of endpoint 'digits' any more"):
        await ready(ScriptedTarget(status(starting()), status()), [])
    with pytest.raises(DeploymentError, match=r"not ready after 0.2 s: 1 starting\nit has logged nothing"):
        await ready(ScriptedTarget(status(starting())), [], SOON)
    late = status(starting(cause="it waits for its weights", log_tail="loading"))
    with pytest.raises(
        DeploymentError, match=r"not ready after 0.2 s: it waits for its weights\nlast lines .*\nloading"
    ):
        await ready(ScriptedTarget(status(starting()), leisure=late), [], SOON)
    # Its replicas have not failed: they are still in init(), and what they have logged says how far it came.
    with pytest.raises(DeploymentError, match=r"1 starting\nlast lines of its log:\nloads weights$"):
        await ready(ScriptedTarget(status(starting()), log="loads weights\n"), [], SOON)
    with pytest.raises(DeploymentError, match="logged nothing"):
        await ready(ScriptedTarget(status(starting()), log=AWAY), [], SOON)


async def test_permanent_trouble_ends_the_wait_for_its_own_revision_only() -> None:
    troubled = "the router refuses the route"
    with pytest.raises(DeploymentError, match=f"waiting will not make it 2: {troubled}"):
        await served(ScriptedTarget(status(READY), status(READY, trouble=troubled)), [])

    of_the_revision_before = status(READY, revision=1, trouble=troubled)
    assert await served(ScriptedTarget(of_the_revision_before, status(READY, served=2)), [])


async def test_failed_version_is_reported_and_ends_the_wait_only_if_the_router_needs_it() -> None:
    messages: list[str] = []

    assert await served(
        ScriptedTarget(status(FAILED), status(FAILED, starting("two")), status(FAILED, served=2)), messages
    )

    assert messages == ["version 'one' has failed: replica one-1 exited with code 1"]


async def test_router_that_does_not_confirm_in_time_is_an_error_with_its_cause() -> None:
    with pytest.raises(DeploymentError) as failure:
        await served(ScriptedTarget(status(FAILED, starting("two"))), [], SOON)

    assert str(failure.value).startswith(
        "the router still serves revision 1 of endpoint 'digits', not 2, after 0.2 s; versions that are not ready: "
        "one, two\nversion 'one' of endpoint 'digits' did not become ready: replica one-1 exited with code 1\n"
    )
    assert "no weights found" in str(failure.value)


async def status_when_left(scripted: ScriptedTarget, timeout: timedelta = LATE) -> EndpointStatus:
    return await wait_until_without_traffic(scripted.target, "digits", "one", 2, timeout=timeout)


async def test_a_version_is_left_when_the_router_serves_a_split_of_that_revision_without_it() -> None:
    """Also while another version of the revision is not ready; a split of the revision before does not count."""
    before = status(starting("two"), split_revision=1, weight_ppm={"two": 1_000_000})
    leaving = status(starting("two"), split_revision=2, weight_ppm={"one": 1, "two": 1_000_000})
    after = status(starting("two"), split_revision=2, weight_ppm={"two": 1_000_000})

    assert await status_when_left(ScriptedTarget(before, leaving, after)) == after
    assert await status_when_left(ScriptedTarget(before, status(served=2))) == status(served=2)
    with pytest.raises(DeploymentError, match="the router still serves revision 1"):
        await status_when_left(ScriptedTarget(before, leaving), SOON)


async def test_a_router_that_lets_nobody_in_is_waited_for_where_another_version_has_a_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The waiting caller opens it: nobody else does after the step."""
    up = VersionStatus(name="two", ready=False, replicas=(ReplicaStatus(name="r", state=ReplicaState.READY),))
    closed, opened = status(up, split_revision=2), status(up, split_revision=2, weight_ppm={"two": 1_000_000})

    assert await status_when_left(ScriptedTarget(closed, closed, opened)) == opened
    nobody = status(starting("two"), split_revision=2)
    assert await status_when_left(ScriptedTarget(nobody)) == nobody
    monkeypatch.setattr(waiting, "OPENING", SOON)
    assert await status_when_left(ScriptedTarget(closed)) == closed  # what was asked is done all the same


async def test_temporarily_unreachable_target_only_delays() -> None:
    messages: list[str] = []
    scripted = ScriptedTarget(status(READY), AWAY, AWAY, status(READY), AWAY, status(READY, served=2))

    assert await served(scripted, messages)

    # Said once for each of the two times, not for every try.
    assert messages == ["trying again: the API server is away"] * 2
    assert scripted.open == 0


async def test_unreachable_target_is_an_error_after_the_timeout() -> None:
    away = [AWAY] * 1000
    messages: list[str] = []
    with pytest.raises(TargetUnavailableError, match="is away"):
        await ready(ScriptedTarget(status(starting()), *away), messages, SOON)
    with pytest.raises(TargetUnavailableError, match="is away"):
        await served(ScriptedTarget(*away), messages, SOON)

    assert messages.count("trying again: the API server is away") == 2


@pytest.mark.parametrize("error", [EndpointNotFoundError("gone"), TimeoutError("not ours")])
async def test_other_errors_end_the_wait(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        await ready(ScriptedTarget(error), [])
    with pytest.raises(type(error), match=str(error)):
        await served(ScriptedTarget(status(READY), error), [])


async def test_a_refusal_that_passes_only_delays() -> None:
    messages: list[str] = []
    scripted = ScriptedTarget(status(READY), REFUSED, REFUSED, AWAY, REFUSED, status(READY, served=2))

    assert await served(scripted, messages)

    assert messages == ["trying again: not allowed"]


async def test_a_refusal_that_stays_is_an_error_after_a_short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "REFUSED_S", 0.05)
    with pytest.raises(AccessError, match="not allowed"):
        await served(ScriptedTarget(status(READY), *[REFUSED] * 1000), [])

    async def call() -> None:
        raise REFUSED

    with pytest.raises(AccessError, match="not allowed"):
        await retry_until_available(call, timeout=LATE, progress=lambda line: None)
    monkeypatch.setattr(waiting, "REFUSED_S", 30.0)
    with pytest.raises(AccessError, match="not allowed"):
        await retry_until_available(call, timeout=SOON, progress=lambda line: None)


async def test_call_is_repeated_until_the_target_responds() -> None:
    messages: list[str] = []
    answers: list[int | Exception] = [AWAY, AWAY, 7]

    async def call() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await retry_until_available(call, timeout=LATE, progress=messages.append) == 7
    assert messages == ["trying again: the API server is away"]


async def test_call_stops_at_its_timeout_and_is_made_once_without_one() -> None:
    calls = 0

    async def call() -> int:
        nonlocal calls
        calls += 1
        raise AWAY

    with pytest.raises(TargetUnavailableError, match="is away"):
        await retry_until_available(call, timeout=timedelta(0), progress=lambda line: None)
    assert calls == 1
    with pytest.raises(TargetUnavailableError, match="is away"):
        await retry_until_available(call, timeout=SOON, progress=lambda line: None)
    assert calls > 3
