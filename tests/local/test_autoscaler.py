"""Replicas follow the load of a real router, and nobody who calls meanwhile gets an error."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.local import supervisor
from controlled_rollout.target.protocol import VersionStatus
from tests.local.local_target_lab import Lab, running, steady_load
from tests.polling import until

# While a file exists, a request takes 0.2 s and no processor: a replica answers 5 of them a second.
SLOW = """
import pathlib, time

def init():
    pass

def run(data):
    time.sleep(0.2 if pathlib.Path({flag!r}).exists() else 0)
    return {{}}
"""
DOWN_WINDOW_S = 6
MOST = 3
CALLERS = 6
SETTINGS: dict[str, Any] = {"autoscale_max_replicas": MOST, "max_request_wait_time": 60_000}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    program = str(Path(__file__).with_name("impatient_supervisor.py"))
    command = supervisor._command

    def impatient(*arguments: Any, **named: Any) -> list[str]:
        return [sys.executable, "-P", program, str(DOWN_WINDOW_S), command(*arguments, **named)[-1]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "_command", impatient)
        with running(tmp_path_factory.mktemp("autoscaler")) as lab:
            yield lab


def slow_flag(lab: Lab) -> Path:
    """Return the file that makes requests slow."""
    return lab.folder / "slow"


async def serve(lab: Lab, name: str) -> tuple[str, str]:
    """Serve a version of one replica; return the endpoint's URL and a key."""
    image = await lab.image(script=SLOW.format(flag=str(slow_flag(lab))))
    await lab.serve(Endpoint(name=name).create_version("one", is_control=True, image=image, **SETTINGS))
    return await lab.url(name), (await lab.target.keys(name)).primary


async def version_of(lab: Lab, name: str) -> VersionStatus:
    return (await lab.target.status(name)).versions["one"]


async def has_replicas(lab: Lab, name: str, number: int) -> bool:
    """Return whether a version should have, and has, so many replicas, all of them ready."""
    version = await version_of(lab, name)
    states = [replica.state for replica in version.replicas]
    return version.wanted_replicas == number and states == ["ready"] * number


async def test_replicas_follow_the_load_up_to_the_most_and_are_drained_when_it_ends(lab: Lab) -> None:
    url, key = await serve(lab, "followed")
    assert await has_replicas(lab, "followed", 1)

    slow_flag(lab).touch()
    async with steady_load(url, key, rate=1000, connections=CALLERS) as load:
        await until(lambda: has_replicas(lab, "followed", MOST), "all replicas are ready", timeout_s=120)
        busy = await version_of(lab, "followed")
        await load.more(5 * CALLERS)
        assert (await version_of(lab, "followed")).wanted_replicas == MOST  # whatever the load asks for
    slow_flag(lab).unlink()
    async with steady_load(url, key, rate=5, connections=2) as calm:
        await until(lambda: has_replicas(lab, "followed", 1), "the surplus replicas have ended", timeout_s=120)
        await calm.more(10)

    assert load.failed == {} and calm.failed == {}, (load.refusals, calm.refusals)
    assert busy.ready and busy.scaling is not None and "busy" in busy.scaling


async def test_supervisor_that_starts_again_starts_as_many_replicas_as_there_were(lab: Lab) -> None:
    await serve(lab, "restarted")
    await lab.target.scale("restarted", "one", MOST)
    await until(lambda: has_replicas(lab, "restarted", MOST), "all replicas are ready", timeout_s=120)

    assert await asyncio.to_thread(supervisor.stop_workspace, lab.workspace) == 0
    assert await asyncio.to_thread(supervisor.start_workspace, lab.workspace, port=0, detach=True) == 0

    assert (await version_of(lab, "restarted")).wanted_replicas == MOST
    await until(lambda: has_replicas(lab, "restarted", MOST), "all replicas are ready again", timeout_s=120)
