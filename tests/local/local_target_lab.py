"""A real local workspace for the tests: its own folder, its own supervisor, images from a cache that tests share."""

import asyncio
import fcntl
import json
import math
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from controlled_rollout import image
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.local import supervisor
from controlled_rollout.target.local.client import LocalTarget
from controlled_rollout.target.local.supervisor_state import SupervisorState
from controlled_rollout.target.protocol import Change, EndpointStatus
from controlled_rollout.target.waiting import wait_until_ready, wait_until_served
from controlled_rollout.workspace import Workspace, user_cache
from tests.polling import until
from tests.target_per_call import target_per_call

CHANGE = Change(who="a test", reason="to see what happens")
DEADLINE = timedelta(seconds=60)
CONNECTIONS = 4
VERSION_HEADER = "azureml-model-deployment"

# No Python is asked for: the one that the tests run on.
ENVIRONMENT = "dependencies:\n  - pip\n"

ANSWERING = """
import json, os, time

def init():
    print("init in process", os.getpid())

def run(data):
    ask = json.loads(data or "{}")
    time.sleep(ask.get("sleep_s", 0))
    return {"bytes": len(data), "note": NOTE}

NOTE = "%s"
"""

CRASHING = """
import os

def init():
    print("no weights found in the model folder", flush=True)
    os._exit(1)

def run(data):
    return {}
"""


BREAKING_OFF = """
import json, time
from azureml_inference_server_http.api.aml_request import rawhttp
from flask import Response

def init():
    pass

def answer(fails):
    yield b"the first part,"
    # In its own time: the router has passed the first part on.
    time.sleep(0.2)
    if fails:
        raise ValueError("the stream failed")
    yield b"the last part"

@rawhttp
def run(request):
    return Response(answer(json.loads(request.get_data())["fails"]))
"""


def build(folder: Path, script: str) -> str:
    """Return the reference of an image that runs `script`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "score.py").write_text(script)
    (folder / "environment.yml").write_text(ENVIRONMENT)
    return str(asyncio.run(image.build_local_image(folder, name="test", cache=user_cache())))


@dataclass
class Lab:
    """A running workspace."""

    workspace: Workspace
    target: LocalTarget
    folder: Path
    images: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> SupervisorState:
        supervisor = SupervisorState.read(self.workspace)
        assert supervisor is not None
        return supervisor

    async def image(self, note: str = "first", script: str | None = None) -> str:
        key = script or note
        if key not in self.images:
            # A folder of its own: two images may be built at the same time.
            source = Path(tempfile.mkdtemp(prefix="source-", dir=self.folder))
            self.images[key] = await asyncio.to_thread(build, source, script or ANSWERING % note)
        return self.images[key]

    async def apply(self, endpoint: Endpoint) -> Endpoint:
        return await self.target.apply(endpoint, CHANGE)

    async def serve(self, endpoint: Endpoint) -> tuple[Endpoint, EndpointStatus]:
        """Apply an endpoint, and wait until the router serves it."""
        stored = await self.apply(endpoint)
        return stored, await self.served(stored)

    async def served(self, stored: Endpoint) -> EndpointStatus:
        return await wait_until_served(self.target, stored.name, stored.revision, timeout=DEADLINE)

    async def ready(self, endpoint: str, version: str) -> None:
        await wait_until_ready(self.target, endpoint, version, timeout=DEADLINE, progress=lambda line: None)

    async def url(self, endpoint: str) -> str:
        return (await self.target.status(endpoint)).url


def start(folder: Path, **settings: Any) -> Lab:
    """Start a workspace in `folder` on a free port."""
    root = folder / "workspace"
    root.mkdir(mode=0o700)
    workspace = Workspace.from_settings({"root": root, **settings})
    assert supervisor.start_workspace(workspace, port=0, detach=True) == 0
    return Lab(workspace, target_per_call(lambda: LocalTarget.open(workspace)), folder)


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Lab]:
    """Start a workspace, and stop it at the end."""
    lab = start(folder, **settings)
    try:
        yield lab
    finally:
        assert supervisor.stop_workspace(lab.workspace) == 0


def is_folder_free(workspace: Workspace) -> bool:
    """Return whether no supervisor holds the folder's lock."""
    with (workspace.root / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@dataclass
class Load:
    """The responses to a steady load."""

    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)

    @property
    def sent(self) -> int:
        return sum(self.statuses.values()) + len(self.broken)

    @property
    def failed(self) -> dict[str, int]:
        failures = {str(status): count for status, count in self.statuses.items() if status != 200}
        return failures | ({"broken": len(self.broken)} if self.broken else {})

    async def more(self, requests: int) -> None:
        """Wait until so many more requests have been answered."""
        goal = self.sent + requests
        await until(lambda: self.sent >= goal, f"{requests} more requests", timeout_s=60)


@asynccontextmanager
async def steady_load(
    url: str,
    key: str,
    *,
    rate: float = 150.0,
    connections: int = CONNECTIONS,
    tls: ssl.SSLContext | None = None,
    per_connection: float = math.inf,
) -> AsyncIterator[Load]:
    """Send requests at a steady rate for as long as the block runs, over connections kept for so many requests."""
    load = Load()
    ending = asyncio.Event()
    senders = [
        asyncio.create_task(_send(url, key, load, ending, connections / rate, tls, per_connection))
        for _ in range(connections)
    ]
    try:
        yield load
    finally:
        ending.set()
        await asyncio.gather(*senders)


async def _send(
    url: str,
    key: str,
    load: Load,
    ending: asyncio.Event,
    interval_s: float,
    tls: ssl.SSLContext | None,
    per_connection: float,
) -> None:
    where = urlsplit(url)
    document = json.dumps({"data": [[0.0] * 64]}).encode()
    request = (
        f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(document)}\r\n\r\n"
    ).encode() + document
    streams = None
    sent = 0
    due = time.monotonic()
    while not ending.is_set():
        began = time.monotonic()
        try:
            if streams is None:
                streams = await asyncio.open_connection(where.hostname, where.port, ssl=tls)
                sent = 0
            status, headers, body = await asyncio.wait_for(_exchange(*streams, request), 20)
        except (OSError, EOFError, TimeoutError) as error:
            load.broken.append(repr(error))
            if streams is not None:
                streams[1].close()
            streams = None
        else:
            load.latencies_s.append(time.monotonic() - began)
            load.statuses[status] += 1
            load.versions[headers.get(VERSION_HEADER, "")] += 1
            if status != 200:
                load.refusals[f"{status} {headers.get(VERSION_HEADER)}: {body[:200].decode(errors='replace')}"] += 1
            sent += 1
            if headers.get("connection") == "close" or sent >= per_connection:
                streams[1].close()
                streams = None
        due = max(due + interval_s, time.monotonic() - interval_s)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    if streams is not None:
        streams[1].close()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, dict[str, str], bytes]:
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in head[1:]:
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return int(head[0].split()[1]), headers, body
