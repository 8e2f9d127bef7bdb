"""An Airflow API server under a base path, with an administrator and a viewer, and the repository's DAGs.

Without a scheduler a run that is triggered stays queued, so nothing happens to an endpoint.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from tests.airflow_database import create_database
from tests.airflow_home import DAGS
from tests.polling import wait_until
from tests.ports import free_port

__all__ = ["PASSWORDS", "AirflowApiServer", "airflow_api_server"]

DEADLINE_S: Final = 240.0
PASSWORDS: Final = {"admin": "an-admin-of-a-test", "viewer": "a-viewer-of-a-test"}
BASE_PATH: Final = "/airflow"


@dataclass(frozen=True)
class AirflowApiServer:
    """A server that runs.

    Attributes:
        url: Its address, with the base path.
        pid: Its process.
    """

    url: str
    pid: int

    @contextmanager
    def client(self, user: str | None = None) -> Iterator[httpx.Client]:
        """Context manager: a client that is signed in as a user by a token; anonymous without one."""
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as client:
            if user is not None:
                client.headers["authorization"] = f"Bearer {self.token(user)}"
            yield client

    def token(self, user: str) -> str:
        """Return a token of a user."""
        sign_in = {"username": user, "password": PASSWORDS[user]}
        answer = httpx.post(f"{self.url}auth/token", json=sign_in, timeout=60, trust_env=False)
        return str(answer.raise_for_status().json()["access_token"])


@contextmanager
def airflow_api_server(
    home: Path, settings: Mapping[str, str], *, scheduler: bool = False
) -> Iterator[AirflowApiServer]:
    """Context manager: start the server in a new home with these settings, and a scheduler; end them on exit."""
    home.mkdir(parents=True)
    port = free_port()
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps(PASSWORDS))
    passwords.chmod(0o600)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    environment = kept | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}{BASE_PATH}",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}{BASE_PATH}/execution/",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        **settings,
    }
    # Only the server has code of this project that nothing else runs; measured, a process takes half as long again.
    unmeasured = {name: value for name, value in environment.items() if name != "COVERAGE_PROCESS_CONFIG"}
    log = home / "api-server.log"
    create_database(home)
    airflow = [sys.executable, "-m", "airflow"]
    with log.open("wb") as output:
        subprocess.run(
            [*airflow, "dags", "reserialize"],
            env=unmeasured, stdout=output, stderr=output, check=True, timeout=DEADLINE_S,
        )  # fmt: skip
        parts = {"api-server": environment} | ({"scheduler": unmeasured} if scheduler else {})
        processes = [
            subprocess.Popen([*airflow, part], env=variables, stdout=output, stderr=output, start_new_session=True)
            for part, variables in parts.items()
        ]
    process = processes[0]
    server = AirflowApiServer(f"http://127.0.0.1:{port}{BASE_PATH}/", process.pid)
    try:
        wait_until(lambda: _answers(server, process, log), "the API server", timeout_s=DEADLINE_S, interval_s=0.2)
        yield server
    finally:
        for started in processes[1:]:
            # It would wait for its tasks, which nobody waits for.
            started.kill()
        for started in processes:
            _end(started)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process, and what is left of its session."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _answers(server: AirflowApiServer, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    """Return whether the server answers; raise if it has ended."""
    assert process.poll() is None, log.read_text(errors="replace")[-4000:]
    try:
        return httpx.get(f"{server.url}api/v2/version", timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
