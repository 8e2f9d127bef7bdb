"""What tests of the agent ask a sandbox, and the load that they put on it."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from controlled_rollout.target.kubernetes.names import version_object_name
from tests.cluster.sandbox import Sandbox
from tests.polling import until

__all__ = ["LONG_S", "deployment", "has_replicas", "kubectl", "open_requests", "replicas"]

# Pods of a busy machine take their time to start.
LONG_S = 240


async def kubectl(sandbox: Sandbox, *args: str, input: str | None = None) -> str:
    """Run kubectl beside the event loop, which callers and an agent of this process share."""
    return await asyncio.to_thread(lambda: sandbox.kubectl(*args, input=input))


async def deployment(sandbox: Sandbox, version: str) -> dict[str, Any]:
    name = version_object_name(sandbox.endpoint, version)
    found: dict[str, Any] = json.loads(await kubectl(sandbox, "get", "deployment", name, "-o", "json"))
    return found


async def replicas(sandbox: Sandbox, version: str) -> int:
    number: int = (await deployment(sandbox, version))["spec"]["replicas"]
    return number


async def has_replicas(sandbox: Sandbox, version: str, number: int) -> None:
    async def does() -> bool:
        return await replicas(sandbox, version) == number

    await until(does, f"{number} replicas of {version} are asked for", timeout_s=LONG_S, interval_s=1.0)


@asynccontextmanager
async def open_requests(sandbox: Sandbox, number: int, seconds: float) -> AsyncIterator["Counter[str]"]:
    """Keep so many requests open at the sandbox's endpoint at all times, each of `seconds`; give how they ended."""
    outcomes: Counter[str] = Counter()
    headers = {"Authorization": f"Bearer {await sandbox.key()}"}
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as caller:

        async def ask() -> None:
            while True:
                try:
                    answer = await caller.post(sandbox.url, json={"sleep_s": seconds}, headers=headers)
                    reason = answer.headers.get("x-controlled-rollout-reason")
                    outcome = f"{answer.status_code} {reason}" if reason else str(answer.status_code)
                except httpx.HTTPError as error:
                    outcome = f"{type(error).__name__}: {error}"
                outcomes[outcome] += 1

        asking = [asyncio.create_task(ask()) for _ in range(number)]
        try:
            yield outcomes
        finally:
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
