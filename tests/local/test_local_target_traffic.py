"""The local target with a real Envoy and real replicas: who gets which request, and that none is lost."""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
import pytest_asyncio

from controlled_rollout.endpoint import Auth, Endpoint, EndpointError
from controlled_rollout.errors import ConflictError, EndpointNotFoundError, ImageError
from controlled_rollout.sizing import Load as Measured
from tests.local.local_target_lab import CHANGE, VERSION_HEADER, Lab, running, steady_load
from tests.polling import until


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest_asyncio.fixture
async def caller() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30) as client:
        yield client


async def serve_one(lab: Lab, name: str, **settings: Any) -> tuple[Endpoint, str, dict[str, str]]:
    """Serve an endpoint with one version; return it, its URL and the header that opens it."""
    endpoint = Endpoint(name=name).create_version("one", image=await lab.image(), is_control=True, **settings)
    stored, status = await lab.serve(endpoint)
    keys = await lab.target.keys(name)
    return stored, status.url, {"Authorization": f"Bearer {keys.primary}"}


async def test_a_rollout_from_the_first_version_to_its_successor_loses_no_request(lab: Lab) -> None:
    endpoint, url, _ = await serve_one(lab, "rollout")
    key = (await lab.target.keys("rollout")).primary

    async with steady_load(url, key) as load:
        await load.more(100)
        endpoint, _ = await lab.serve(endpoint.create_version("two", image=await lab.image("second")))
        endpoint, _ = await lab.serve(endpoint.update_version("two", traffic_percentile=50.0))
        await load.more(200)
        endpoint, _ = await lab.serve(endpoint.promote("two"))
        await load.more(100)
        endpoint, _ = await lab.serve(endpoint.delete_version("one"))
        await until(lambda: _gone(lab, "rollout/one"), "the replicas of the old version have ended")
        await load.more(100)

    assert load.failed == {}
    assert load.versions["one"] > 150
    assert load.versions["two"] > 150
    assert load.versions.total() == load.sent


async def _gone(lab: Lab, prefix: str) -> bool:
    return not any(name.startswith(prefix) for name in await lab.target.processes())


async def test_the_split_that_is_set_is_the_split_that_is_served_and_changing_it_loses_nothing(lab: Lab) -> None:
    endpoint, url, _ = await serve_one(lab, "weights", num_replicas=1)
    endpoint, _ = await lab.serve(endpoint.create_version("two", image=await lab.image("second")))
    await lab.ready("weights", "two")
    key = (await lab.target.keys("weights")).primary

    async with steady_load(url, key, rate=400) as load:
        for share in (10.0, 90.0, 5.0, 70.0, 30.0):
            endpoint, _ = await lab.serve(endpoint.update_version("two", traffic_percentile=share))
        load.versions.clear()
        await load.more(1500)
        seen = dict(load.versions)

    assert load.failed == {}
    total = sum(seen.values())
    # Five standard deviations of a binomial with p = 0.3: one false alarm in a million runs.
    assert abs(seen["two"] / total - 0.3) < 5 * math.sqrt(0.3 * 0.7 / total)


async def test_one_version_is_reached_on_purpose_and_every_answer_says_which_it_was(
    lab: Lab, caller: httpx.AsyncClient
) -> None:
    endpoint, url, opens = await serve_one(lab, "pinned")
    await lab.serve(endpoint.create_version("two", image=await lab.image("second")))
    await lab.ready("pinned", "two")

    by_weight = await caller.post(url, json={}, headers=opens)
    by_name = await caller.post(url, json={}, headers=opens | {VERSION_HEADER: "two"})
    unknown = await caller.post(url, json={}, headers=opens | {VERSION_HEADER: "three"})
    unknown_without_key = await caller.post(url, json={}, headers={VERSION_HEADER: "three"})
    swagger = await caller.get(url.replace("/score", "/swagger.json"), headers=opens)

    assert (by_weight.status_code, by_weight.headers[VERSION_HEADER], by_weight.json()["note"]) == (200, "one", "first")
    assert (by_name.status_code, by_name.headers[VERSION_HEADER], by_name.json()["note"]) == (200, "two", "second")
    assert unknown.status_code == 404
    assert "one, two" in unknown.json()["message"]
    assert unknown_without_key.status_code == 401
    assert "two" not in unknown_without_key.text
    assert swagger.status_code == 200
    assert not [name for name in by_weight.headers if name.startswith("x-envoy") or name == "server"]


async def test_a_key_is_asked_for_and_either_can_be_replaced_while_the_other_works(
    lab: Lab, caller: httpx.AsyncClient
) -> None:
    _, url, _ = await serve_one(lab, "keys")
    keys = await lab.target.keys("keys")

    async def answers(key: str | None) -> int:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return (await caller.post(url, json={}, headers=headers)).status_code

    assert [await answers(key) for key in (None, "x", "wrong", keys.primary, keys.secondary)] == [
        401,
        401,
        401,
        200,
        200,
    ]
    async with steady_load(url, keys.secondary) as load:
        await load.more(50)
        changed = await lab.target.regenerate_key("keys", "primary")

        async def opens() -> bool:
            return await answers(changed.primary) == 200

        await until(opens, "the new key opens")
        await load.more(50)

    assert load.failed == {}
    assert changed.secondary == keys.secondary
    assert changed.primary != keys.primary
    assert await answers(keys.primary) == 401


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


async def test_an_endpoint_is_open_only_when_that_is_asked_for_by_name(lab: Lab, caller: httpx.AsyncClient) -> None:
    open_endpoint = Endpoint(name="open", auth=Auth.NONE).create_version("one", image=await lab.image())
    _, status = await lab.serve(open_endpoint)

    assert (await caller.post(status.url, json={})).status_code == 200
    with pytest.raises(EndpointError, match="auth='key'"):
        await lab.apply(Endpoint(name="tokens", auth=Auth.TOKEN))
    assert "tokens" not in await lab.target.endpoints()


async def test_collecting_data_is_refused_and_not_silently_left_out(lab: Lab) -> None:
    collecting = Endpoint(name="collecting").create_version("one", image=await lab.image(), collect_model_data=True)

    with pytest.raises(EndpointError, match="cannot collect inputs and predictions yet"):
        await lab.apply(collecting)

    assert "collecting" not in await lab.target.endpoints()


async def test_a_body_above_the_limit_is_answered_413(lab: Lab, caller: httpx.AsyncClient) -> None:
    _, url, opens = await serve_one(lab, "payload")

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(101):
            yield b"0" * 1_000_000

    too_large = await caller.post(url, content=b"0" * 101_000_000, headers=opens)
    too_large_in_pieces = await caller.post(url, content=pieces(), headers=opens)
    large = await caller.post(url, content=b'"' + b"0" * 20_000_000 + b'"', headers=opens)

    assert (too_large.status_code, too_large_in_pieces.status_code) == (413, 413)
    assert large.status_code != 413


async def test_a_version_that_is_too_slow_is_answered_504(lab: Lab, caller: httpx.AsyncClient) -> None:
    _, url, opens = await serve_one(lab, "slow", scoring_timeout_ms=300)

    answer = await caller.post(url, json={"sleep_s": 2}, headers=opens | {"x-envoy-upstream-rq-timeout-ms": "60000"})

    assert answer.status_code == 504
    assert answer.headers[VERSION_HEADER] == "one"


async def test_a_version_gets_its_share_only_once_it_is_ready(lab: Lab) -> None:
    slow_start = "import time\ndef init():\n    time.sleep(2)\ndef run(data):\n    return {}\n"
    endpoint, url, _ = await serve_one(lab, "patience")
    key = (await lab.target.keys("patience")).primary

    async with steady_load(url, key) as load:
        stored = await lab.apply(
            endpoint.create_version("two", image=await lab.image(script=slow_start), traffic_percentile=50.0)
        )
        await load.more(100)
        status = await lab.target.status("patience")
        served_before_it_is_ready = dict(load.versions)
        await lab.served(stored)
        await load.more(100)

    assert status.served_revision == endpoint.revision
    assert not status.versions["two"].ready
    assert set(served_before_it_is_ready) == {"one"}
    assert load.versions["two"] > 20
    assert load.failed == {}


async def test_of_two_writers_one_wins_and_the_other_learns_who_and_why(lab: Lab) -> None:
    endpoint, _, _ = await serve_one(lab, "writers")
    changes = [
        endpoint.create_version("two", image=endpoint.versions["one"].image),
        endpoint.create_version("three", image=endpoint.versions["one"].image),
    ]

    results = await asyncio.gather(*(lab.apply(change) for change in changes), return_exceptions=True)

    winners = [result for result in results if isinstance(result, Endpoint)]
    losers = [result for result in results if isinstance(result, ConflictError)]
    assert (len(winners), len(losers)) == (1, 1)
    assert "a test" in str(losers[0])
    assert "to see what happens" in str(losers[0])
    assert [revision.number for revision in await lab.target.history("writers")] == [1, 2]
    assert await lab.apply(winners[0]) == winners[0]
    assert len(await lab.target.history("writers")) == 2


async def test_an_image_that_is_not_in_the_cache_is_refused_and_nothing_changes(lab: Lab) -> None:
    unknown = Endpoint(name="unknown").create_version("one", image="local/none@sha256:" + "0" * 64)

    with pytest.raises(ImageError):
        await lab.apply(unknown)
    with pytest.raises(ImageError, match="names no image"):
        await lab.apply(Endpoint(name="unknown").create_version("one"))

    assert "unknown" not in await lab.target.endpoints()


async def test_a_deleted_endpoint_is_gone_with_its_keys_and_processes_but_its_log_stays(
    lab: Lab, caller: httpx.AsyncClient
) -> None:
    _, url, opens = await serve_one(lab, "deleted")
    slow = asyncio.create_task(caller.post(url, json={"sleep_s": 1}, headers=opens))
    await until(lambda: _active(lab, "deleted"), "a request is being answered")

    await lab.target.delete("deleted", CHANGE)

    assert (await slow).status_code == 200
    assert (await caller.post(url, json={}, headers=opens)).status_code == 404
    assert not (lab.workspace.endpoints_folder / "deleted").exists()
    assert await _gone(lab, "deleted/")
    assert "init in process" in await lab.target.logs("deleted", "one")
    with pytest.raises(EndpointNotFoundError, match="deleted"):
        await lab.target.status("deleted")
    await lab.target.delete("deleted", CHANGE)


async def _active(lab: Lab, name: str) -> int:
    return (await lab.target.status(name)).versions["one"].active


async def test_a_version_with_a_new_image_is_replaced_without_losing_a_request(lab: Lab) -> None:
    endpoint, url, _ = await serve_one(lab, "replaced", num_replicas=2)
    key = (await lab.target.keys("replaced")).primary

    async with steady_load(url, key) as load:
        await load.more(50)
        await lab.serve(endpoint.update_version("one", image=await lab.image("second")))
        await load.more(100)
        async with httpx.AsyncClient() as caller:
            note = (await caller.post(url, json={}, headers={"Authorization": f"Bearer {key}"})).json()["note"]

    assert load.failed == {}
    assert note == "second"


async def test_scaling_up_and_down_loses_no_request(lab: Lab) -> None:
    _, url, _ = await serve_one(lab, "scaled")
    key = (await lab.target.keys("scaled")).primary

    async with steady_load(url, key) as load:
        await lab.target.scale("scaled", "one", 3)
        await until(lambda: _replicas(lab, 3), "three replicas")
        await load.more(100)
        await lab.target.scale("scaled", "one", 1)
        await until(lambda: _replicas(lab, 1), "one replica")
        await load.more(100)

    assert load.failed == {}
    with pytest.raises(EndpointError, match="0 replicas"):
        await lab.target.scale("scaled", "one", 0)


async def _replicas(lab: Lab, number: int) -> bool:
    status = (await lab.target.status("scaled")).versions["one"]
    running = [name for name in await lab.target.processes() if name.startswith("scaled/")]
    return status.ready and len(status.replicas) == number == len(running)


async def test_the_load_of_a_version_is_what_it_is_sent_and_how_long_it_takes(lab: Lab) -> None:
    slow = "import time\ndef init():\n    pass\ndef run(data):\n    time.sleep(0.02)\n    return {}\n"
    endpoint = Endpoint(name="measured").create_version("one", image=await lab.image(script=slow), num_replicas=2)
    endpoint, status = await lab.serve(endpoint)
    await lab.serve(endpoint.create_version("two", image=await lab.image("second")))
    key = (await lab.target.keys("measured")).primary

    async with steady_load(status.url, key, rate=40) as load:
        await until(lambda: _measures(lab, "measured", 40), "the load is the load that is sent")
        began = time.perf_counter()
        found = await lab.target.load("measured")
        took_s = time.perf_counter() - began

    assert load.failed == {}
    assert set(found) == {"one", "two"}
    assert found["one"].request_time_s is not None
    assert 0.02 <= found["one"].request_time_s < 0.1
    assert found["two"] == Measured(requests_per_s=0.0)
    assert took_s < 0.2


async def _measures(lab: Lab, name: str, rate: float) -> bool:
    found = (await lab.target.load(name)).get("one")
    return found is not None and abs(found.requests_per_s - rate) < 0.1 * rate


async def test_who_watches_learns_every_change_of_a_version_and_nothing_of_its_requests(
    lab: Lab, caller: httpx.AsyncClient
) -> None:
    _, url, opens = await serve_one(lab, "watched")

    async with aclosing(lab.target.watch("watched")) as statuses:
        first = await anext(statuses)
        for _ in range(5):
            assert (await caller.post(url, json={}, headers=opens)).status_code == 200
        await lab.target.scale("watched", "one", 2)
        seen = [first]
        while not (seen[-1].versions["one"].ready and seen[-1].versions["one"].wanted_replicas == 2):
            seen.append(await asyncio.wait_for(anext(statuses), 30))

    assert (first.versions["one"].ready, first.versions["one"].wanted_replicas) == (True, 1)
    assert all(before != after for before, after in itertools.pairwise(seen))
    assert {status.versions["one"].requests for status in seen} == {0}
    assert (await lab.target.status("watched")).versions["one"].requests == 5
