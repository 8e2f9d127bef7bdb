"""The WSGI environment of one request (PEP 3333), made of what h11 has read."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_to_bytes

import h11

# Two headers that WSGI names without the prefix.
WITHOUT_PREFIX = {b"content-type": "CONTENT_TYPE", b"content-length": "CONTENT_LENGTH"}


def wsgi_environ(
    request: h11.Request, body_length: int, server: tuple[str, int], caller: tuple[str, int]
) -> dict[str, Any]:
    """Return the request's variables; bytes outside ASCII are kept, as latin-1.

    Args:
        request: The request line and the headers.
        body_length: The bytes of the body, which was read to its end.
        server: Host and port that the request came to.
        caller: Host and port that it came from.
    """
    path, _, query = _origin_form(request.target).partition(b"?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method.decode("ascii"),
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query.decode("latin-1"),
        "RAW_URI": request.target.decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{request.http_version.decode('ascii')}",
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "REMOTE_ADDR": caller[0],
        "REMOTE_PORT": str(caller[1]),
        "wsgi.url_scheme": "http",
    }
    for name, value in request.headers:
        # `x_id` would overwrite `x-id`: both are HTTP_X_ID. The stock server leaves the first out as well.
        if b"_" in name:
            continue
        key = WITHOUT_PREFIX.get(name) or "HTTP_" + name.decode("ascii").upper().replace("-", "_")
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
