"""Promises of the local target alone, with a real Envoy and real replicas; the others are in tests/conformance."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import requests

from controlled_rollout.collection_settings import Collection
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import ImageError
from controlled_rollout.target.protocol import CollectedCounts
from tests.local.local_target_lab import CHANGE, VERSION_HEADER, Lab
from tests.polling import until


@pytest_asyncio.fixture
async def caller() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30) as client:
        yield client


async def serve_one(lab: Lab, name: str, **settings: Any) -> tuple[Endpoint, str, dict[str, str]]:
    """Serve an endpoint with one version; return it, its URL and the header with its key."""
    settings = {"num_replicas": 1, **settings}
    endpoint = Endpoint(name=name).create_version("one", image=await lab.image(), is_control=True, **settings)
    stored, status = await lab.serve(endpoint)
    keys = await lab.target.keys(name)
    return stored, status.url, {"Authorization": f"Bearer {keys.primary}"}


async def test_a_deleted_endpoint_leaves_neither_keys_nor_processes_but_its_log(
    lab: Lab, caller: httpx.AsyncClient
) -> None:
    await serve_one(lab, "deleted")

    await lab.target.delete("deleted", CHANGE)

    assert not (lab.workspace.endpoints_folder / "deleted").exists()
    assert not any(name.startswith("deleted/") for name in await lab.target.processes())
    assert "init in process" in await lab.target.logs("deleted", "one")


async def test_response_does_not_name_the_router(lab: Lab, caller: httpx.AsyncClient) -> None:
    _, url, opens = await serve_one(lab, "discreet")

    answer = await caller.post(url, json={}, headers=opens)

    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-envoy") or name == "server"]


async def test_the_key_reaches_neither_the_version_nor_any_log(lab: Lab, caller: httpx.AsyncClient) -> None:
    script = (
        "from azureml_inference_server_http.api.aml_request import rawhttp\n"
        "def init():\n    pass\n"
        "@rawhttp\ndef run(request):\n    return {name.lower(): value for name, value in request.headers.items()}\n"
    )
    endpoint = Endpoint(name="secret").create_version("one", image=await lab.image(script=script))
    _, status = await lab.serve(endpoint)
    keys = await lab.target.keys("secret")

    answer = await caller.post(status.url, json={}, headers={"Authorization": f"Bearer {keys.primary}"})

    assert answer.status_code == 200, answer.text
    assert "authorization" not in answer.json()
    for path in lab.workspace.logs_folder.rglob("*.log*"):
        assert keys.primary not in path.read_text(errors="replace")
    for path in (lab.workspace.endpoints_folder / "secret").glob("*.json"):
        assert path.stat().st_mode & 0o077 == 0
    assert lab.workspace.root.stat().st_mode & 0o077 == 0
    assert lab.state.socket.stat().st_mode & 0o077 == 0
    assert lab.state.envoy_admin.stat().st_mode & 0o077 == 0


async def test_a_token_reaches_neither_the_version_nor_any_log_whatever_the_size_of_the_request(
    lab: Lab, caller: httpx.AsyncClient
) -> None:
    script = (
        "from azureml_inference_server_http.api.aml_request import rawhttp\n"
        "def init():\n    pass\n"
        "@rawhttp\ndef run(request):\n    return {name.lower(): value for name, value in request.headers.items()}\n"
    )
    endpoint = Endpoint(name="secret-token", auth=Auth.TOKEN)
    _, status = await lab.serve(endpoint.create_version("one", image=await lab.image(script=script)))
    token = (await lab.target.token(endpoint.name)).token

    for size in (2, 300_000, 5_000_000):
        headers = {"Authorization": f"Bearer {token}"}
        answer = await caller.post(status.url, content=b"x" * size, headers=headers, timeout=60)
        # The router reads no more after its refusal, which this `caller` would only read after it has sent everything.
        wrong = {"Authorization": "Bearer x"}
        refused = await asyncio.to_thread(requests.post, status.url, data=b"x" * size, headers=wrong, timeout=60)
        assert (answer.status_code, refused.status_code) == (200, 401), answer.text
        assert token not in answer.text
        assert "authorization" not in answer.json()
    for path in lab.workspace.logs_folder.rglob("*.log*"):
        assert token not in path.read_text(errors="replace")
    for path in (lab.workspace.endpoints_folder / endpoint.name).glob("*.json"):
        assert path.stat().st_mode & 0o077 == 0


async def test_the_scheme_before_a_key_may_be_in_any_case(lab: Lab, caller: httpx.AsyncClient) -> None:
    _, url, opens = await serve_one(lab, "scheme")
    key = opens["Authorization"].removeprefix("Bearer ")
    # A body on a detour is checked twice.
    large = b"{}" + b" " * 300_000

    async def status(authorization: str, body: bytes = b"{}") -> int:
        return (await caller.post(url, content=body, headers={"Authorization": authorization})).status_code

    assert [await status(f"{word} {key}") for word in ("Bearer", "bearer", "BEARER", "bEaReR")] == [200] * 4
    assert await status(f"bearer {key}", large) == 200
    wrong = (f"Basic {key}", f"bearer {key.lower()}", "bearer", f"bear er {key}", f"bearer {'0' * 9_000}")
    assert [await status(value) for value in wrong] == [401] * len(wrong)


async def test_a_body_above_the_limit_is_answered_413(lab: Lab, caller: httpx.AsyncClient) -> None:
    _, url, opens = await serve_one(lab, "payload")

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(101):
            yield b"0" * 1_000_000

    too_large = await caller.post(url, content=b"0" * 101_000_000, headers=opens)
    too_large_in_pieces = await caller.post(url, content=pieces(), headers=opens)
    large = await caller.post(url, content=b'"' + b"0" * 20_000_000 + b'"', headers=opens)

    assert (too_large.status_code, too_large_in_pieces.status_code) == (413, 413)
    assert too_large.headers["x-controlled-rollout-reason"] == "body-too-large"
    assert large.status_code != 413


async def test_a_version_that_is_too_slow_is_answered_504(lab: Lab, caller: httpx.AsyncClient) -> None:
    _, url, opens = await serve_one(lab, "slow", scoring_timeout_ms=300)

    answer = await caller.post(url, json={"sleep_s": 2}, headers=opens | {"x-envoy-upstream-rq-timeout-ms": "60000"})

    assert answer.status_code == 504
    assert answer.headers[VERSION_HEADER] == "one"


async def test_an_image_that_is_not_in_the_cache_is_refused_and_nothing_changes(lab: Lab) -> None:
    unknown = Endpoint(name="unknown").create_version("one", image="local/none@sha256:" + "0" * 64)

    with pytest.raises(ImageError):
        await lab.apply(unknown)
    with pytest.raises(ImageError, match="names no image"):
        await lab.apply(Endpoint(name="unknown").create_version("one"))

    assert "unknown" not in await lab.target.endpoints()


async def test_version_that_collects_has_each_answered_request_in_the_storage_whatever_becomes_of_its_processes(
    lab: Lab, caller: httpx.AsyncClient
) -> None:
    stored, url, opens = await serve_one(
        lab, "collected", collect_model_data=True, collection=Collection(keep=("age",), layout="jsonl")
    )
    spools, answered = lab.workspace.spools_folder / "collected" / "one", []
    storage = Path(lab.workspace.storage_place)

    async def ask() -> None:
        for _ in range(20):
            answer = await caller.post(url, json={"age": 7, "name": "Ada"}, headers=opens)
            assert answer.status_code == 200
            answered.append(answer.headers["x-request-id"])

    def events() -> list[dict[str, Any]]:
        files = (storage / "modelDataCollector" / "collected" / "one" / "request").rglob("*.jsonl")
        return [json.loads(line) for file in sorted(files) for line in file.read_text().splitlines()]

    async def kill(process: str) -> None:
        pid = (await lab.target.processes())[process]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not Path(f"/proc/{pid}").exists(), f"{process} has ended")

    await ask()
    # It is started again and goes on in its spool.
    await kill("collected/one-1")
    await lab.ready("collected", "one")
    [spool] = spools.glob("*/")
    assert json.loads((spool / "spool.json").read_text())["replica"] == spool.name
    await until(lambda: bool(events()), "the collector is at work")
    await kill("collector")
    await ask()
    # Other settings need other replicas, and what the first one has collected is not lost.
    await lab.serve(stored.update_version("one", collection=Collection(keep=("name",), layout="jsonl")))
    await ask()

    await until(lambda: len(events()) == 60, "all is in the storage")
    assert sorted(event["xrequestid"] for event in events()) == sorted(answered)
    assert [event["data"] for event in events()].count([{"age": 7}]) == 40
    assert [event["data"] for event in events()].count([{"name": "Ada"}]) == 20
    await until(lambda: not spool.exists(), "the spool of the replica that has ended is deleted")
    assert len(list(spools.glob("*/"))) == 1

    async def all_counted() -> bool:
        collected = (await lab.target.status("collected")).versions["one"].collected
        return collected == CollectedCounts(captured=60)

    await until(all_counted, "the status says what was captured")
    # The version goes, and leaves nothing behind that is not in the storage.
    await lab.target.delete("collected", CHANGE)
    await until(lambda: not list(spools.glob("*/")), "all spools are deleted")
    assert len(events()) == 60

    async def has_ended() -> bool:
        return "collector" not in await lab.target.processes()

    await until(has_ended, "the collector ends when there is nothing to collect")
