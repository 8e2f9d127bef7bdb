"""Callers that number their requests: a test can say of each whether it was answered, and what was kept of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from controlled_rollout.endpoint import VERSION_HEADER
from tests.polling import until

__all__ = ["Answered", "Calls", "numbered_calls", "request_body"]

TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Answered:
    """An answer.

    Attributes:
        status: Its status.
        version: The version that it is of.
        at: When it was there, in seconds since 1970.
    """

    status: int
    version: str
    at: float


@dataclass
class Calls:
    """What callers have asked and got.

    Attributes:
        answered: The answers, by the request's correlation id.
        broken: The correlation ids of the requests without an answer.
    """

    answered: dict[str, Answered] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[Answered]:
        return [one for one in self.answered.values() if one.status != 200]

    def of(self, version: str) -> set[str]:
        """Return the requests that a version has answered."""
        return {number for number, one in self.answered.items() if one.version == version}

    async def more(self, requests: int) -> None:
        """Wait until so many more requests have been answered."""
        goal = len(self.answered) + requests
        await until(lambda: len(self.answered) >= goal, f"{requests} more requests", timeout_s=90)


def request_body(number: int) -> dict[str, object]:
    """Return what the request of a number asks."""
    return {"age": 20 + number % 60, "income": 1000.5 + number, "customer": f"customer-{number % 7}"}


@asynccontextmanager
async def numbered_calls(
    url: str, key: str, *, rate: float, name: str = "call", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Calls]:
    """Send requests at a bounded rate for as long as the block runs.

    Args:
        url: The endpoint's.
        key: Its key.
        rate: Requests per second.
        name: What the correlation ids begin with.
        headers: More headers of each request.
    """
    calls = Calls()
    ending = asyncio.Event()
    sign_in = {"Authorization": f"Bearer {key}", **(headers or {})}

    async def send(client: httpx.AsyncClient, number: int) -> None:
        correlation = f"{name}-{number}"
        given = {"x-ms-client-request-id": correlation}
        try:
            answer = await client.post(url, json=request_body(number), headers=given)
        except httpx.HTTPError as error:
            calls.broken[correlation] = repr(error)
        else:
            version = answer.headers.get(VERSION_HEADER, "")
            calls.answered[correlation] = Answered(answer.status_code, version, time.time())

    async def send_all() -> None:
        number = 0
        async with httpx.AsyncClient(headers=sign_in, timeout=TIMEOUT_S) as client, asyncio.TaskGroup() as sending:
            while not ending.is_set():
                sending.create_task(send(client, number))
                number += 1
                await asyncio.sleep(1 / rate)

    sender = asyncio.create_task(send_all())
    try:
        yield calls
    finally:
        ending.set()
        await sender
