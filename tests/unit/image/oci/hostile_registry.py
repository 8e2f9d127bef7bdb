"""A registry that answers whatever a test wants it to answer, on a port of this machine."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from controlled_rollout.image.oci.manifest import MANIFEST

__all__ = ["Answer", "HostileRegistry", "hostile_registry"]


@dataclass(frozen=True)
class Answer:
    """What the registry answers to one request. Without a length the body ends with the connection."""

    status: int = 200
    body: bytes | Iterable[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": MANIFEST})


class HostileRegistry(ThreadingHTTPServer):
    """Attributes: `answer` is called with each request's method and path; `requests` has what was sent."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str, str], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.sent_bytes = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def headers(self, name: str) -> list[str]:
        """Return the values that requests had for a header."""
        return [value for _, _, headers in self.requests for key, value in headers.items() if key.lower() == name]

    def handle_error(self, request: object, address: object) -> None: ...


class _Handler(BaseHTTPRequestHandler):
    server: HostileRegistry

    def handle_any(self) -> None:
        self.server.requests.append((self.command, self.path, dict(self.headers.items())))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.server.answer(self.command, self.path)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(OSError):
            for chunk in [answer.body] if isinstance(answer.body, bytes) else answer.body:
                self.wfile.write(chunk)
                self.server.sent_bytes += len(chunk)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_any

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def hostile_registry(answer: Answer | Callable[[str, str], Answer]) -> Iterator[HostileRegistry]:
    """Serve a registry in the block."""
    with HostileRegistry(answer if callable(answer) else lambda method, path: answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
