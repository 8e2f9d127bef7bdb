"""Decode uploads beside the event loop, in two lines, so that large or foreign ones keep no others waiting."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from controlled_rollout.telemetry_store.request_body import MAX_UNPACKED_BYTES, unpack

__all__ = ["Intake", "IntakeFullError", "Upload"]

# Larger bodies, and packed ones, wait in the line of the large ones.
SMALL_BYTES: Final = 512 * 2**10
# Uploads that wait in a line; what they hold is in memory.
MAX_WAITING_SMALL: Final = 256
MAX_WAITING_LARGE: Final = 8
T = TypeVar("T")


class IntakeFullError(Exception):
    """Too many uploads wait to be decoded: this one was not accepted, the sender may try again later."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload as it arrived.

    Attributes:
        body: The body, packed or not.
        is_packed: Whether it is gzip.
        goes_first: Whether it is from the router. Without an upload token: None, then the small ones go first.
    """

    body: bytes
    is_packed: bool
    goes_first: bool | None

    @property
    def is_in_first_line(self) -> bool:
        """Whether it waits only for others like it."""
        if self.goes_first is not None:
            return self.goes_first
        return not self.is_packed and len(self.body) <= SMALL_BYTES


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
    """Both lines of uploads."""

    def __init__(self) -> None:
        self._first = _Line("first uploads", MAX_WAITING_SMALL)
        self._other = _Line("other uploads", MAX_WAITING_LARGE)

    async def decode(self, upload: Upload, decode: Callable[[bytes], T]) -> T:
        """Unpack an upload and decode it, beside the event loop.

        Args:
            upload: The upload.
            decode: Makes the result of the unpacked body.

        Raises:
            IntakeFullError: Too many wait already.
            BodyError: It is damaged or unpacks to too much.
        """
        line = self._first if upload.is_in_first_line else self._other

        def unpack_and_decode() -> T:
            """Unpack and decode the upload in the line's thread."""
            return decode(unpack(upload.body, MAX_UNPACKED_BYTES) if upload.is_packed else upload.body)

        return await line.run(unpack_and_decode)
