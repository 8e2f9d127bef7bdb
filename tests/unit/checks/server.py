"""A server on loopback that answers one request."""

import asyncio
import ssl


async def serve(answer: bytes, tls: ssl.SSLContext | None = None) -> asyncio.Server:
    """Start a server that sends `answer` to every connection, after its first byte."""

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    return await asyncio.start_server(answer_once, "127.0.0.1", 0, ssl=tls)


def port_of(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])
