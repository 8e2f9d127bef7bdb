"""An outside issuer of tokens, such as Entra ID: it serves its public keys by HTTP, and signs what a test asks for."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

__all__ = ["Issuer", "serving"]

HOUR = 3600


class Issuer:
    """An issuer with keys of its own; requests for them are counted.

    Args:
        port: The port that it serves.
    """

    name = "https://login.example/tenant/v2.0"
    audience = "api://digits"

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers = True
        self.requests = 0
        self.keys = {"first": rsa.generate_private_key(65537, 2048)}

    def key_set(self) -> dict[str, Any]:
        public = [
            {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": name, "use": "sig"}
            for name, key in self.keys.items()
        ]
        return {"keys": public}

    def token(self, key: str = "first", **changes: Any) -> str:
        """Return a token with these claims besides; None leaves one out."""
        now = int(time.time())
        claims = {"iss": self.name, "aud": self.audience, "iat": now, "exp": now + HOUR, **changes}
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, self.keys[key], algorithm="RS256", headers={"kid": key})


@contextmanager
def serving(host: str) -> Iterator[Issuer]:
    """Serve the keys of a new issuer at an address of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.requests += 1
            body = json.dumps(issuer.key_set()).encode()
            self.send_response(200 if issuer.answers else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer((host, 0), Handler)
    issuer = Issuer(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
