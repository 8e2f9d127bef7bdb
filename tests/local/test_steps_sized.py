"""Scaling under real load: traffic moves only to versions that are large enough, and back to versions of any size."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout import steps
from controlled_rollout.errors import DeploymentError
from controlled_rollout.target.protocol import Change
from tests.local.local_target_lab import Lab, steady_load
from tests.polling import until

# One replica answers 20 requests/s: 40/s keep two of them busy, and ask for three or four at 70 %.
SLOW = """
import pathlib, time

def init():
    while pathlib.Path({flag!r}).exists():
        time.sleep(0.05)

def run(data):
    time.sleep(0.05)
    return {{}}
"""
RATE = 40
OWNER = "weekly/run-1"
CHANGE = Change(who=OWNER)
FIXED = {"num_replicas": 4}


def flag_of(lab: Lab) -> Path:
    """Return the file whose existence keeps new replicas from becoming ready."""
    return lab.folder / "no-replica-comes"


async def deploy(lab: Lab, endpoint: str, version: str, settings: dict[str, Any]) -> None:
    image = await lab.image(script=SLOW.format(flag=str(flag_of(lab))))
    await steps.deploy(
        lab.workspace,
        endpoint,
        version,
        image=image,
        owner=OWNER,
        change=CHANGE,
        settings=settings,
        progress=lambda line: None,
    )


async def measured(lab: Lab, endpoint: str, *, part: float = 0.6) -> bool:
    loads = (await lab.target.load(endpoint)).values()
    return sum(load.requests_per_s for load in loads) > part * RATE and any(load.request_time_s for load in loads)


async def under_load(lab: Lab, endpoint: str) -> Any:
    """Serve the first version of an endpoint and yield a steady load on it."""
    return steady_load(await lab.url(endpoint), (await lab.target.keys(endpoint)).primary, rate=RATE)


async def replicas_wanted(lab: Lab, endpoint: str, version: str) -> int:
    return (await lab.target.status(endpoint)).versions[version].wanted_replicas


async def test_version_is_scaled_for_its_share_before_each_shift_without_failed_requests(
    lab: Lab,
) -> None:
    await deploy(lab, "growing", "old", FIXED)
    await deploy(lab, "growing", "new", {})
    common: dict[str, Any] = {"change": CHANGE, "owner": OWNER}
    messages: list[str] = []

    async with await under_load(lab, "growing") as load:
        await until(lambda: measured(lab, "growing", part=0.9), "the whole load is measured")
        await steps.shift(lab.workspace, "growing", "new", percentile=50, progress=messages.append, **common)
        at_half = await replicas_wanted(lab, "growing", "new")
        await load.more(RATE)
        # By a person: a run would need the decision of a gate.
        await steps.promote(lab.workspace, "growing", "new", change=CHANGE, progress=messages.append)
        at_all = await replicas_wanted(lab, "growing", "new")
        await load.more(RATE)
        await steps.retire(lab.workspace, "growing", "old", change=CHANGE, progress=messages.append)
        await load.more(RATE)

    assert load.failed == {}
    assert 1 < at_half <= at_all <= 10
    assert any(line.startswith("version 'new' goes from 1 to ") for line in messages)
    assert await replicas_wanted(lab, "growing", "new") >= at_all


async def test_share_that_needs_more_than_the_most_replicas_is_refused(
    lab: Lab,
) -> None:
    await deploy(lab, "limited", "old", FIXED)
    await deploy(lab, "limited", "new", {"autoscale_max_replicas": 1})
    before = await lab.target.endpoint("limited")

    async with await under_load(lab, "limited") as load:
        await until(lambda: measured(lab, "limited"), "the load is measured")
        with pytest.raises(DeploymentError, match=r"'new' would need \d+ replicas for 90 % of the load .* allows 1"):
            await steps.shift(
                lab.workspace,
                "limited",
                "new",
                percentile=90,
                change=CHANGE,
                progress=lambda line: None,
            )
        with pytest.raises(DeploymentError, match=r"'new' would need \d+ replicas for 100 % of the load"):
            await steps.promote(lab.workspace, "limited", "new", change=CHANGE, progress=lambda line: None)

    assert load.failed == {}
    assert await lab.target.endpoint("limited") == before
    assert await replicas_wanted(lab, "limited", "new") == 1


@pytest.mark.parametrize("most", [1, 10])
async def test_roll_back_does_not_wait_for_replicas_that_never_become_ready(lab: Lab, most: int) -> None:
    endpoint = f"back-{most}"
    await deploy(lab, endpoint, "old", {"autoscale_max_replicas": most})
    await deploy(lab, endpoint, "new", FIXED)
    await steps.shift(lab.workspace, endpoint, "new", percentile=100, change=CHANGE, progress=lambda line: None)
    messages: list[str] = []

    async with await under_load(lab, endpoint):
        await until(lambda: measured(lab, endpoint), "the load is measured")
        flag_of(lab).touch()
        began = time.monotonic()
        try:
            stored = await steps.roll_back(
                lab.workspace,
                endpoint,
                "new",
                change=Change(who=OWNER, reason="it fails"),
                timeout=timedelta(seconds=20),
                progress=messages.append,
            )
        finally:
            flag_of(lab).unlink()
        took_s = time.monotonic() - began

    assert stored is not None
    assert stored.effective_traffic() == {"old": 100, "new": 0}
    assert took_s < 10
    if most == 1:
        assert any("would need" in line and "allows 1" in line for line in messages)
        assert await replicas_wanted(lab, endpoint, "old") == 1
    else:
        assert "rolling back without waiting for more replicas: this took longer than 5 s" in messages
        assert await replicas_wanted(lab, endpoint, "old") > 1


async def test_roll_back_to_a_former_control_is_not_refused_for_lack_of_replicas(lab: Lab) -> None:
    await deploy(lab, "former", "old", {"autoscale_max_replicas": 1})
    await deploy(lab, "former", "new", FIXED)
    await steps.promote(lab.workspace, "former", "new", change=CHANGE, progress=lambda line: None)

    async with await under_load(lab, "former"):
        await until(lambda: measured(lab, "former"), "the load is measured")
        with pytest.raises(DeploymentError, match="allows 1"):
            await steps.promote(lab.workspace, "former", "old", change=CHANGE, progress=lambda line: None)
        stored = await steps.roll_back(
            lab.workspace, "former", "new", to="old", change=CHANGE, progress=lambda line: None
        )

    assert stored is not None
    assert stored.effective_traffic() == {"old": 100, "new": 0}


async def test_shift_without_load_scales_nothing(lab: Lab) -> None:
    await deploy(lab, "quiet", "old", {})
    await deploy(lab, "quiet", "new", {})

    took_s = []
    for percentile in (10, 50, 90):
        began = time.perf_counter()
        await steps.shift(
            lab.workspace,
            "quiet",
            "new",
            percentile=percentile,
            change=CHANGE,
            progress=lambda line: None,
        )
        took_s.append(time.perf_counter() - began)

    assert await replicas_wanted(lab, "quiet", "new") == 1
    assert min(took_s) < 0.5
