"""The agent while the split and the router change under the load: no request fails, and no replica is lost."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.agent_callers import LONG_S, has_replicas, open_requests, replicas
from tests.cluster.agents import agent_roles, running_agent
from tests.cluster.own_gateway import own_gateway
from tests.cluster.sandbox import Sandbox
from tests.polling import until

pytestmark = pytest.mark.timeout(900, func_only=True)

# Requests wait until the replicas that are being added answer them: what fails then is not for lack of room.
PATIENT: dict[str, Any] = {
    "autoscale_max_replicas": 3,
    "replica_max_concurrent_requests": 1,
    "max_request_wait_time": 120_000,
}


async def test_no_request_fails_when_an_envoy_is_deleted_under_the_load_nor_when_a_shift_comes_amid_a_scale_up(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    with own_gateway(sandbox) as gateway:
        await asyncio.to_thread(gateway.scale, 2)
        sandbox = gateway.sandbox
        await sandbox.deploy("one", **PATIENT)
        # Room for its share in one replica, however slow a busy machine answers.
        await sandbox.deploy("two", "steady2", **PATIENT | {"replica_max_concurrent_requests": 20})

        async def are_there() -> bool:
            return bool(await asyncio.to_thread(gateway.envoys) == (2, 2))

        await until(are_there, "there are two Envoys", timeout_s=LONG_S, interval_s=1.0)
        with agent_roles(sandbox), running_agent(sandbox, tmp_path / "agent"):
            async with open_requests(sandbox, 1, 1.0) as before:
                await has_replicas(sandbox, "one", 2)
                # An Envoy goes with the requests that it has, and another one comes that knows nothing yet.
                gone = min(await asyncio.to_thread(gateway.pods))
                await asyncio.to_thread(gateway.delete, gone)
                seen = set[int]()

                async def is_restarted() -> bool:
                    seen.add(await replicas(sandbox, "one"))
                    pods = await asyncio.to_thread(gateway.pods)
                    return gone not in pods and list(pods.values()) == [True, True]

                await until(is_restarted, "another Envoy is in its place", timeout_s=LONG_S, interval_s=1.0)
                assert min(seen) == 2, "no replica is taken away while an Envoy cannot be read"

                async def is_scaling_up() -> bool:
                    # It takes the third one some seconds to be ready.
                    return await replicas(sandbox, "one") == 3

                async with open_requests(sandbox, 3, 1.0) as after:
                    # It follows the load again.
                    await until(is_scaling_up, "a replica is being added", timeout_s=LONG_S, interval_s=0.2)
                    await sandbox.shift("two", 50)
                    answered = after["200"]
                    await until(lambda: after["200"] >= answered + 9, "requests are answered", timeout_s=LONG_S)

    assert (set(before), set(after)) == ({"200"}, {"200"}), (before, after)
