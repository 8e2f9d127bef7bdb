"""What callers and writers may do: keys, one version by its name, conflicts, runs that wait, scaling, logs."""

import asyncio
import itertools
import uuid
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx
import pytest

from controlled_rollout import steps
from controlled_rollout.endpoint import Auth, Endpoint, EndpointError
from controlled_rollout.errors import ConflictError, EndpointNotFoundError, NothingToDoError
from controlled_rollout.steps import Change
from controlled_rollout.target.protocol import EndpointStatus, Target
from controlled_rollout.target.waiting import wait_until_served
from tests.conformance.target_lab import CHANGE, MAX_WAIT, TargetLab
from tests.polling import until

DUE = datetime(2026, 1, 5, 12, tzinfo=UTC)
ADA = Change(who="ada", reason="good enough")


@pytest.fixture(scope="module")
def shared(target_lab: TargetLab) -> str:
    """The name of an endpoint with a default, `one`, and a version without traffic, `two`."""
    first = target_lab.with_version(target_lab.endpoint("shared"), "one")
    with target_lab.turn():
        return asyncio.run(target_lab.serve(target_lab.with_version(first, "two", "steady2"))).name


async def test_a_key_is_asked_for_and_one_that_was_replaced_is_refused_when_the_call_returns(
    target_lab: TargetLab, shared: str
) -> None:
    lab = target_lab
    endpoint = await lab.target.endpoint(shared)
    keys = await lab.target.keys(shared)
    before = await lab.target.status(shared)

    without = [(await lab.ask(endpoint, key=key)).status for key in (None, "wrong")]
    both = [(await lab.ask(endpoint, key=key)).status for key in (keys.primary, keys.secondary)]
    changed = await lab.target.regenerate_key(shared, "primary")
    at_once = await asyncio.gather(
        *(lab.ask(endpoint, key=key) for key in 5 * (keys.primary, changed.primary, keys.secondary))
    )
    after = await lab.target.status(shared)

    assert (without, both) == ([401, 401], [200, 200])
    assert [answer.status for answer in at_once] == 5 * [401, 200, 200]
    assert (after.served_revision, after.weight_ppm) == (before.served_revision, before.weight_ppm)
    assert await lab.target.keys(shared) == changed
    assert changed.secondary == keys.secondary


async def test_one_version_is_reached_by_its_name_and_every_answer_says_which_gave_it(
    target_lab: TargetLab, shared: str
) -> None:
    lab = target_lab
    endpoint = await lab.target.endpoint(shared)
    key = (await lab.target.keys(shared)).primary

    by_weight = await lab.ask(endpoint, key=key)
    by_name = await lab.ask(endpoint, key=key, version="two")
    unknown = await lab.ask(endpoint, key=key, version="three")
    without_key = await lab.ask(endpoint, version="three")
    url = (await lab.target.status(shared)).url.replace("/score", "/swagger.json")
    async with httpx.AsyncClient() as caller:
        swagger = await caller.get(url, headers={"Authorization": f"Bearer {key}"})

    assert (by_weight.status, by_weight.version, '"steady"' in by_weight.body) == (200, "one", True)
    assert (by_name.status, by_name.version, '"steady2"' in by_name.body) == (200, "two", True)
    assert (unknown.status, "one, two" in unknown.body) == (404, True)
    assert (without_key.status, "two" in without_key.body) == (401, False)
    assert swagger.status_code == 200


async def test_a_caller_chooses_the_correlation_id_and_never_the_request_id(target_lab: TargetLab, shared: str) -> None:
    lab = target_lab
    endpoint = await lab.target.endpoint(shared)
    key = (await lab.target.keys(shared)).primary
    chosen = str(uuid.uuid4())

    sent = {"x-request-id": chosen, "x-ms-client-request-id": "theirs"}
    answers = [(await lab.ask(endpoint, key=key, headers=sent)).headers for _ in range(3)]

    ids = {str(uuid.UUID(answer["x-request-id"])) for answer in answers}
    assert (len(ids), chosen in ids) == (3, False)
    assert {answer["x-ms-client-request-id"] for answer in answers} == {"theirs"}


async def test_an_endpoint_is_open_only_when_that_is_asked_for_by_name(target_lab: TargetLab) -> None:
    lab = target_lab
    endpoint = await lab.serve(lab.with_version(lab.endpoint("open", auth=Auth.NONE), "one"))

    assert (await lab.ask(endpoint)).status == 200


async def test_second_of_two_writers_gets_a_conflict_with_who_and_why(target_lab: TargetLab, shared: str) -> None:
    lab = target_lab
    endpoint = await lab.target.endpoint(shared)
    changes = [endpoint.model_copy(update={"description": text}) for text in ("mine", "yours")]

    results = await asyncio.gather(*map(lab.apply, changes), return_exceptions=True)

    [winner] = [result for result in results if isinstance(result, Endpoint)]
    [loser] = [result for result in results if isinstance(result, ConflictError)]
    assert (CHANGE.who in str(loser), CHANGE.reason in str(loser)) == (True, True)
    assert await lab.target.endpoint(shared) == winner
    assert winner.revision == endpoint.revision + 1


async def deploy(lab: TargetLab, endpoint: str, number: int) -> None:
    """Roll out the version of a run, whose number is the hour in which it was due."""
    await steps.deploy(
        lab.workspace, endpoint, f"run{number}", image=lab.images["steady"], owner=f"weekly/run-{number}",
        change=Change(who=f"weekly/run-{number}/deploy"), settings=lab.settings,
        run_date=DUE + timedelta(hours=number), conflict_timeout=MAX_WAIT, timeout=MAX_WAIT, progress=lambda line: None,
    )  # fmt: skip


async def promote_by_hand(lab: TargetLab, endpoint: str, version: str) -> list[str]:
    """Promote a version as a person does; return what the command says."""
    said: list[str] = []
    await steps.promote(lab.workspace, endpoint, version, change=ADA, timeout=MAX_WAIT, progress=said.append)
    return said


async def waiting_runs(lab: TargetLab, endpoint: str) -> list[str]:
    """Return the runs that wait for an endpoint, the next one first."""
    return [run.owner for run in (await lab.target.endpoint(endpoint)).waiting]


async def test_runs_come_in_the_order_in_which_they_were_due_and_what_a_person_ends_is_said_and_left_alone_by_its_run(
    target_lab: TargetLab,
) -> None:
    lab = target_lab
    name = lab.endpoint("owners").name
    await deploy(lab, name, 0)
    await lab.apply((await lab.target.endpoint(name)).claim("run0", owner="weekly/other", at=datetime.now(UTC)))
    runs: dict[int, asyncio.Task[None]] = {}
    for number in (3, 1):
        runs[number] = asyncio.create_task(deploy(lab, name, number))
        await until(partial(is_waiting, lab, name, number), f"run {number} waits")
    in_order = await waiting_runs(lab, name)

    await lab.apply((await lab.target.endpoint(name)).release("run0"))
    await runs[1]
    assert await waiting_runs(lab, name) == ["weekly/run-3"]
    said = await promote_by_hand(lab, name, "run1")
    await runs[3]
    said += await promote_by_hand(lab, name, "run3")
    promoted = await lab.target.endpoint(name)

    assert in_order == ["weekly/run-1", "weekly/run-3"]
    for number in (1, 3):
        assert f"this ends the rollout of 'run{number}' by weekly/run-{number}" in "".join(said)
        with pytest.raises(NothingToDoError, match=f"ada ended the rollout of 'run{number}' by weekly/run-{number}"):
            await steps.roll_back(
                lab.workspace, name, f"run{number}", change=CHANGE, owner=f"weekly/run-{number}", progress=said.append
            )
    with pytest.raises(NothingToDoError, match="an older model does not replace a newer one"):
        await deploy(lab, name, 2)
    assert await lab.target.endpoint(name) == promoted
    assert promoted.effective_traffic()["run3"] == 100

    back = await steps.roll_back(
        lab.workspace, name, "run3", change=CHANGE, to_former_control=True, timeout=MAX_WAIT, progress=said.append
    )
    assert back is not None and back.control == back.version("run1")
    assert back.effective_traffic()["run1"] == 100


async def is_waiting(lab: TargetLab, endpoint: str, number: int) -> bool:
    """Return whether a run waits for an endpoint."""
    return f"weekly/run-{number}" in await waiting_runs(lab, endpoint)


async def test_applying_what_is_stored_again_stores_nothing(target_lab: TargetLab, shared: str) -> None:
    lab = target_lab
    before = await lab.target.history(shared)

    again = await lab.apply(before[-1].endpoint)

    assert again == before[-1].endpoint
    assert await lab.target.history(shared) == before
    assert [revision.number for revision in before] == list(range(1, len(before) + 1))


async def test_what_a_version_prints_is_its_log(target_lab: TargetLab, shared: str) -> None:
    log = await target_lab.target.logs(shared, "two")

    assert "loaded steady2" in log
    assert len((await target_lab.target.logs(shared, "two", tail=1)).splitlines()) == 1


async def test_scaling_creates_no_revision_and_is_reported_to_watchers(target_lab: TargetLab, shared: str) -> None:
    lab = target_lab
    endpoint = await lab.target.endpoint(shared)

    async with lab.load(endpoint) as load, aclosing(lab.target.watch(shared)) as statuses:
        updates = [await anext(statuses)]
        for replicas, at_least in ((2, True), (1, False)):
            await lab.target.scale(shared, "one", replicas, at_least=at_least)
            # What a step finds to be enough already is not taken away.
            await lab.target.scale(shared, "one", 1, at_least=True)
            async for status in statuses:
                updates.append(status)
                version = status.versions["one"]
                if version.ready and (version.wanted_replicas, len(version.replicas)) == (replicas, replicas):
                    break
        await load.more(50)

    assert (updates[0].versions["one"].wanted_replicas, updates[0].versions["one"].ready) == (1, True)
    assert all(before != after for before, after in itertools.pairwise(updates))
    assert load.failed == {}, load.refusals
    assert (await lab.target.endpoint(shared)).revision == endpoint.revision
    with pytest.raises(EndpointError, match="0 replicas"):
        await lab.target.scale(shared, "one", 0)


async def test_the_load_of_a_version_is_what_it_is_sent_and_how_long_it_takes(
    target_lab: TargetLab, shared: str
) -> None:
    lab = target_lab
    endpoint = await lab.target.endpoint(shared)

    async def is_measured() -> bool:
        return abs((await lab.target.load(shared))["one"].requests_per_s - 40) < 10

    async with lab.load(endpoint, rate=40):
        await until(is_measured, "the load is the load that is sent")
        loads = await lab.target.load(shared)

    assert loads["one"].request_time_s is not None
    assert 0.005 <= loads["one"].request_time_s < 1
    assert loads["two"].requests_per_s < 1


def served(target: Target, name: str) -> Coroutine[Any, Any, EndpointStatus]:
    return wait_until_served(target, name, 1, timeout=MAX_WAIT)


async def first_status(target: Target, name: str) -> EndpointStatus:
    return await anext(aiter(target.watch(name)))


CALLS: dict[str, Callable[[Target, str], Coroutine[Any, Any, object]]] = {
    "endpoint": lambda target, name: target.endpoint(name),
    "history": lambda target, name: target.history(name),
    "status": lambda target, name: target.status(name),
    "load": lambda target, name: target.load(name),
    "keys": lambda target, name: target.keys(name),
    "regenerate_key": lambda target, name: target.regenerate_key(name, "primary"),
    "token": lambda target, name: target.token(name),
    "rotate_signing_keys": lambda target, name: target.rotate_signing_keys(name),
    "scale": lambda target, name: target.scale(name, "one", 1),
    "watch": first_status,
    "wait_until_served": served,
}


@pytest.mark.parametrize("call", CALLS)
async def test_missing_endpoint_is_reported_as_missing(target_lab: TargetLab, call: str) -> None:
    with pytest.raises(EndpointNotFoundError, match="no-such-endpoint"):
        await CALLS[call](target_lab.target, "no-such-endpoint")


async def test_a_version_that_is_not_there_cannot_be_scaled(target_lab: TargetLab, shared: str) -> None:
    with pytest.raises(EndpointError, match="no version 'nine'"):
        await target_lab.target.scale(shared, "nine", 1)
