"""Ports that are kept from others for as long as the supervisor lives."""

import socket

from controlled_rollout.errors import WorkspaceError

__all__ = ["reserve"]


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket that is bound and never listens: our own child may listen there, a stranger may not.

    Linux lets a second socket with SO_REUSEADDR bind the same port as long as no other one listens, so the port
    stays ours while the child is being replaced.

    Args:
        host: The address to listen on.
        port: The port; 0 for any free one.

    Raises:
        WorkspaceError: Somebody listens there, or the address is not ours.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        held = socket.socket(family, kind, protocol)
    except OSError as error:
        raise WorkspaceError(f"{host} is no address to listen on: {error}") from None
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(address)
    except OSError as error:
        held.close()
        raise WorkspaceError(
            f"port {port} on {host} cannot be used: {error.strerror}: choose another with --port, or end what uses it"
        ) from None
    return held
