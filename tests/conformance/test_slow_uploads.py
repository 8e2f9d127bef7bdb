"""Callers who send their bodies slowly: they keep nobody else from being answered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from tests.conformance.target_lab import TargetLab

UPLOADS = 101
BODY = b'{"sleep_s": 0}'


@asynccontextmanager
async def slow_uploads(url: str, key: str) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Open connections on each of which a request is half sent; yield their readers; send the rest, and close them."""
    where = urlsplit(url)
    head = (
        f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    ).encode()
    opened = await asyncio.gather(*(asyncio.open_connection(where.hostname, where.port) for _ in range(UPLOADS)))
    try:
        for _, writer in opened:
            writer.write(head + BODY[:1])
            await writer.drain()
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()


async def status_of_http_1_0(url: str, key: str) -> int:
    """Send a request as a client of HTTP/1.0 does; return the answer's status."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(
        f"POST {where.path} HTTP/1.0\r\nHost: {where.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
        + BODY
    )
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return int(answer.split()[1])


async def test_slow_uploads_keep_nobody_else_from_being_answered(target_lab: TargetLab) -> None:
    lab = target_lab
    endpoint = await lab.serve(lab.with_version(lab.endpoint("uploads"), "one"))
    url, key = (await lab.target.status(endpoint.name)).url, (await lab.target.keys(endpoint.name)).primary

    async with slow_uploads(url, key) as readers:
        async with lab.load(endpoint, rate=40) as load:
            await load.more(120)
        # As is who speaks HTTP/1.0, which ApacheBench and old probes do.
        assert await status_of_http_1_0(url, key) == 200
        version = (await lab.target.status(endpoint.name)).versions["one"]
        answered = sum(reader.at_eof() for reader in readers)

    assert load.failed == {}, load.refusals
    # No replica has anything to do with an upload before the router has all of it.
    assert version.active == 0
    assert answered == 0
