"""What the local router and its store take for evidence: the router's own rows of requests that it split by weight."""

import asyncio
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.evidence import EvidenceQuery, EvidenceWindow
from controlled_rollout.evidence.local import StateFileEvidence
from controlled_rollout.gate import Gate
from tests.local.local_target_lab import VERSION_HEADER, Lab
from tests.local.telemetry_lab import PROTOBUF, export
from tests.polling import until

S = timedelta(seconds=1)


async def serve(lab: Lab, name: str) -> tuple[str, dict[str, str]]:
    """Serve an endpoint of two versions, half and half; return its address without the path, and a caller's headers."""
    image = await lab.image()
    endpoint = Endpoint(name=name).create_version("one", image=image)
    endpoint, _ = await lab.serve(endpoint.create_version("two", image=image, traffic_percentile=50.0))
    for version in ("one", "two"):
        await lab.ready(name, version)
    url = (await lab.url(name)).removesuffix("/score")
    return url, {"Authorization": f"Bearer {(await lab.target.keys(name)).primary}"}


async def rows(lab: Lab, endpoint: str, *, at_least: int) -> list[dict[str, Any]]:
    """Return the rows of an endpoint's requests, once so many are there."""
    source = StateFileEvidence(lab.workspace)._open_reader()
    query = f"AppRequests | where tostring(Properties.endpoint) == '{endpoint}' | project Properties, ResultCode"
    found: list[dict[str, Any]] = []

    async def are_there() -> bool:
        nonlocal found
        found = await source._query(query, "Properties", "ResultCode")
        return len(found) >= at_least

    await until(are_there, f"{at_least} rows of {endpoint}", timeout_s=20)
    return [{"code": row["ResultCode"], **json.loads(row["Properties"])} for row in found]


async def test_requests_by_name_to_other_paths_and_refused_ones_are_counted_on_neither_side(lab: Lab) -> None:
    url, key = await serve(lab, "counted")
    async with httpx.AsyncClient(timeout=20) as caller:
        answers = [await caller.post(f"{url}/score", json={}, headers=key) for _ in range(20)]
        for _ in range(10):
            await caller.post(f"{url}/score", json={}, headers={**key, VERSION_HEADER: "two"})
            await caller.get(f"{url}/swagger.json", headers=key)
            await caller.options(f"{url}/score", headers=key)
            await caller.post(f"{url}/score", json={}, headers={VERSION_HEADER: "two"})
            await caller.post(f"{url}/score", json={}, headers={"X-Controlled-Rollout-Routed-By": "weights"})

    of_two = sum(answer.headers[VERSION_HEADER] == "two" for answer in answers)
    status = await lab.target.status("counted")
    assert {name: version.requests for name, version in status.versions.items()} == {"one": 20 - of_two, "two": of_two}
    found = await rows(lab, "counted", at_least=50)
    judged = [row for row in found if row["routed_by"] == "weights" and row["code"] not in ("401", "403")]
    assert sorted(row["version"] for row in judged) == ["one"] * (20 - of_two) + ["two"] * of_two
    assert {row["code"] for row in judged} == {"200"}


async def test_a_caller_who_hangs_up_has_sent_a_request_that_failed(lab: Lab) -> None:
    url, key = await serve(lab, "impatient")
    async with httpx.AsyncClient(timeout=0.3) as caller:
        for _ in range(4):
            with pytest.raises(httpx.ReadTimeout):
                await caller.post(f"{url}/score", json={"sleep_s": 1}, headers=key)
    await rows(lab, "impatient", at_least=4)

    assert await requests_and_errors(lab, "impatient") == (4, 4)
    status = await lab.target.status("impatient")
    assert sum(version.requests for version in status.versions.values()) == 4


async def requests_and_errors(lab: Lab, endpoint: str) -> tuple[int, int]:
    """Return how many requests of an endpoint the gate counts, and how many of them as errors."""
    now = datetime.now(UTC)
    query = EvidenceQuery(
        endpoint=endpoint, control="one", treatment="two", started=now - timedelta(minutes=1), now=now + 2 * S,
        window=EvidenceWindow(bin_width=S, allowed_lag=timedelta(0)), splits=[], gate=Gate(latency_quantiles=()),
    )  # fmt: skip
    counts = [
        bin_count
        for one in (await StateFileEvidence(lab.workspace).read(query)).bins
        for bin_count in (one.control, one.treatment)
    ]
    return sum(one.requests for one in counts), sum(one.errors for one in counts)


async def test_nobody_but_the_router_can_write_what_callers_saw(lab: Lab) -> None:
    url, key = await serve(lab, "forged")
    async with httpx.AsyncClient(timeout=20) as caller:
        forged = await caller.post(
            f"{lab.state.telemetry_url}/v1/traces",
            content=export({"endpoint": "forged", "version": "two"}),
            headers=PROTOBUF,
        )
        await caller.post(f"{url}/score", json={}, headers=key)

    assert forged.status_code == 401
    assert len(await rows(lab, "forged", at_least=1)) == 1
    token_file = lab.state.runtime / "telemetry-upload.token"
    token = token_file.read_text()
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    with_token = [
        file for file in lab.state.runtime.rglob("*") if file.is_file() and token in file.read_text("latin-1")
    ]
    assert {stat.S_IMODE(file.stat().st_mode) for file in with_token} == {0o600}
    assert await asyncio.to_thread(_command_lines_with, token) == []


def _command_lines_with(text: str) -> list[str]:
    """Return the command lines and environments of all processes that hold a text."""
    found = []
    for name in ("cmdline", "environ"):
        for file in Path("/proc").glob(f"[0-9]*/{name}"):
            try:
                if text.encode() in file.read_bytes():
                    found.append(str(file))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("sticky", ["header:x-user", "cookie:session"])
async def test_spans_of_a_sticky_endpoint_have_a_hash_of_the_callers_key_and_never_the_key(
    lab: Lab, sticky: str
) -> None:
    """One user for each key, also of a large body, which takes another way through the router; none without a key."""
    kind, _, name = sticky.partition(":")
    endpoint = f"sticky-{kind}"
    stored = Endpoint(name=endpoint, sticky=sticky).create_version("one", image=await lab.image())
    await lab.serve(stored)
    url = await lab.url(endpoint)
    key = {"Authorization": f"Bearer {(await lab.target.keys(endpoint)).primary}"}
    async with httpx.AsyncClient(timeout=20) as caller:
        for user in ("somebody", "somebody", "another", "x" * 7_000):
            header = {"Cookie": f"first=secret; {name}={user}"} if kind == "cookie" else {name: user}
            answer = await caller.post(url, json={}, headers={**key, **header})
            assert answer.status_code == 200, answer.text
            large = await caller.post(url, content=b" " * 3_000_000 + b"{}", headers={**key, **header})
            assert large.status_code == 200, large.text
        await caller.post(url, json={}, headers=key)

    found = await rows(lab, endpoint, at_least=9)
    users = [row.get("user") for row in found]
    assert users.count(None) == 1
    assert sorted(users.count(user) for user in set(users) - {None}) == [2, 2, 4]
    assert not any("somebody" in json.dumps(row) or "secret" in json.dumps(row) for row in found)
