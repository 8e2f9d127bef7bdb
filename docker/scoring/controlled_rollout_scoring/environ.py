"""The WSGI environment of one request (PEP 3333)."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_to_bytes

# Two headers that WSGI names without the prefix.
WITHOUT_PREFIX = {b"content-type": "CONTENT_TYPE", b"content-length": "CONTENT_LENGTH"}


class RequestHead:
    """The request line and the headers of a request, their names in lower case."""

    __slots__ = ("headers", "method", "target", "version")

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.version = "1.1"
        self.headers: list[tuple[bytes, bytes]] = []

    def value(self, name: bytes) -> bytes:
        """Return the first value of a header; nothing if there is none."""
        return next((value for key, value in self.headers if key == name), b"")


def wsgi_environ(
    head: RequestHead, body_length: int, server: tuple[str, int], caller: tuple[str, int]
) -> dict[str, Any]:
    """Return the request's variables; bytes outside of ASCII are kept, as latin-1.

    Args:
        head: The request line and the headers.
        body_length: The bytes of the body, which was read to its end.
        server: Host and port that the request came to.
        caller: Host and port that it came from.
    """
    path, _, query = _origin_form(head.target).partition(b"?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": head.method.decode("latin-1"),
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query.decode("latin-1"),
        "RAW_URI": head.target.decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{head.version}",
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "REMOTE_ADDR": caller[0],
        "REMOTE_PORT": str(caller[1]),
        "wsgi.url_scheme": "http",
    }
    for name, value in head.headers:
        # `x_id` would overwrite `x-id`: both are HTTP_X_ID. The stock server leaves the first out as well.
        if b"_" in name:
            continue
        key = WITHOUT_PREFIX.get(name) or "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
        text = value.decode("latin-1")
        environ[key] = f"{environ[key]},{text}" if key in environ else text
    if body_length or "CONTENT_LENGTH" in environ:
        environ["CONTENT_LENGTH"] = str(body_length)
    return environ


def _origin_form(target: bytes) -> bytes:
    """Return path and query of a request's target: `http://host/score?a=1` is `/score?a=1`."""
    if target.startswith(b"/") or b"://" not in target:
        return target
    _, _, rest = target.partition(b"://")
    return b"/" + rest.partition(b"/")[2]
