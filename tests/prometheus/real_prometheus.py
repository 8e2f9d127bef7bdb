"""A real Prometheus from Debian's package, and a proxy for it to an Envoy whose counters are on a unix socket."""

import asyncio
import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.needs import skip
from tests.ports import free_port

DEADLINE_S = 60.0


def require_program() -> None:
    """Skip the test where Prometheus is not installed."""
    if not shutil.which("prometheus"):
        skip("Prometheus is not installed: run `make lab` (on Debian, as root)")


@contextmanager
def forwarding(path: Path) -> Iterator[int]:
    """Forward a TCP port to a unix socket."""
    loop = asyncio.new_event_loop()
    ports: list[int] = []
    listening = threading.Event()
    ending = asyncio.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(str(path))
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        finally:
            for ended in (writer, far_writer):
                ended.transport.abort()

    async def serve() -> None:
        server = await asyncio.start_server(forward, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        listening.set()
        await ending.wait()
        server.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for task in connections:
            task.cancel()
        # Until they have closed their sockets, which otherwise some later test is blamed for.
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.sleep(0)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert listening.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()


@dataclass
class RunningPrometheus:
    """A running Prometheus."""

    url: str
    targets: tuple[str, ...]
    process: subprocess.Popen[bytes]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def scraping(
    folder: Path, *targets: str, interval: str = "500ms", own_port: int | None = None
) -> Iterator[RunningPrometheus]:
    """Run a Prometheus that scrapes Envoys in the block.

    Args:
        folder: For its files; a later Prometheus with the same folder has the same samples.
        targets: Their addresses.
        interval: How often it scrapes.
        own_port: Where Prometheus listens; None takes a free one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own_port = own_port or free_port()
    # JSON is YAML.
    (folder / "prometheus.yml").write_text(
        json.dumps(
            {
                "global": {"scrape_interval": interval, "scrape_timeout": interval},
                "scrape_configs": [
                    {
                        "job_name": "envoy",
                        "metrics_path": "/stats/prometheus",
                        "static_configs": [{"targets": targets}],
                    }
                ],
            }
        )
    )
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{own_port}",
            ],
            stdout=log,
            stderr=log,
        )
    running = RunningPrometheus(f"http://127.0.0.1:{own_port}", targets, process)
    try:
        end = time.monotonic() + DEADLINE_S
        while not _ready(running.url):
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.05)
        yield running
    finally:
        if process.poll() is None:
            running.end()


def _ready(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/-/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
