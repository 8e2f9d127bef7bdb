"""Request bodies, read within bounds: compressed bytes, unpacked bytes, and how many uploads at once."""

import zlib
from typing import Final

from starlette.requests import ClientDisconnect, Request

__all__ = ["BodyError", "read_body"]

MAX_BODY: Final = 16 * 2**20
MAX_UNPACKED: Final = 64 * 2**20


class BodyError(Exception):
    """The body cannot be taken.

    Attributes:
        status: The HTTP status that says so.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(request: Request, *, limit: int = MAX_BODY, unpacked_limit: int = MAX_UNPACKED) -> bytes:
    """Return the body, unpacked when it came as gzip.

    Raises:
        BodyError: It is larger than allowed, packed in another way, damaged, or the sender went away.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip"):
        raise BodyError(415, f"content-encoding {encoding!r} is not supported: use gzip or none")
    too_large = BodyError(413, f"the body is larger than {limit} bytes: send smaller batches")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise too_large
            chunks.append(chunk)
    except ClientDisconnect:
        raise BodyError(400, "the sender went away before the body was complete") from None
    body = b"".join(chunks)
    return _unpack(body, unpacked_limit) if encoding == "gzip" else body


def _unpack(body: bytes, limit: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise BodyError(400, f"the body is not gzip as its header says: {error}") from None
    if len(unpacked) > limit:
        raise BodyError(413, f"the body unpacks to more than {limit} bytes: send smaller batches")
    if not unpacker.eof:
        raise BodyError(400, "the body's gzip stream ends too early")
    return unpacked
