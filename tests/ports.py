"""TCP ports of this machine for tests: one that is free, and one at which connections are refused."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["closed_port", "free_port"]


def free_port() -> int:
    """Return a port that nobody listens at now."""
    with closed_port() as port:
        return port


@contextmanager
def closed_port() -> Iterator[int]:
    """Context manager: hold a port that is bound and does not listen: no other process can use it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])
