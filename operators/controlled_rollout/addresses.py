"""Tell whether a host or a URL leads to this machine: no proxy applies there, and loopback may use plain http."""

import ipaddress
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx

__all__ = ["is_loopback", "is_this_machine", "transport_for"]


def is_loopback(host: str) -> bool:
    """Return whether a host is `localhost` or a loopback address; other names are not resolved.

    Args:
        host: A name or an address, with or without a port; an IPv6 address with a port is in brackets.
    """
    name = _host_without_port(host)
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_this_machine(url: str) -> bool:
    """Return whether a URL's host is a loopback address or an address of one of this machine's interfaces.

    A request to such a URL must not go through a proxy.
    """
    try:
        name = urlsplit(url).hostname or ""
        if is_loopback(name):
            return True
        family = socket.AF_INET6 if ipaddress.ip_address(name).version == 6 else socket.AF_INET
        # Connecting a datagram socket sends nothing; it chooses the address that this machine would send from.
        with socket.socket(family, socket.SOCK_DGRAM) as unsent:
            unsent.connect((name, 9))
            return bool(unsent.getsockname()[0] == name)
    except (ValueError, OSError):
        return False


def transport_for(url: str) -> "httpx.AsyncHTTPTransport | None":
    """Return the transport of an httpx client for a URL: one without proxies for this machine, else None.

    None lets httpx take the proxies of the environment. `trust_env=False` would not do: it also ignores the certificate
    authorities that `SSL_CERT_FILE` names.
    """
    import httpx

    return httpx.AsyncHTTPTransport() if is_this_machine(url) else None


def _host_without_port(host: str) -> str:
    """Return the host of `host:port` without the port and without the brackets of an IPv6 address."""
    if host.count(":") > 1 and not host.startswith("["):
        return host.lower()
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
