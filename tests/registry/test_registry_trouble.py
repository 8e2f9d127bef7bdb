"""Registries that fill up or stop in the middle of a push, and models that are larger than the disk."""

import asyncio
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from controlled_rollout.errors import ImageError, RegistryUnavailableError
from controlled_rollout.image import ImageReference, ModelSource, build_container_image
from tests.registry.conftest import Built
from tests.registry.real_registry import RunningRegistry, serving

ENOUGH_FOR_THE_ENVIRONMENT = "700m"
# More than 32 bits can count, and more than either disk holds.
BIG_BYTES = 4_400_000_000


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk of `size` and yield its folder."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def model(path: Path, size: int) -> list[ModelSource]:
    path.touch()
    os.truncate(path, size)
    return [ModelSource("big", path)]


async def push(built: Built, registry: str, cache: Path, models: list[ModelSource] | None = None) -> ImageReference:
    return await build_container_image(
        built.source,
        name="digits",
        registry=f"{registry}/models",
        cache=cache,
        base_image=built.base_image,
        shared_registry=built.registry,
        models=models or [],
    )


async def test_a_registry_with_a_full_disk_is_unavailable(built: Built, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "20m") as disk, serving(disk) as registry:
        with pytest.raises(RegistryUnavailableError, match=r"registry .*: its disk may be full"):
            await push(built, registry.address, tmp_path / "cache")

        assert registry.tags("models/environments") == []
        assert registry.tags("models/digits") == []


@pytest.mark.timeout(600)
async def test_a_model_of_more_than_4_gib_needs_no_room_on_the_worker_and_a_registry_with_a_full_disk_is_unavailable(
    built: Built, tmp_path: Path
) -> None:
    models = model(tmp_path / "model.bin", BIG_BYTES)
    with (
        small_disk(tmp_path / "worker", "1m") as worker,
        small_disk(tmp_path / "disk", ENOUGH_FOR_THE_ENVIRONMENT) as disk,
        serving(disk) as registry,
    ):
        with pytest.raises(RegistryUnavailableError, match=r"registry .*: its disk may be full"):
            await push(built, registry.address, worker / "cache", models)

        assert registry.tags("models/digits") == []
        assert len(registry.tags("models/environments")) == 1, "what was whole stays"
        assert not worker.joinpath("cache", "containers").exists()


class Cutting(ThreadingHTTPServer):
    """A proxy in front of a registry that ends the connection in the middle of the first large upload."""

    daemon_threads = True

    def __init__(self, registry: str) -> None:
        super().__init__(("127.0.0.1", 0), Cutter)
        self.registry = registry
        self.cuts = 0

    def handle_error(self, request: object, address: object) -> None: ...


class Cutter(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Cutting

    def handle_any(self) -> None:
        import http.client

        length = int(self.headers.get("Content-Length") or 0)
        if self.command == "PATCH" and length > 5_000_000 and self.server.cuts == 0:
            self.server.cuts += 1
            self._forward_half(length)
            self.connection.close()
            self.close_connection = True
            return
        body = self.rfile.read(length)
        connection = http.client.HTTPConnection(self.server.registry)
        headers = {name: value for name, value in self.headers.items() if name != "Host"}
        connection.request(self.command, self.path, body or None, {**headers, "Host": self.headers["Host"]})
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "content-length"):
                self.send_header(name, value)
        size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", size or "0")
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    def _forward_half(self, length: int) -> None:
        """Forward the first half of an upload, and close the connection."""
        import socket

        host, _, port = self.server.registry.partition(":")
        half = self.rfile.read(length // 2)
        with socket.create_connection((host, int(port))) as registry:
            head = f"PATCH {self.path} HTTP/1.1\r\n" + "".join(
                f"{name}: {value}\r\n" for name, value in self.headers.items()
            )
            registry.sendall(head.encode() + b"\r\n" + half)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_any

    def log_message(self, format: str, *args: object) -> None: ...


async def test_a_half_uploaded_blob_leaves_no_tag_and_the_next_try_pushes_it_whole(
    built: Built, registry: RunningRegistry, tmp_path: Path
) -> None:
    models = model(tmp_path / "model.bin", 30_000_000)
    await push(built, registry.address, tmp_path / "cache")
    before = registry.tags("models/digits")
    with Cutting(registry.address) as between:
        thread = threading.Thread(target=between.serve_forever)
        thread.start()
        address = f"127.0.0.1:{between.server_port}"
        try:
            with pytest.raises(RegistryUnavailableError, match=rf"registry {re.escape(address)} ended the connection"):
                await push(built, address, tmp_path / "cache", models)
            assert between.cuts == 1
            assert registry.tags("models/digits") == before

            reference = await push(built, address, tmp_path / "cache", models)
        finally:
            await asyncio.to_thread(between.shutdown)
            thread.join()

    assert len(registry.tags("models/digits")) == len(before) + 1
    layer = registry.manifest(reference.sha256)["layers"][-1]
    assert len(registry.blob(layer["digest"])) == layer["size"] > 30_000_000


async def test_moved_tag_of_the_base_image_changes_the_environment(
    built: Built, stock: RunningRegistry, tmp_path: Path
) -> None:
    name = built.base_image.partition("@")[0]
    progress_lines: list[str] = []

    with pytest.raises(ImageError, match=r"base image .*:another cannot be found"):
        await build_container_image(
            built.source,
            name="digits",
            registry=built.registry,
            cache=tmp_path / "cache",
            base_image=f"{name}:another",
        )
    by_tag = await build_container_image(
        built.source,
        name="digits",
        registry=built.registry,
        cache=tmp_path / "cache",
        base_image=f"{name}:3.11",
        progress=progress_lines.append,
    )

    assert by_tag == built.reference, "the tag has that digest now: the environment that was built by it is found"
    assert f"base image: {name}:3.11 is {built.base_image.partition('@')[2]}" in progress_lines
