"""A version that has no room: what its callers are told, what telemetry has, and who else is answered as ever."""

import asyncio
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import requests

from controlled_rollout.endpoint import VERSION_HEADER, Endpoint
from controlled_rollout.evidence import EvidenceQuery, EvidenceWindow, evidence_source
from controlled_rollout.gate import Category, Counts, Gate
from tests.conformance.target_lab import Answer, TargetLab
from tests.polling import until

REASON = "x-controlled-rollout-reason"
# Longer than anything else here takes on a busy machine.
LONG_S = 20.0


@asynccontextmanager
async def busy_replica(
    lab: TargetLab, endpoint: Endpoint, key: str, version: str, longest_s: float = LONG_S, *, by_name: bool = False
) -> AsyncIterator[asyncio.Task[Answer]]:
    """Keep one slot of a version busy for as long as the block runs, and no longer than so many seconds."""
    named = version if by_name else None
    held = asyncio.create_task(lab.ask(endpoint, key=key, version=named, sleep_s=longest_s))

    async def is_busy() -> bool:
        return (await lab.target.status(endpoint.name)).versions[version].active == 1

    await until(is_busy, "a request is being scored", timeout_s=30)
    try:
        yield held
    finally:
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)


def curl(url: str, key: str, body: str, *options: str) -> dict[str, str]:
    """Send a request with curl; return the answer's headers in lower case, its status as `status`."""
    command = ["curl", "--silent", "--max-time", "60", "--dump-header", "-", "--output", "/dev/null", url]
    sent = ["--header", f"Authorization: Bearer {key}", "--data", body, *options]
    # Tests that share the Gateway may have it close connections: then there is no answer, and curl says so.
    for is_last in (False, False, True):
        run = subprocess.run([*command, *sent], check=is_last, capture_output=True, text=True)
        if run.returncode == 0:
            break
    lines = run.stdout.strip().splitlines()
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    return {"status": lines[0].split()[1], **headers}


async def counted(lab: TargetLab, endpoint: Endpoint, field: str = "reason") -> tuple[Counts, Counter[str]]:
    """Return what the gate counts of version `one`, and how many rows telemetry has for each reason, or other field."""
    reasons = f"""
        AppRequests
        | where tostring(Properties.endpoint) == '{endpoint.name}'
        | project TimeGenerated, Version = tostring(Properties.version), Value = tostring(Properties.{field})
    """
    now = datetime.now(UTC)
    query = EvidenceQuery(
        endpoint=endpoint.name, control="one", treatment="two", started=now - timedelta(minutes=5), now=now,
        gate=Gate(latency_quantiles=(), categories={"reason": Category(kql=reasons)}), splits=[],
        clusters=(await lab.target.status(endpoint.name)).clusters,
        window=EvidenceWindow(bin_width=timedelta(seconds=1), allowed_lag=timedelta(0)),
    )  # fmt: skip
    all_counts = [one.control for one in (await evidence_source(lab.workspace).read(query)).bins]
    found: Counter[str] = Counter()
    for counts in all_counts:
        found.update(counts.categories.get("reason", {}))
    total = Counts(
        requests=sum(counts.requests for counts in all_counts),
        errors=sum(counts.errors for counts in all_counts),
        overloaded=sum(counts.overloaded for counts in all_counts),
    )
    return total, found


async def test_each_refusal_tells_its_caller_and_telemetry_why(target_lab: TargetLab) -> None:
    lab = target_lab
    settings: dict[str, Any] = {"num_replicas": 1, "max_request_wait_time": 400, "scoring_timeout_ms": 30_000}
    endpoint = lab.with_version(
        lab.endpoint("refusals"), "one", environment_variables={"MAX_BODY_BYTES": "200"}, **settings
    )
    endpoint = await lab.serve(endpoint)
    url, key = (await lab.target.status(endpoint.name)).url, (await lab.target.keys(endpoint.name)).primary

    # The status counts requests that name their version as well.
    async with busy_replica(lab, endpoint, key, "one", by_name=True):
        waited = await asyncio.to_thread(curl, url, key, "{}")
        again = await asyncio.to_thread(
            requests.post, url, data="{}", headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
    too_large = await asyncio.to_thread(curl, url, key, "x" * 201)

    assert (waited["status"], waited[REASON], waited["retry-after"]) == ("503", "waited-too-long", "1")
    assert (again.status_code, again.headers[REASON], again.headers["Retry-After"]) == (503, "waited-too-long", "1")
    assert (too_large["status"], too_large[REASON]) == ("413", "body-too-large")
    # They are the version's answers, and say nothing to callers of how the router deals with them.
    assert waited[VERSION_HEADER] == too_large[VERSION_HEADER] == "one"
    assert not [name for name in (*waited, *again.headers) if "send-again" in name.lower()]

    async def are_counted() -> bool:
        total, reasons = await counted(lab, endpoint)
        return total.overloaded >= 2 and reasons["waited-too-long"] >= 2 and reasons["body-too-large"] >= 1

    await until(are_counted, "the requests are in the store, with their reasons", timeout_s=90, interval_s=1)
    total, _ = await counted(lab, endpoint)
    # The gate takes them for no errors of the model, and what names a version is no evidence.
    assert total.errors == 0


async def test_a_caller_who_hangs_up_in_the_queue_is_no_error_of_the_model(target_lab: TargetLab) -> None:
    lab = target_lab
    settings: dict[str, Any] = {"num_replicas": 1, "max_request_wait_time": 20_000, "scoring_timeout_ms": 30_000}
    endpoint = await lab.serve(lab.with_version(lab.endpoint("hang-ups"), "one", **settings))
    url, key = (await lab.target.status(endpoint.name)).url, (await lab.target.keys(endpoint.name)).primary

    def hang_up(body: str) -> int:
        command = ["curl", "--silent", "--max-time", "3", url, "--header", f"Authorization: Bearer {key}"]
        return subprocess.run([*command, "--data", body], check=False, capture_output=True).returncode

    async with busy_replica(lab, endpoint, key, "one", 15.0) as held:
        in_the_queue = await asyncio.gather(*(asyncio.to_thread(hang_up, "{}") for _ in range(3)))
        answer = await held
    on_the_model = await asyncio.to_thread(hang_up, '{"sleep_s": 12}')

    # 28: curl has waited for too long.
    assert [*in_the_queue, on_the_model] == [28] * 4
    assert (answer.status, answer.headers["x-controlled-rollout-left-queue"]) == (200, "3")

    async def are_counted() -> bool:
        return (await counted(lab, endpoint))[0] == Counts(requests=5, errors=1, overloaded=3)

    await until(are_counted, "who left the queue found no room, who left the model is an error", timeout_s=90)


async def test_a_version_that_takes_too_long_is_a_time_out_and_not_a_wait(target_lab: TargetLab) -> None:
    lab = target_lab
    settings: dict[str, Any] = {"num_replicas": 1, "max_request_wait_time": 20_000, "scoring_timeout_ms": 4_000}
    endpoint = await lab.serve(lab.with_version(lab.endpoint("time-outs"), "one", **settings))
    url, key = (await lab.target.status(endpoint.name)).url, (await lab.target.keys(endpoint.name)).primary

    slow = asyncio.create_task(asyncio.to_thread(curl, url, key, '{"sleep_s": 30}'))
    # This one waits longer than one may be scored, and is scored in time.
    behind = [asyncio.create_task(lab.ask(endpoint, key=key, sleep_s=1.5)) for _ in range(3)]
    late, answers = await slow, await asyncio.gather(*behind)

    assert (late["status"], late[REASON]) == ("504", "timeout")
    assert "retry-after" not in late
    assert [answer.status for answer in answers] == [200, 200, 200]
    # The last one has waited for the others; how long it was scored is told without that.
    scored_ms = [float(answer.headers["x-controlled-rollout-scoring-ms"]) for answer in answers]
    assert all(1_500 <= each < 4_000 for each in scored_ms)

    async def is_told() -> bool:
        return (await counted(lab, endpoint, "scoring_ms"))[1].keys() >= {f"{each:.1f}" for each in scored_ms}

    await until(is_told, "telemetry has how long they were scored", timeout_s=90, interval_s=1)


async def test_an_overloaded_version_keeps_no_other_from_being_answered(target_lab: TargetLab) -> None:
    lab = target_lab
    endpoint = lab.with_version(lab.endpoint("neighbours"), "one")
    endpoint = lab.with_version(endpoint, "two", num_replicas=1, max_request_wait_time=300)
    endpoint = await lab.serve(endpoint)
    key = (await lab.target.keys(endpoint.name)).primary
    of_two: Counter[str] = Counter()
    ending = asyncio.Event()

    async def ask_too_much() -> None:
        """Ask version `two` for its next answer as soon as it has given one."""
        while not ending.is_set():
            answer = await lab.ask(endpoint, key=key, version="two", sleep_s=0.5)
            of_two[f"{answer.status} {answer.headers.get(REASON, '')}".strip()] += 1

    callers = [asyncio.create_task(ask_too_much()) for _ in range(6)]
    try:
        async with lab.load(endpoint, 20.0) as load:
            await load.more(100)
            await until(lambda: of_two["503 waited-too-long"] and of_two["200"], "version two is overloaded")
    finally:
        ending.set()
        await asyncio.gather(*callers)

    assert load.failed == {}, load.refusals
    assert set(of_two) == {"200", "503 waited-too-long"}


async def test_a_request_goes_to_the_replica_that_is_free(target_lab: TargetLab) -> None:
    lab = target_lab
    settings: dict[str, Any] = {"num_replicas": 2, "max_request_wait_time": 1_500, "scoring_timeout_ms": 30_000}
    endpoint = await lab.serve(lab.with_version(lab.endpoint("free-replica"), "one", **settings))
    key = (await lab.target.keys(endpoint.name)).primary

    answers: list[Answer] = []
    async with busy_replica(lab, endpoint, key, "one"):
        ending = time.monotonic() + LONG_S / 2
        while len(answers) < 20 and time.monotonic() < ending:
            answers.append(await lab.ask(endpoint, key=key))

    # The router sends it there, or the busy replica gives it back before it was scored.
    assert {answer.status for answer in answers} == {200}, [answer.body for answer in answers]


async def test_odd_clients_are_answered_and_endless_headers_are_refused(target_lab: TargetLab) -> None:
    lab = target_lab
    endpoint = await lab.serve(lab.with_version(lab.endpoint("odd-clients"), "one"))
    url, key = (await lab.target.status(endpoint.name)).url, (await lab.target.keys(endpoint.name)).primary

    http2 = await asyncio.to_thread(curl, url, key, "{}", "--http2-prior-knowledge")
    many = [part for number in range(1_000) for part in ("--header", f"X-{number}: 1")]
    thousand_headers = await asyncio.to_thread(curl, url, key, "{}", *many)
    long_header = await asyncio.to_thread(curl, url, key, "{}", "--header", f"X-Long: {'x' * 100_000}")

    assert [answer["status"] for answer in (http2, thousand_headers, long_header)] == ["200", "431", "431"]
    assert await pipelined(url, key, 3) == [200, 200, 200]


async def pipelined(url: str, key: str, number: int) -> list[int]:
    """Send requests on one connection without waiting for answers; return the statuses of these, in their order."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        writer.write(
            number
            * (
                f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {key}\r\n"
                "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            ).encode()
        )
        statuses = []
        for _ in range(number):
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            statuses.append(int(head.split()[1]))
        return statuses
    finally:
        writer.close()
