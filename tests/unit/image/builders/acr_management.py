"""A fake of Azure's management API of a registry, as far as builds use it; its answers follow Microsoft's reference.

There is no Azure where the tests run. The client is the real one; its requests go to this server.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from azure.core.credentials import AccessToken

RUN_ID = "cf1"
ROOT = "/subscriptions/0/resourceGroups/models/providers/Microsoft.ContainerRegistry/registries/mine"
ACR_ID = ROOT


@dataclass
class Management:
    """The requests so far, and the answers to give.

    Attributes:
        statuses: The run's status at each look; the last one stays.
        logs: What has been written to the log by then.
        running: The status of a run that another worker has begun already.
        refuse: An answer to everything, as status and error code.
    """

    statuses: list[str]
    logs: list[str]
    running: str | None = None
    refuse: tuple[int, str] | None = None
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    uploaded: bytes = b""
    looks: int = 0
    began: bool = False

    def paths(self, method: str) -> list[str]:
        return [path for verb, path, _ in self.requests if verb == method]

    def status(self) -> str:
        return self.statuses[min(self.looks, len(self.statuses) - 1)]

    def log(self) -> bytes:
        return self.logs[min(self.looks, len(self.logs) - 1)].encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def at(self) -> Management:
        return self.server.at  # type: ignore[attr-defined,no-any-return]

    def do_GET(self) -> None:
        path = self._path()
        self.at.requests.append(("GET", path, None))
        if path.startswith("/blob/log"):
            return self._log()
        if self._refused():
            return None
        if path.endswith(f"/runs/{RUN_ID}"):
            status = self.at.status()
            self.at.looks += 1
            return self._json(200, {"properties": {"runId": RUN_ID, "status": status}})
        if "/taskRuns/" in path:
            if self.at.began or self.at.running:
                run = {"runId": RUN_ID, "status": self.at.running or "Queued"}
                return self._json(200, {"properties": {"runResult": {"properties": run}}})
            return self._json(404, {"error": {"code": "TaskRunNotFound", "message": "there is none"}})
        raise AssertionError(path)

    def do_POST(self) -> None:
        path, body = self._path(), self._body()
        self.at.requests.append(("POST", path, body))
        if self._refused():
            return None
        if path.endswith("/listBuildSourceUploadUrl"):
            return self._json(200, {"uploadUrl": self._blob("source"), "relativePath": "source/1.tar.gz"})
        if path.endswith("/listLogSasUrl"):
            return self._json(200, {"logLink": self._blob("log")})
        if path.endswith("/cancel"):
            self.at.statuses = ["Canceled"]
            return self._json(200, {})
        raise AssertionError(path)

    def do_PUT(self) -> None:
        path, body = self._path(), self._body()
        if path.startswith("/blob/source"):
            if parse_qs(urlsplit(self.path).query).get("comp") != ["blocklist"]:
                self.at.uploaded += body
            return self._empty(201, {"ETag": '"1"', "Last-Modified": "Thu, 01 Jan 1970 00:00:00 GMT"})
        self.at.requests.append(("PUT", path, json.loads(body)))
        self.at.began = True
        return self._json(201, {"properties": {"provisioningState": "Creating"}})

    def _path(self) -> str:
        path = urlsplit(self.path).path
        return path.removeprefix("/management.azure.com").removeprefix("/store")

    def _blob(self, name: str) -> str:
        return f"https://store/blob/{name}?sig=a-signature"

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _refused(self) -> bool:
        if not self.at.refuse:
            return False
        status, code = self.at.refuse
        self._json(status, {"error": {"code": code, "message": f"it is {code}"}})
        return True

    def _log(self) -> None:
        assert parse_qs(urlsplit(self.path).query)["sig"] == ["a-signature"]
        content = self.at.log()
        first = int(self.headers["x-ms-range"].removeprefix("bytes=").partition("-")[0])
        if first >= len(content):
            return self._empty(416, {"x-ms-error-code": "InvalidRange"})
        part = content[first:]
        headers = {
            "Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}",
            "ETag": '"1"',
            "x-ms-blob-type": "AppendBlob",
            "Last-Modified": "Thu, 01 Jan 1970 00:00:00 GMT",
        }
        return self._send(206, part, headers)

    def _json(self, status: int, document: object) -> None:
        self._send(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _empty(self, status: int, headers: dict[str, str]) -> None:
        self._send(status, b"", headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


class Identity(AbstractAsyncContextManager["Identity"]):
    """A credential as azure-identity's are used: its token is always the same, or it raises `error`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.scopes: list[str] = []

    async def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **options: Any,
    ) -> AccessToken:
        self.scopes += scopes
        if self.error:
            raise self.error
        return AccessToken(token="token-of-entra", expires_on=2**33)

    async def close(self) -> None: ...

    async def __aexit__(self, *args: object) -> None: ...


@contextmanager
def answering(at: Management) -> Iterator[Any]:
    """Run the fake in the block; yield a transport that sends every request to it, for any address."""
    from azure.core.pipeline.transport import AioHttpTransport

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.at = at  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    class ToServer(AioHttpTransport):  # type: ignore[misc] # untyped without the package aiohttp's stubs
        async def send(self, request: Any, **config: Any) -> Any:
            assert request.url.startswith("https://")
            request.url = request.url.replace("https://", f"http://127.0.0.1:{server.server_port}/", 1)
            return await super().send(request, **config)

    try:
        yield ToServer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
