"""What a version that fails does: to itself, to the others, and to other endpoints."""

import re

import pytest

from controlled_rollout.errors import DeploymentError
from tests.conformance.target_lab import TargetLab
from tests.polling import until


async def test_a_version_that_cannot_start_fails_with_its_cause_and_last_words_and_harms_no_other(
    target_lab: TargetLab,
) -> None:
    lab = target_lab
    neighbour = await lab.serve(lab.with_version(lab.endpoint("neighbour"), "one"))
    endpoint = await lab.serve(lab.with_version(lab.endpoint("crashing"), "one"))

    async with lab.load(endpoint, rate=40) as load, lab.load(neighbour, rate=20) as neighbours_load:
        broken = await lab.apply(lab.with_version(endpoint, "two", "crash", traffic_percentile=50.0))
        with pytest.raises(DeploymentError) as failure:
            await lab.ready(broken, "two")
        status = await lab.target.status(endpoint.name)
        # The neighbour can be changed as ever.
        neighbour = await lab.serve(neighbour.model_copy(update={"description": "changed meanwhile"}))
        await lab.serve(broken.delete_version("two"))

    assert re.search(r"exited with code \d+; failed 3 times", str(failure.value))
    assert "injected: the model file is damaged" in str(failure.value)
    assert status.versions["two"].failed
    assert "injected: the model file is damaged" in status.versions["two"].log_tail
    assert (status.served_revision, status.weight_ppm) == (endpoint.revision, {"one": 1_000_000})
    assert (load.failed, neighbours_load.failed) == ({}, {}), (load.refusals, neighbours_load.refusals)
    assert set(load.versions) == {"one"}


async def test_an_init_that_never_ends_is_named_as_the_cause_once_its_time_is_over(target_lab: TargetLab) -> None:
    lab = target_lab
    endpoint = await lab.apply(lab.with_version(lab.endpoint("hangs"), "one", "hangs", initial_delay_seconds=3))
    cause = ""

    async def is_named() -> bool:
        nonlocal cause
        cause = (await lab.target.status(endpoint.name)).versions["one"].cause or ""
        return "init() has not returned within initial_delay_seconds (3 s)" in cause

    await until(is_named, "the cause is named", timeout_s=60)

    assert "Startup probe failed" not in cause
    assert "exited with code" not in cause


async def test_a_version_that_dies_once_it_has_traffic_keeps_its_share_and_is_seen_to_fail(
    target_lab: TargetLab,
) -> None:
    lab = target_lab
    both = lab.with_version(lab.with_version(lab.endpoint("flaky"), "one"), "two", "dies")
    endpoint = await lab.serve(both.shift("two", 50))

    async with lab.load(endpoint) as load:
        await lab.until(endpoint, lambda status: not status.versions["two"].ready, "a replica dies at its 51st request")
        await load.more(100)
        status = await lab.target.status(endpoint.name)

    assert status.served_revision == endpoint.revision
    assert status.weight_ppm == {"one": 500_000, "two": 500_000}
    assert sum(load.failed.values()) > 0
    assert load.versions["one"] > 0
