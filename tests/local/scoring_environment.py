"""A real Python environment of a version, built by uv once and kept, and real replicas that run in it."""

import fcntl
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from uv import find_uv_bin

from tests.polling import wait_until

REPOSITORY = Path(__file__).parents[2]
RUNTIME = REPOSITORY / "docker" / "scoring"
REQUIREMENTS = RUNTIME / "controlled_rollout_scoring" / "requirements.txt"
# Packages that the scripts of the tests import.
USERS_PACKAGES = ("numpy", "pandas", "joblib")
# Measures the runtime where the tests themselves are measured, which this variable passes on to every process.
COVERAGE = f"coverage=={version('coverage')}"
COVERAGE_SETTING = "COVERAGE_PROCESS_CONFIG"
DEADLINE_S = 60.0

# Scores until the file named in the request body exists; creates <file>.begun when it begins.
HOLD = """
import os, time

def init():
    if os.environ.get("INIT_WAITS_FOR"):
        wait(os.environ["INIT_WAITS_FOR"])

def wait(path):
    open(path + ".begun", "w").close()
    while not os.path.exists(path):
        time.sleep(0.005)

def run(data):
    if data.startswith("/"):
        wait(data)
    if data == "pid":
        return os.getpid()
    return "scored"
"""


def environment_python() -> Path:
    """Return the interpreter of an environment with the runtime's requirements; builds it the first time."""
    packages = (*USERS_PACKAGES, COVERAGE)
    content = "\n".join([sys.version, *packages, REQUIREMENTS.read_text()])
    folder = REPOSITORY / ".work" / "test-cache" / f"scoring-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "environment" / "bin" / "python"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            uv = find_uv_bin()
            subprocess.run(
                [uv, "venv", "-q", "--clear", "-p", sys.executable, folder / "environment"],
                check=True,
            )
            subprocess.run([uv, "pip", "install", "-q", "-p", python, "-r", REQUIREMENTS, *packages], check=True)
            (folder / "complete").touch()
    return python


@dataclass(frozen=True)
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Replica:
    """A running replica and its log."""

    process: subprocess.Popen[bytes]
    log_file: Path
    port: int = 0

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def request(
        self, method: str, path: str, body: bytes | str | Iterable[bytes] | None = None, **headers: str
    ) -> Response:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return Response(response.status, response.headers, response.read())
        finally:
            connection.close()

    def score(self, body: bytes | str | Iterable[bytes] = b"{}", **headers: str) -> Response:
        return self.request("POST", "/score", body, **{"Content_Type": "application/json", **headers})

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)


@contextmanager
def start_replica(
    python: Path,
    folder: Path,
    script: str,
    *,
    bind: str = "127.0.0.1:0",
    options: tuple[str, ...] = (),
    ready: bool = True,
    environment: Mapping[str, str] | None = None,
    **settings: str,
) -> Iterator[Replica]:
    """Serve a script in a replica, which is killed at the end if it still runs.

    Args:
        python: The interpreter of the version's environment.
        folder: Where to put the project folder and the log.
        script: The content of `score.py`.
        bind: The address to serve on.
        options: More arguments of the command line.
        ready: Wait until the replica is ready.
        environment: Environment variables.
        settings: More environment variables.
    """
    app = folder / "app"
    app.mkdir(exist_ok=True)
    (app / "score.py").write_text(script)
    command = [str(python), "-m", "controlled_rollout_scoring", "--bind", bind, *options]
    variables = runtime_environment(app, {**(environment or {}), **settings})
    log_file = folder / "replica.log"
    with log_file.open("w") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=app)
    running = Replica(process, log_file)
    try:
        if ready:
            wait_until(
                lambda: "ready: listening on" in running.log or process.poll() is not None, "the replica is ready"
            )
            assert process.poll() is None, running.log
            running.port = listening_port(running.log)
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()


def runtime_environment(app: Path, settings: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", COVERAGE_SETTING) if name in os.environ}
    contract = {"PYTHONPATH": str(RUNTIME), "AML_APP_ROOT": str(app), "AZUREML_ENTRY_SCRIPT": "score.py"}
    return {**inherited, **contract, "AZUREML_MODEL_DIR": str(app), **settings}


def listening_port(log: str) -> int:
    """Return the port in the log line of a replica that is ready; 0 if it listens on a unix socket."""
    address = log.rpartition("ready: listening on ")[2].split(",")[0]
    return 0 if address.startswith("unix:") else int(address.rpartition(":")[2])


def start_held_request(replica: Replica, pool: Executor, file: Path) -> Future[Response]:
    """Send a request and wait until it is being scored; it is held until `file` exists."""
    future = pool.submit(replica.score, str(file))
    wait_until(lambda: Path(f"{file}.begun").exists(), "the request is being scored")
    return future


def fetch(address: str, path: str) -> tuple[int, str]:
    """GET a path from a unix socket or a local port; return status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", timeout=DEADLINE_S)
    if address.startswith("unix:"):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(address.removeprefix("unix:"))
    else:
        connection.sock = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
    connection.request("GET", path)
    response = connection.getresponse()
    try:
        return response.status, response.read().decode()
    finally:
        connection.close()


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False
