"""Callers who stay with a version: one answer by key at each step, and only from control to the treatment."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta

import httpx
import pytest

from controlled_rollout.endpoint import VERSION_HEADER, Endpoint
from controlled_rollout.errors import EndpointError
from controlled_rollout.evaluation import look as looks
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate, Outcome
from tests.conformance.target_lab import TargetLab

KEY = "x-user"
WINDOW = EvidenceWindow(bin_width=timedelta(seconds=2), allowed_lag=timedelta(seconds=8))
USERS = tuple(f"user-{number}" for number in range(40))


async def versions_of(lab: TargetLab, endpoint: Endpoint, requests: Iterable[Mapping[str, str]]) -> list[str]:
    """Return which version has answered each of several requests, given by their headers; all are answered 200."""
    keys = await lab.target.keys(endpoint.name)
    url = (await lab.target.status(endpoint.name)).url
    places = asyncio.Semaphore(4)
    async with httpx.AsyncClient(timeout=60, headers={"Authorization": f"Bearer {keys.primary}"}) as caller:

        async def send(headers: Mapping[str, str]) -> str:
            """Send one request; return the version that has answered."""
            async with places:
                answer = await caller.post(url, json={}, headers=headers)
            assert answer.status_code == 200, answer.text
            return answer.headers[VERSION_HEADER]

        return await asyncio.gather(*(send(headers) for headers in requests))


async def users(lab: TargetLab, endpoint: Endpoint) -> list[str]:
    """Return the version of each user."""
    return await versions_of(lab, endpoint, [{KEY: user} for user in USERS])


async def test_a_user_sees_one_version_at_each_step_and_only_moves_to_the_treatment(target_lab: TargetLab) -> None:
    lab = target_lab
    endpoint = lab.endpoint("sticky").model_copy(update={"sticky": f"header:{KEY}"})
    endpoint = await lab.serve(lab.with_version(endpoint, "one"))
    endpoint = await lab.serve(lab.with_version(endpoint, "two"))
    before = await users(lab, endpoint)
    assert set(before) == {"one"}

    for percentile in (10, 50):
        endpoint = await lab.serve(endpoint.shift("two", percentile))
        now = await users(lab, endpoint)
        again = await users(lab, endpoint)
        assert now == again
        assert all(new == "two" for old, new in zip(before, now, strict=True) if old == "two")
        # Six standard deviations of as many users, whose hashes are always the same.
        assert abs(now.count("two") - len(USERS) * percentile / 100) < 6 * (len(USERS) * 0.25) ** 0.5
        before = now

    endpoint = await lab.serve(endpoint.shift("two", 25))
    fewer = await users(lab, endpoint)
    assert all(new == "one" for old, new in zip(before, fewer, strict=True) if old == "one")

    # Without the key each request is drawn; with it, whatever it looks like, it is not.
    anonymous = await versions_of(lab, endpoint, [{}] * 50)
    assert set(anonymous) == {"one", "two"}
    for key in ("x" * 8_000, "", "a b, c"):
        assert len(set(await versions_of(lab, endpoint, [{KEY: key}] * 6))) == 1

    endpoint = await lab.serve(endpoint.promote("two"))
    assert set(await users(lab, endpoint)) == {"two"}


async def test_a_bad_version_is_found_by_its_users_each_counted_once(target_lab: TargetLab) -> None:
    """The gate gets from telemetry whose requests they are; a gate that counts requests is refused."""
    lab = target_lab
    endpoint = lab.endpoint("sticky-users").model_copy(update={"sticky": f"header:{KEY}"})
    endpoint = await lab.serve(lab.with_version(endpoint, "one", is_control=True))
    endpoint = await lab.serve(lab.with_version(endpoint, "two", "failing"))
    endpoint = await lab.serve(endpoint.shift("two", 50))
    gate = Gate(unit="user", latency_quantiles=())
    with pytest.raises(EndpointError, match="give the gate unit='user'"):
        await look(lab, endpoint, Gate())
    keys = await lab.target.keys(endpoint.name)
    url = (await lab.target.status(endpoint.name)).url
    sent = 0
    seen: list[looks.Look] = []
    ends = time.monotonic() + 180
    async with httpx.AsyncClient(timeout=60, headers={"Authorization": f"Bearer {keys.primary}"}) as caller:
        while time.monotonic() < ends and not (seen and seen[-1].verdict.outcome is Outcome.FAIL):
            # Each twice, and whoever sends no key counts for nobody.
            callers = [{KEY: f"caller-{sent + number}"} for number in range(12)]
            sent += len(callers)
            for headers in (*callers, *callers, {}):
                await caller.post(url, json={}, headers=headers)
            seen.append(await look(lab, endpoint, gate))

    verdict = seen[-1].verdict
    assert verdict.outcome is Outcome.FAIL, [one.verdict.reason for one in seen]
    assert "users are counted" in verdict.reason or "errors are higher" in verdict.reason
    assert 0 < verdict.control_requests + verdict.treatment_requests <= sent


async def look(lab: TargetLab, endpoint: Endpoint, gate: Gate) -> looks.Look:
    """Look at version `two`."""
    return await looks.look(lab.workspace, lab.target, endpoint.name, "two", gate=gate, who="a test", window=WINDOW)


async def test_what_names_no_caller_is_refused(target_lab: TargetLab) -> None:
    with pytest.raises(EndpointError, match="does not tell one caller from another"):
        await target_lab.apply(Endpoint(name="refused", sticky="header:authorization"))
