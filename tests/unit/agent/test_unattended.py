"""Which rollouts the agent asks about, and that one endpoint's fault does not keep it from the others."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from controlled_rollout.agent import unattended
from controlled_rollout.agent.namespace_state import NamespaceState
from controlled_rollout.agent.unattended import UnattendedRollouts
from controlled_rollout.cluster.api import Api
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.rollout import OnSilence, Rollout
from controlled_rollout.target.protocol import Change, Revision
from controlled_rollout.target.silence import FailedTries, TakeBack
from controlled_rollout.workspace import Workspace
from tests.polling import until

IMAGE = "registry.example/model@sha256:" + "0" * 64
WORKSPACE = Workspace.from_settings({"target": "kubernetes", "gateway": "gateway/models", "namespace": "models"})


def canary(name: str, on_silence: OnSilence) -> Revision:
    endpoint = Endpoint(name=name).create_version("one", image=IMAGE)
    endpoint = endpoint.create_version("two", image=IMAGE, traffic_percentile=10)
    rollout = Rollout(
        version="two", owner="a run", started=datetime.now(UTC), on_silence=on_silence, silence=timedelta(minutes=30)
    )
    endpoint = endpoint.model_copy(update={"rollout": rollout})
    return Revision(number=2, endpoint=endpoint, change=Change(who="a test"), created=datetime.now(UTC))


async def test_every_canary_that_is_not_to_be_kept_is_asked_about_whatever_becomes_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    class Watch:
        async def look_after(self, _target: Any, newest: Revision, **_options: Any) -> None:
            asked.append(newest.endpoint.name)
            if newest.endpoint.name == "away":
                raise TargetUnavailableError("away")
            if newest.endpoint.name == "damaged":
                raise KeyError("damaged")
            await asyncio.Event().wait()

    monkeypatch.setattr(unattended, "INTERVAL_S", 0.01)
    state = NamespaceState()
    for name, what in (
        ("away", OnSilence.ROLL_BACK),
        ("damaged", OnSilence.ROLL_BACK),
        ("digits", OnSilence.ROLL_BACK),
        ("kept", OnSilence.KEEP),
    ):
        state.revisions[name] = canary(name, what)
    rollouts = UnattendedRollouts(cast(Api, None), WORKSPACE, state, datetime.now(UTC))
    monkeypatch.setattr(rollouts, "_watch", Watch())
    running = asyncio.create_task(rollouts.run())
    await until(lambda: asked.count("away") > 2, "it is asked again and again", timeout_s=60)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running

    assert asked.count("digits") == 1, "one question at a time for each endpoint"
    assert "kept" not in asked


@pytest.mark.parametrize("cannot_be_noted", [False, True])
async def test_each_try_that_failed_is_written_down_once_where_status_sees_it(
    cannot_be_noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = canary("digits", OnSilence.ROLL_BACK)
    rollout = newest.endpoint.rollout
    assert rollout is not None
    order = TakeBack(endpoint="digits", rollout=rollout, revision=2, looked=None, since=newest.created)
    noted: list[FailedTries] = []

    class Watch:
        async def look_after(self, _target: Any, _newest: Revision, **_options: Any) -> None:
            if rollouts._checks.failed_tries("digits") is None:
                rollouts._checks.note_end(order, "forbidden")
                raise TargetUnavailableError("forbidden")

    async def note(_api: Api, _namespace: str, _endpoint: str, tries: FailedTries) -> None:
        noted.append(tries)
        if cannot_be_noted:
            raise TargetUnavailableError("away")

    monkeypatch.setattr(unattended, "write_take_back_note", note)
    rollouts = UnattendedRollouts(cast(Api, None), WORKSPACE, NamespaceState(), datetime.now(UTC))
    monkeypatch.setattr(rollouts, "_watch", Watch())
    for _ in range(3):  # the second and third check wait for the next try
        await rollouts._take_back_if_due("digits", newest)
    assert [tries.problem for tries in noted] == ["forbidden"]
