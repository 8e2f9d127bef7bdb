"""The agent in a real cluster: replicas that follow the load, one agent at a time, and repair while nobody waits."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from controlled_rollout.target.kubernetes.names import version_object_name
from tests.cluster.agents import agent_roles, running_agent
from tests.cluster.sandbox import Sandbox
from tests.polling import until

# A busy machine takes its time to start pods.
LONG_S = 150


def deployment(sandbox: Sandbox, version: str) -> dict[str, Any]:
    name = version_object_name(sandbox.endpoint, version)
    found: dict[str, Any] = json.loads(sandbox.kubectl("get", "deployment", name, "-o", "json"))
    return found


@asynccontextmanager
async def open_requests(sandbox: Sandbox, number: int, seconds: float) -> AsyncIterator[None]:
    """Keep so many requests open at the sandbox's endpoint at all times, each of `seconds`."""
    headers = {"Authorization": f"Bearer {await sandbox.key()}"}
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as caller:

        async def ask() -> None:
            while True:
                await caller.post(sandbox.url, json={"sleep_s": seconds}, headers=headers)

        asking = [asyncio.create_task(ask()) for _ in range(number)]
        try:
            yield
        finally:
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)


async def test_replicas_follow_the_load(sandbox: Sandbox, tmp_path: Path) -> None:
    await sandbox.roll_out("one", autoscale_max_replicas=3, replica_max_concurrent_requests=1)
    with agent_roles(sandbox), running_agent(sandbox, tmp_path / "agent"):
        async with open_requests(sandbox, 3, 5.0):
            await until(
                lambda: deployment(sandbox, "one")["spec"]["replicas"] == 3,
                "three replicas are asked for",
                timeout_s=LONG_S,
                interval_s=1.0,
            )
