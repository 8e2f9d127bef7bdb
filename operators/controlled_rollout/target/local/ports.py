"""Reserve a TCP port for a child process."""

import socket

from controlled_rollout.errors import WorkspaceError

__all__ = ["reserve_port"]


def reserve_port(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to a port and never listens, so that only a child process can listen there.

    Linux lets a second socket with SO_REUSEADDR bind the same port as long as no other one listens. The port therefore
    stays reserved while the child is restarted.

    Args:
        host: The address to listen on.
        port: The port; 0 for any free one.

    Raises:
        WorkspaceError: Another process uses the port, or the address does not belong to this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family, kind, protocol)
    except OSError as error:
        raise WorkspaceError(
            f"cannot listen on {host}: {error}: choose an address of this machine, such as 127.0.0.1"
        ) from error
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(address)
    except OSError as error:
        reserved.close()
        raise WorkspaceError(
            f"port {port} on {host} cannot be used: {error.strerror}: choose another with --port, or end what uses it"
        ) from error
    return reserved
