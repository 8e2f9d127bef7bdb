"""An `airflow standalone` on this machine: its environment, its start, and calls of its REST API."""

import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx  # noqa: TID253 - a program of its own, that no DAG imports

from controlled_rollout.addresses import no_proxy_variables, transport_for
from controlled_rollout.polling import until
from scripts.demo.errors import DemoError
from scripts.demo.processes import Processes, StartedProcess

__all__ = ["AIRFLOW", "Airflow", "TaskState", "environment"]

REPOSITORY: Final = Path(__file__).resolve().parents[2]
HOST: Final = "127.0.0.1"
USER: Final = "admin"
HEALTHY_TIMEOUT_S: Final = 240.0
TRIGGER_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.2
NICE: Final = 10
AIRFLOW: Final = "Airflow"
COMPONENTS: Final = ("scheduler", "triggerer", "dag_processor")
PASSWORDS: Final = "simple_auth_manager_passwords.json.generated"


@dataclass(frozen=True)
class TaskState:
    """The state of a task in a run.

    Attributes:
        task: The task's id, with that of its task group.
        state: Airflow's state; None before the scheduler has seen it.
        started: When the attempt began.
        ended: When the attempt ended.
        attempt: The number of the attempt, from 1.
    """

    task: str
    state: str | None
    started: datetime | None = None
    ended: datetime | None = None
    attempt: int = 1


def environment(
    home: Path,
    *,
    port: int,
    log_ports: tuple[int, int],
    workspace_root: Path,
    schedules: bool,
    outside: Mapping[str, str],
) -> dict[str, str]:
    """Return Airflow's environment: the caller's without settings of another Airflow, and the demo's settings.

    Args:
        home: AIRFLOW_HOME.
        port: The API server's port.
        log_ports: The ports of the scheduler's and the triggerer's log servers.
        workspace_root: The folder of the workspace of the default connection.
        schedules: Whether DAGs run by their schedules too, not only when they are triggered.
        outside: The caller's environment.
    """
    connection = {"conn_type": "controlled_rollout", "extra": {"target": "local", "root": str(workspace_root)}}
    settings = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW_CONN_CONTROLLED_ROLLOUT_DEFAULT": json.dumps(connection),
        "AIRFLOW__API__HOST": HOST,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{HOST}:{port}/execution/",
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(log_ports[1]),
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(log_ports[0]),
        "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True",
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": str(schedules),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        # On a busy machine the API server may answer late; tasks then wait instead of failing.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
        # A worker notices within so many seconds that its task has deferred. If the trigger fires before, the scheduler
        # takes the task for dead and retries it later.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        # `airflow standalone` starts its parts by this name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{outside.get('PATH', os.defpath)}",
        "NO_COLOR": "1",
    }
    # Airflow is a dozen processes that import the same modules: without bytecode each of them compiles all again, and
    # where coverage is measured each of them takes half as long again.
    dropped = {"PYTHONDONTWRITEBYTECODE", "COVERAGE_PROCESS_CONFIG", "FORCE_COLOR"}
    kept = {n: v for n, v in outside.items() if n not in dropped and not n.startswith("AIRFLOW")}
    # Its processes call each other on this machine.
    return kept | no_proxy_variables(outside) | settings


class Airflow:
    """An `airflow standalone` with the repository's DAGs.

    Args:
        home: AIRFLOW_HOME; it is created unless it exists, for its owner only.
        port: The API server's port on 127.0.0.1.
        log: Receives its output.
    """

    def __init__(self, home: Path, *, port: int, log: Path) -> None:
        self._home = home
        self._port = port
        self._log = log
        self._client = httpx.AsyncClient(base_url=self.url, timeout=10, transport=transport_for(self.url))
        self._process: StartedProcess | None = None

    @property
    def url(self) -> str:
        """The address of the UI and the API."""
        return f"http://{HOST}:{self._port}"

    @property
    def password_file(self) -> Path:
        """The file with the password of the user `admin`."""
        return self._home / PASSWORDS

    def start(
        self, processes: Processes, *, log_ports: tuple[int, int], workspace_root: Path, schedules: bool
    ) -> StartedProcess:
        """Start Airflow; `wait_until_healthy` waits for it."""
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.password_file.exists():
            # Airflow would print a password that it generates itself into its log.
            self.password_file.touch(mode=0o600)
            self.password_file.write_text(json.dumps({USER: secrets.token_urlsafe(16)}), encoding="utf-8")
        self._process = processes.start(
            AIRFLOW,
            # At a lower priority, so that Airflow's start does not show in the latency of the versions.
            ["nice", "-n", str(NICE), sys.executable, "-m", "airflow", "standalone"],
            env=environment(
                self._home,
                port=self._port,
                log_ports=log_ports,
                workspace_root=workspace_root,
                schedules=schedules,
                outside=os.environ,
            ),
            log=self._log,
        )
        return self._process

    async def wait_until_healthy(self, processes: Processes, *, dag_id: str) -> None:
        """Wait until all components of Airflow run and a DAG is parsed.

        Raises:
            DemoError: Airflow ended, or was not healthy in time.
        """
        missing = "the API server"

        async def is_healthy() -> bool:
            nonlocal missing
            if self._process and (code := processes.exit_code(self._process)) is not None:
                raise DemoError(f"Airflow ended with code {code} while it started: look into {self._log}")
            try:
                missing = await self._missing(dag_id)
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                missing = f"the API server ({error or type(error).__name__})"
            return not missing

        if not await until(is_healthy, HEALTHY_TIMEOUT_S, interval_s=POLL_S):
            raise DemoError(
                f"Airflow was not healthy after {HEALTHY_TIMEOUT_S:g} s, {missing} is missing: look into {self._log}"
            )

    async def _missing(self, dag_id: str) -> str:
        """Return what is missing until Airflow is healthy; empty if nothing is."""
        health = (await self._client.get("/api/v2/monitor/health")).raise_for_status().json()
        if unhealthy := [name for name in COMPONENTS if (health.get(name) or {}).get("status") != "healthy"]:
            return ", ".join(unhealthy)
        if "authorization" not in self._client.headers:
            # The tasks' API needs seconds for its first request: here they do not delay the first task.
            await self._client.get("/execution/health", timeout=HEALTHY_TIMEOUT_S)
            await self._log_in()
        dag = await self._client.get(f"/api/v2/dags/{dag_id}")
        if dag.status_code == httpx.codes.NOT_FOUND:
            errors = (await self._client.get("/api/v2/importErrors")).raise_for_status().json()
            causes = "; ".join(error["stack_trace"].strip().splitlines()[-1] for error in errors["import_errors"])
            return f"DAG {dag_id}" + (f" ({causes})" if causes else "")
        dag.raise_for_status()
        return ""

    async def _log_in(self) -> None:
        passwords = json.loads(self.password_file.read_text(encoding="utf-8"))
        response = await self._client.post("/auth/token", json={"username": USER, "password": passwords[USER]})
        self._client.headers["authorization"] = f"Bearer {response.raise_for_status().json()['access_token']}"

    async def trigger(self, dag_id: str, *, run_id: str, conf: dict[str, Any]) -> None:
        """Un-pause a DAG and start a run of it.

        Raises:
            DemoError: Airflow refuses it, or does not answer.
        """
        for method, path, body in (
            ("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False}),
            ("POST", f"/api/v2/dags/{dag_id}/dagRuns", {"dag_run_id": run_id, "logical_date": None, "conf": conf}),
        ):
            try:
                response = await self._client.request(method, path, json=body, timeout=TRIGGER_TIMEOUT_S)
            except httpx.TransportError as error:
                raise DemoError(
                    f"Airflow did not answer {method} {path} ({error or type(error).__name__}): look into {self._log}"
                ) from error
            if response.is_error:
                raise DemoError(f"Airflow refused {method} {path} with {response.status_code}: {response.text[:500]}")

    async def run_state(self, dag_id: str, run_id: str) -> str:
        """Return a run's state: queued, running, success or failed."""
        response = (await self._client.get(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")).raise_for_status()
        return str(response.json()["state"])

    async def tasks(self, dag_id: str, run_id: str) -> list[TaskState]:
        """Return the states of a run's tasks."""
        response = await self._client.get(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances")
        return [
            TaskState(
                task["task_id"],
                task["state"],
                _time(task["start_date"]),
                _time(task["end_date"]),
                task["try_number"],
            )
            for task in response.raise_for_status().json()["task_instances"]
        ]

    async def task_graph(self, dag_id: str) -> dict[str, list[str]]:
        """Return the tasks of a DAG, each with the tasks directly downstream of it."""
        response = (await self._client.get(f"/api/v2/dags/{dag_id}/tasks")).raise_for_status()
        return {task["task_id"]: task["downstream_task_ids"] for task in response.json()["tasks"]}

    async def close(self) -> None:
        """Close the connections to Airflow."""
        await self._client.aclose()


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
