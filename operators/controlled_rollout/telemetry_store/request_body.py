"""Read request bodies within limits of size, before and after unpacking."""

import zlib
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import ClientDisconnect, Request

__all__ = ["MAX_UNPACKED_BYTES", "BodyError", "is_packed", "read_body", "unpack"]

MAX_BODY_BYTES: Final = 16 * 2**20
MAX_UNPACKED_BYTES: Final = 64 * 2**20
# Smaller bodies are bounded in sum by the number of connections.
LARGE_BODY_BYTES: Final = 1 * 2**20


class BodyError(Exception):
    """The body of a request cannot be accepted.

    Attributes:
        status: The HTTP status of the response.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(
    request: Request, *, limit: int = MAX_BODY_BYTES, before_large: Callable[[], Awaitable[object]] | None = None
) -> bytes:
    """Read the whole body of an HTTP request, as it was sent.

    Args:
        request: The request.
        limit: The most bytes that are read.
        before_large: Called before more than `LARGE_BODY_BYTES` are read.

    Raises:
        BodyError: It is too large, or the sender has disconnected.
    """
    too_large = BodyError(413, f"the body is larger than {limit} bytes: send smaller batches")
    content_length = request.headers.get("content-length", "0")
    if content_length.isdecimal() and int(content_length) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise too_large
            if before_large is not None and size > LARGE_BODY_BYTES:
                await before_large()
                before_large = None
            chunks.append(chunk)
    except ClientDisconnect as error:
        raise BodyError(400, "the sender disconnected before the body was complete") from error
    return b"".join(chunks)


def is_packed(request: Request) -> bool:
    """Return whether the body of a request is gzip.

    Raises:
        BodyError: It is packed in another way.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip"):
        raise BodyError(415, f"content-encoding {encoding!r} is not supported: use gzip or none")
    return encoding == "gzip"


def unpack(body: bytes, limit: int) -> bytes:
    """Unpack a gzip body of at most `limit` unpacked bytes.

    Raises:
        BodyError: It is larger, or damaged.
    """
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise BodyError(400, f"the body is not gzip as its header says: {error}") from error
    if len(unpacked) > limit:
        raise BodyError(413, f"the body unpacks to more than {limit} bytes: send smaller batches")
    if not unpacker.eof:
        raise BodyError(400, "the body's gzip stream ends too early")
    return unpacked
