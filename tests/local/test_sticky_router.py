"""The local router with callers who stay with a version: several treatments, cookies, and keys that are not plain."""

from collections.abc import AsyncIterator, Sequence

import httpx
import pytest_asyncio

from controlled_rollout.endpoint import Endpoint
from tests.local.local_target_lab import VERSION_HEADER, Lab

CALLERS = tuple(f"caller-{number}" for number in range(60))
Headers = list[tuple[str, str]]


@pytest_asyncio.fixture
async def caller() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=60) as client:
        yield client


async def answers(lab: Lab, caller: httpx.AsyncClient, endpoint: Endpoint, requests: Sequence[Headers]) -> list[str]:
    """Return which version answers each of several requests, given by their headers."""
    key = (await lab.target.keys(endpoint.name)).primary
    url = await lab.url(endpoint.name)
    versions = []
    for headers in requests:
        answer = await caller.post(url, json={}, headers=[("Authorization", f"Bearer {key}"), *headers])
        assert answer.status_code == 200, answer.text
        versions.append(answer.headers[VERSION_HEADER])
    return versions


async def test_several_treatments_grow_from_control_without_taking_each_others_callers(
    lab: Lab, caller: httpx.AsyncClient
) -> None:
    """Three treatments, grown in turns: the third takes from the middle, so that Envoy has a cluster several times."""
    endpoint = Endpoint(name="crowded", sticky="cookie:session")
    endpoint = endpoint.create_version("one", image=await lab.image(), is_control=True)
    for version in ("two", "three", "four"):
        endpoint = endpoint.create_version(version, image=await lab.image())
    stored, _ = await lab.serve(endpoint)
    for version in ("two", "three", "four"):
        await lab.ready("crowded", version)
    requests = [[("Cookie", f"other=1; session={name}; more=2")] for name in CALLERS]
    before = await answers(lab, caller, stored, requests)
    assert set(before) == {"one"}

    for version, percentile in (("two", 20), ("three", 15), ("four", 15), ("two", 35), ("four", 30), ("three", 35)):
        stored, _ = await lab.serve(stored.shift(version, percentile))
        now = await answers(lab, caller, stored, requests)
        assert all(old in (new, "one") for old, new in zip(before, now, strict=True)), (version, percentile)
        assert all(new in (old, version) for old, new in zip(before, now, strict=True)), (version, percentile)
        before = now

    assert set(before) == {"two", "three", "four"}
    assert len(stored.user_ranges) > len(stored.versions) - 1
    # The first cookie of a name counts, as for most servers.
    twice = [[("Cookie", f"session={name}; session=another")] for name in CALLERS]
    assert await answers(lab, caller, stored, twice) == before


async def test_a_repeated_header_is_one_key_and_a_request_without_it_is_drawn(
    lab: Lab, caller: httpx.AsyncClient
) -> None:
    """Two values in whatever order are one key; nothing is refused for its key, however long it is."""
    endpoint = Endpoint(name="repeated", sticky="header:x-user")
    endpoint = endpoint.create_version("one", image=await lab.image(), is_control=True)
    endpoint = endpoint.create_version("two", image=await lab.image(), traffic_percentile=50)
    stored, _ = await lab.serve(endpoint)
    one_way = [[("X-User", name), ("x-user", "second")] for name in CALLERS[:20]]
    other_way = [[("x-user", "second"), ("x-user", name)] for name in CALLERS[:20]]

    drawn = await answers(lab, caller, stored, [[]] * 60)
    first = await answers(lab, caller, stored, one_way)
    large = await answers(lab, caller, stored, [[("x-user", "x" * 8192)]] * 10)

    assert set(drawn) == {"one", "two"}
    assert set(first) == {"one", "two"}
    assert await answers(lab, caller, stored, other_way) == first
    assert len(set(large)) == 1
