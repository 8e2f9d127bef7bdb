"""A vulnerability service on loopback with OSV's query protocol and the vulnerabilities that a test sets.

https://google.github.io/osv.dev/post-v1-query/
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class OsvService:
    """A running vulnerability service.

    Attributes:
        url: Its query address.
        known: The vulnerabilities of each package, by its name.
        status: What it answers; 200 unless it is to fail.
        queried: The packages and versions of all queries so far.
    """

    url: str = ""
    known: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    status: int = 200
    queried: dict[str, str] = field(default_factory=dict)


def vulnerability(package: str, name: str, *aliases: str, fixed: str) -> dict[str, Any]:
    """Return a vulnerability of all versions before the fixed one, as OSV writes it down."""
    events = [{"introduced": "0"}, {"fixed": fixed}]
    affected = {"package": {"name": package, "ecosystem": "PyPI"}, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
    return {
        "id": name,
        "schema_version": "1.7.0",
        "modified": "2026-01-01T00:00:00Z",
        "summary": "made up for a test",
        "aliases": list(aliases),
        "affected": [affected],
    }


@contextmanager
def osv_service() -> Iterator[OsvService]:
    """Run the service in the block."""
    service = OsvService()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = query["package"]["name"]
            service.queried[name] = query["version"]
            vulnerabilities = service.known.get(name)
            body = json.dumps({"vulns": vulnerabilities} if vulnerabilities else {}).encode()
            self.send_response(service.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        service.url = f"http://127.0.0.1:{server.server_port}/v1/query"
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
