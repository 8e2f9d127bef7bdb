"""What decides about a version: only what the router decided itself, and never what somebody else writes."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from controlled_rollout.endpoint import VERSION_HEADER, Endpoint
from controlled_rollout.evaluation import look as looks
from controlled_rollout.evidence import EvidenceQuery, EvidenceWindow, evidence_source
from controlled_rollout.gate import Gate, Outcome
from tests.conformance.target_lab import TargetLab
from tests.polling import until

# Requests per second.
RATE = 40.0
WINDOW = EvidenceWindow(bin_width=timedelta(seconds=2), allowed_lag=timedelta(seconds=8))
# Small numbers, so that a test takes seconds: what they mean is docs/gate.md's business.
GATE = Gate(alpha=0.001, latency_quantiles=(), burst_cap=4.0)


async def serve_two(lab: TargetLab, name: str, model: str) -> Endpoint:
    """Serve control `one`, and `two` without traffic."""
    endpoint = lab.with_version(lab.endpoint(name), "one", is_control=True)
    return await lab.serve(lab.with_version(endpoint, "two", model))


async def look(lab: TargetLab, endpoint: Endpoint) -> looks.Look:
    await asyncio.sleep(1)
    return await looks.look(lab.workspace, lab.target, endpoint.name, "two", gate=GATE, who="a test", window=WINDOW)


async def test_a_caller_without_a_key_who_names_a_version_changes_nothing_of_the_verdict(target_lab: TargetLab) -> None:
    lab = target_lab
    endpoint = await serve_two(lab, "keyless", "failing")
    url = (await lab.target.status(endpoint.name)).url
    claims = {VERSION_HEADER: "two", "x-controlled-rollout-routed-by": "weights"}
    async with httpx.AsyncClient(timeout=30) as stranger:
        refused = [(await stranger.post(url, json={}, headers=claims)).status_code for _ in range(30)]

    async with lab.load(endpoint, RATE):
        endpoint = await lab.serve(endpoint.shift("two", 50))
        shifted = time.monotonic()
        seen = [await look(lab, endpoint)]
        while seen[-1].verdict.outcome is not Outcome.FAIL and time.monotonic() - shifted < 60:
            seen.append(await look(lab, endpoint))

    assert set(refused) == {401}
    outcomes = [one.verdict.outcome.value for one in seen]
    assert outcomes[-1] == "fail", [one.verdict.reason for one in seen]
    assert "errors are higher" in seen[-1].verdict.reason
    assert "split_is_wrong" not in outcomes


@pytest.mark.parametrize(("model", "code"), [("failing", "200"), ("steady", "500")])
async def test_rows_that_somebody_else_writes_neither_pass_a_bad_version_nor_fail_a_good_one(
    target_lab: TargetLab, model: str, code: str
) -> None:
    lab = target_lab
    endpoint = await serve_two(lab, "forged", model)
    forged = {"endpoint": endpoint.name, "version": "two", "code": code}

    async with lab.load(endpoint, RATE):
        endpoint = await lab.serve(endpoint.shift("two", 50))
        shifted = time.monotonic()
        seen: list[looks.Look] = []
        while time.monotonic() - shifted < 60:
            await asyncio.to_thread(lab.forge, [{**forged, "at": datetime.now(UTC)} for _ in range(60)])
            seen.append(await look(lab, endpoint))
            if "the router counted" in seen[-1].verdict.reason:
                break

    outcomes = {one.verdict.outcome.value for one in seen}
    assert seen[-1].verdict.outcome is Outcome.CANNOT_SEE, [one.verdict.reason for one in seen]
    assert "requests of version 'two', and the router counted" in seen[-1].verdict.reason
    # The first few rows too many may be fewer than what the router has counted between two looks.
    assert outcomes <= {"cannot_see", "not_enough_evidence"}, [one.verdict.reason for one in seen]


async def test_an_answer_that_a_version_breaks_off_is_broken_for_its_caller_and_an_error_for_the_gate(
    target_lab: TargetLab,
) -> None:
    lab = target_lab
    endpoint = await serve_two(lab, "broken-off", "steady2")
    endpoint = await lab.serve(endpoint.shift("two", 50))
    status = await lab.target.status(endpoint.name)
    key = {"Authorization": f"Bearer {(await lab.target.keys(endpoint.name)).primary}"}
    started = datetime.now(UTC) - timedelta(minutes=1)
    async with httpx.AsyncClient(timeout=30, headers=key) as caller:
        for _ in range(6):
            with pytest.raises(httpx.RemoteProtocolError):
                await caller.post(status.url, json={"breaks_off": True})
        assert (await caller.post(status.url, json={})).status_code == 200

    async def counted() -> tuple[int, int]:
        """Return the requests and the errors that the gate counts."""
        query = EvidenceQuery(
            endpoint=endpoint.name, control="one", treatment="two", started=started, now=datetime.now(UTC),
            gate=Gate(latency_quantiles=()), splits=[], clusters=status.clusters,
            window=EvidenceWindow(bin_width=timedelta(seconds=1), allowed_lag=timedelta(0)),
        )  # fmt: skip
        bins = (await evidence_source(lab.workspace).read(query)).bins
        counts = [counts for one in bins for counts in (one.control, one.treatment)]
        return sum(one.requests for one in counts), sum(one.errors for one in counts)

    async def are_counted() -> bool:
        return (await counted())[0] == 7

    await until(are_counted, "seven requests are counted", timeout_s=60, interval_s=1)
    assert await counted() == (7, 6)
