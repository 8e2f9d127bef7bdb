"""A real registry: Debian's docker-registry on a port of its own, with its storage in a folder."""

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE_S = 30.0
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class RunningRegistry:
    """A running registry.

    Attributes:
        address: Host and port.
        storage: The folder in which it keeps blobs and tags.
    """

    address: str
    storage: Path

    def tags(self, repository: str) -> list[str]:
        folder = self.storage / "docker/registry/v2/repositories" / repository / "_manifests" / "tags"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def blob_file(self, digest: str) -> Path:
        hexadecimal = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"

    def blob(self, digest: str) -> bytes:
        return self.blob_file(digest).read_bytes()

    def manifest(self, digest: str) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads(self.blob(digest))
        return manifest

    def files(self) -> dict[str, int]:
        """Return all stored files with their modification times."""
        return {str(path): path.stat().st_mtime_ns for path in self.storage.rglob("*") if path.is_file()}


@contextmanager
def serving(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    read_only: bool = False,
    auth: dict[str, Any] | None = None,
    tls: dict[str, str] | None = None,
) -> Iterator[RunningRegistry]:
    """Serve a registry in the block.

    Args:
        folder: For its files.
        host: Where it listens.
        read_only: Whether it refuses pushes.
        auth: The section of that name in its configuration.
        tls: Its certificate and key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    storage = folder / "storage"
    configuration: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "maintenance": {"readonly": {"enabled": read_only}},
        },
        "http": {"addr": f"{host}:{port}", "secret": "of-the-tests", **({"tls": tls} if tls else {})},
        **({"auth": auth} if auth else {}),
    }
    # JSON is YAML.
    (folder / "config.yml").write_text(json.dumps(configuration))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        end = time.monotonic() + DEADLINE_S
        while not _answers(host, port, tls):
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.02)
        yield RunningRegistry(f"{host}:{port}", storage)
    finally:
        process.kill()
        process.wait()


def _answers(host: str, port: int, tls: dict[str, str] | None) -> bool:
    connection: http.client.HTTPConnection
    if tls:
        connection = http.client.HTTPSConnection(
            host, port, context=ssl.create_default_context(cafile=tls["certificate"])
        )
    else:
        connection = http.client.HTTPConnection(host, port)
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", "/v2/")
        with connection.getresponse() as answer:
            return answer.status in (200, 401)
    return False
