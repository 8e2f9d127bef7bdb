"""A server on loopback that answers one request."""

import asyncio


async def serve(answer: bytes, **more: object) -> asyncio.Server:
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    return await asyncio.start_server(answer_once, "127.0.0.1", 0, **more)  # type: ignore[arg-type]


def port_of(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])
