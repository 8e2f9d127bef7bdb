"""Which version gets which request: the split that is set, only when it is ready, and no request is lost."""

import asyncio
import math

import httpx

from controlled_rollout.target.waiting import wait_until_without_traffic
from tests.conformance.target_lab import CHANGE, MAX_WAIT, TargetLab
from tests.polling import until


async def test_a_rollout_from_the_first_version_to_its_successor_serves_the_split_that_is_set_and_loses_no_request(
    target_lab: TargetLab,
) -> None:
    lab = target_lab
    endpoint = await lab.serve(lab.with_version(lab.endpoint("rollout"), "one", num_replicas=2))

    async with lab.load(endpoint) as load:
        await load.more(100)
        endpoint = await lab.serve(lab.with_version(endpoint, "two", num_replicas=2))
        endpoint = await lab.serve(endpoint.shift("two", 10))
        await load.more(100)
        endpoint = await lab.serve(endpoint.shift("two", 30))
        load.versions.clear()
        await load.more(600)
        share = load.versions["two"] / load.versions.total()
        endpoint = await lab.serve(endpoint.promote("two"))
        await load.more(100)
        endpoint = await lab.serve(endpoint.delete_version("one"))
        await load.more(500)
        load.versions.clear()
        await load.more(100)

    assert load.failed == {}, load.refusals
    # Five standard deviations of a binomial: one false alarm in a million runs.
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 600)
    assert set(load.versions) == {"two"}
    status = await lab.target.status(endpoint.name)
    assert (set(status.versions), status.weight_ppm) == ({"two"}, {"two": 1_000_000})


async def test_a_version_gets_its_share_only_once_it_is_ready(target_lab: TargetLab) -> None:
    lab = target_lab
    endpoint = await lab.serve(lab.with_version(lab.endpoint("patience"), "one"))

    async with lab.load(endpoint) as load:
        stored = await lab.apply(lab.with_version(endpoint, "two", "late", traffic_percentile=50.0))
        await load.more(100)
        waiting = await lab.target.status(endpoint.name)
        before = set(load.versions)
        await lab.served(stored)
        await load.more(100)

    assert (waiting.served_revision, waiting.weight_ppm) == (endpoint.revision, {"one": 1_000_000})
    assert not waiting.versions["two"].ready
    assert before == {"one"}
    assert load.versions["two"] > 20
    assert load.failed == {}, load.refusals


async def test_the_endpoint_is_closed_until_its_first_version_is_ready(target_lab: TargetLab) -> None:
    lab = target_lab
    endpoint = await lab.apply(lab.with_version(lab.endpoint("first"), "one", "late"))
    key = (await lab.target.keys(endpoint.name)).primary

    await lab.answers(endpoint, 503, key=key)
    waiting = await lab.target.status(endpoint.name)
    await lab.served(endpoint)

    assert (waiting.served_revision, waiting.weight_ppm) == (0, {})
    await lab.answers(endpoint, 200, key=key)


async def test_version_that_is_not_ready_delays_neither_the_other_two_nor_a_roll_back(
    target_lab: TargetLab,
) -> None:
    lab = target_lab
    endpoint = lab.with_version(lab.with_version(lab.endpoint("three"), "one"), "two", "steady2")
    endpoint = await lab.serve(endpoint.shift("two", 10))

    # The third cannot start: the default serves its share, and the second gets its own.
    endpoint = await lab.apply(lab.with_version(endpoint, "three", "crash").shift("two", 20).shift("three", 20))
    partial = {"one": 800_000, "two": 200_000}
    await lab.until(endpoint, lambda status: status.weight_ppm == partial, "the ready versions have their shares")
    status = await lab.target.status(endpoint.name)
    assert (status.revision, status.served_revision) == (2, 1)
    assert "'three' is not ready: 'one' serves the rest" in (status.waiting_for or "")

    endpoint = await lab.apply(endpoint.roll_back("two"))
    status = await wait_until_without_traffic(lab.target, endpoint.name, "two", endpoint.revision, timeout=MAX_WAIT)
    assert (status.weight_ppm, status.served_revision) == ({"one": 1_000_000}, 1)

    endpoint = await lab.serve(endpoint.update_version("three", image=lab.images["steady"]))
    status = await lab.target.status(endpoint.name)
    assert (status.served_revision, status.waiting_for) == (endpoint.revision, None)
    assert status.weight_ppm == {"one": 800_000, "three": 200_000}


async def test_traffic_does_not_move_to_a_default_that_has_no_replica(target_lab: TargetLab) -> None:
    lab = target_lab
    endpoint = await lab.serve(lab.with_version(lab.endpoint("nobody"), "two"))
    # A default that is to get nothing is one at once, whatever becomes of it.
    endpoint = lab.with_version(endpoint, "one", "crash", is_default=True).update_version("two", traffic_percentile=100)
    endpoint = await lab.apply(endpoint)
    await lab.served(endpoint)

    async with lab.load(endpoint) as load:
        endpoint = await lab.apply(endpoint.shift("two", 50))
        await lab.until(
            endpoint,
            lambda status: "'one' is not ready: the other versions keep" in (status.waiting_for or ""),
            "the second version keeps its traffic",
        )
        await load.more(100)
        waiting = await lab.target.status(endpoint.name)
        endpoint = await lab.serve(endpoint.update_version("one", image=lab.images["steady"]))
        await load.more(100)

    assert waiting.weight_ppm == {"two": 1_000_000}
    assert load.failed == {}, load.refusals
    assert (await lab.target.status(endpoint.name)).weight_ppm == {"one": 500_000, "two": 500_000}


async def test_a_version_with_a_new_image_is_replaced_without_losing_a_request(target_lab: TargetLab) -> None:
    lab = target_lab
    endpoint = await lab.serve(lab.with_version(lab.endpoint("replaced"), "one", num_replicas=2))
    key = (await lab.target.keys(endpoint.name)).primary

    async with lab.load(endpoint) as load:
        await load.more(50)
        await lab.serve(endpoint.update_version("one", image=lab.images["steady2"]))
        await load.more(100)
        answer = await lab.ask(endpoint, key=key)

    assert load.failed == {}, load.refusals
    assert '"steady2"' in answer.body


async def test_a_deleted_endpoint_answers_what_it_was_asked_and_is_gone(target_lab: TargetLab) -> None:
    lab = target_lab
    endpoint = await lab.serve(lab.with_version(lab.endpoint("deleted"), "one"))
    key = (await lab.target.keys(endpoint.name)).primary
    url = (await lab.target.status(endpoint.name)).url
    slow = asyncio.create_task(lab.ask(endpoint, key=key, sleep_s=2))

    async def is_answering() -> bool:
        return (await lab.target.status(endpoint.name)).versions["one"].active > 0

    await until(is_answering, "a request is being answered")
    await lab.target.delete(endpoint.name, CHANGE)

    assert (await slow).status == 200
    assert endpoint.name not in await lab.target.endpoints()

    async def is_unknown() -> bool:
        async with httpx.AsyncClient(timeout=30) as caller:
            answer = await caller.post(url, json={}, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code in (404, 500), answer.text
        return answer.status_code == 404

    # On a busy machine Envoy Gateway tells its Envoys a little later; until then they refuse everybody.
    await until(is_unknown, "the router knows the endpoint no more")
    await lab.target.delete(endpoint.name, CHANGE)
