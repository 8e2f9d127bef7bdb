"""Read uploads, and decode them beside the event loop in two lines: large or foreign ones keep no others waiting."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Final, TypeVar

from starlette.requests import Request

from controlled_rollout.telemetry_store.request_body import MAX_UNPACKED_BYTES, is_packed, read_body, unpack

__all__ = ["Intake", "IntakeFullError"]

# Larger bodies, and packed ones, wait in the line of the large ones.
SMALL_BYTES: Final = 512 * 2**10
# Uploads that wait in a line; what they hold is in memory.
MAX_WAITING_FIRST: Final = 256
MAX_WAITING_OTHERS: Final = 8
# Bodies above a megabyte that are read or wait at once.
MAX_LARGE_BODIES: Final = 4
T = TypeVar("T")


class IntakeFullError(Exception):
    """Too many uploads wait to be decoded: this one was not accepted, the sender may try again later."""


class _Line:
    """Uploads that are decoded one after the other, in a thread.

    Args:
        name: The thread's name.
        max_waiting: The most uploads that wait.
    """

    def __init__(self, name: str, max_waiting: int) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._max_waiting = max_waiting
        self._waiting = 0

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in the thread, after those that wait already; return its result."""
        if self._waiting >= self._max_waiting:
            raise IntakeFullError(f"{self._waiting} uploads wait to be decoded: send again later")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        finally:
            self._waiting -= 1


class Intake:
    """Reads and decodes uploads."""

    def __init__(self) -> None:
        self._first = _Line("first uploads", MAX_WAITING_FIRST)
        self._others = _Line("other uploads", MAX_WAITING_OTHERS)
        self._large = asyncio.Semaphore(MAX_LARGE_BODIES)

    async def read_upload(self, request: Request, decode: Callable[[bytes], T], *, is_routers: bool | None) -> T:
        """Read the body of an upload, unpack it, and decode it beside the event loop.

        Args:
            request: The upload.
            decode: Makes the result of the unpacked body.
            is_routers: Whether it is from the router, whose uploads are decoded first. None if nobody can tell: the
                small ones are first then.

        Raises:
            IntakeFullError: Too many are read or wait already.
            BodyError: It is incomplete, damaged, packed in an unknown way, or unpacks to too much.
        """
        packed = is_packed(request)
        async with AsyncExitStack() as place:

            async def wait_for_place() -> None:
                """Take one of the places for large bodies until this one is decoded."""
                if self._large.locked():
                    raise IntakeFullError(f"{MAX_LARGE_BODIES} large uploads are read already: send again later")
                await place.enter_async_context(self._large)

            body = await read_body(request, before_large=None if is_routers else wait_for_place)

            def unpack_and_decode() -> T:
                """Unpack and decode the upload in the line's thread."""
                return decode(unpack(body, MAX_UNPACKED_BYTES) if packed else body)

            is_first = is_routers or (is_routers is None and not packed and len(body) <= SMALL_BYTES)
            return await (self._first if is_first else self._others).run(unpack_and_decode)
