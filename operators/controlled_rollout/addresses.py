"""Tell whether a host or a URL leads to this machine: no proxy applies there, and loopback may use plain http."""

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

    import httpx

__all__ = ["azure_settings_for", "is_loopback", "is_this_machine", "no_proxy_variables", "transport_for"]

# How programs and libraries are told which hosts no proxy is for. Not all of them read ranges.
NO_PROXY: Final = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy")
# An IPv4 address in one of its shorter notations, such as 127.1.
SHORT_ADDRESS: Final = re.compile(r"[0-9][0-9a-fx.]*")


def is_loopback(host: str) -> bool:
    """Return whether a host is `localhost` or a loopback address; other names are not resolved.

    Args:
        host: A name or an address, with or without a port; an IPv6 address with a port is in brackets.
    """
    name = _host_without_port(host).removesuffix(".")
    address = _ip_address(name)
    return name == "localhost" or (address is not None and address.is_loopback)


def is_this_machine(url: str) -> bool:
    """Return whether a URL's host is a loopback address, an address of one of this machine's interfaces, or its name.

    A request to such a URL must not go through a proxy.
    """
    try:
        name = (urlsplit(url).hostname or "").removesuffix(".")
    except ValueError:
        return False
    if is_loopback(name) or name.endswith(".localhost") or name == socket.gethostname().lower():
        return True
    address = _ip_address(name)
    if address is None or address.is_unspecified:
        return address is not None
    try:
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        # Connecting a datagram socket sends nothing; it chooses the address that this machine would send from.
        with socket.socket(family, socket.SOCK_DGRAM) as unsent:
            unsent.connect((str(address), 9))
            return bool(unsent.getsockname()[0] == str(address))
    except OSError:
        return False


def no_proxy_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `no_proxy` and `NO_PROXY` of an environment with this machine added; nothing where no proxy is set.

    For programs and libraries whose connections are not made here.
    """
    if not any(name.lower() in PROXIES and value for name, value in environment.items()):
        return {}
    given = (environment.get(name, "").split(",") for name in ("no_proxy", "NO_PROXY"))
    hosts = dict.fromkeys(host.strip() for hosts in (*given, NO_PROXY) for host in hosts if host.strip())
    return dict.fromkeys(("no_proxy", "NO_PROXY"), "*" if "*" in hosts else ",".join(hosts))


def azure_settings_for(url: str) -> dict[str, Any]:
    """Return the settings of an Azure client for a URL: for this machine, without the environment's proxies."""
    if not is_this_machine(url):
        return {}
    return {"use_env_settings": False, "connection_verify": os.environ.get("REQUESTS_CA_BUNDLE") or True}


def transport_for(url: str, tls: "ssl.SSLContext | None" = None) -> "httpx.AsyncHTTPTransport | None":
    """Return the transport of an httpx client for a URL: one without proxies for this machine, else None.

    A client that checks the server by settings of its own (`tls`) gives them to httpx as `verify` as well.

    None lets httpx take the proxies of the environment. `trust_env=False` would not do: it also ignores the certificate
    authorities that `SSL_CERT_FILE` names.
    """
    import httpx

    return httpx.AsyncHTTPTransport(verify=tls or True) if is_this_machine(url) else None


def _ip_address(name: str) -> "ipaddress.IPv4Address | ipaddress.IPv6Address | None":
    """Return the address that a name is, in any notation that the system's resolver reads; None if it is a name."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(name)) if SHORT_ADDRESS.fullmatch(name) else None
        except OSError:
            return None
    return getattr(address, "ipv4_mapped", None) or address


def _host_without_port(host: str) -> str:
    """Return the host of `host:port` without the port and without the brackets of an IPv6 address."""
    if host.count(":") > 1 and not host.startswith("["):
        return host.lower()
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
