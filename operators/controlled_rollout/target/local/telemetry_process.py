"""The local telemetry store as a supervised process: always on the same port, stopped and started on demand."""

import asyncio
import sys
from pathlib import Path
from typing import Final

import httpx  # noqa: TID253 - runs only inside the supervisor's process

from controlled_rollout.polling import until
from controlled_rollout.target.local.child_process import RUNTIME_VARIABLE, inherited_environment
from controlled_rollout.target.local.log_file import LogFile
from controlled_rollout.target.local.supervised_process import BackOff, Command, SupervisedProcess

__all__ = ["TelemetryStoreProcess"]

HOST: Final = "127.0.0.1"
STOP_GRACE_S: Final = 10.0
PROBE_INTERVAL_S: Final = 0.1
PROBE_TIMEOUT_S: Final = 1.0


class TelemetryStoreProcess:
    """The process of the telemetry store, which takes the router's spans and answers the gate's queries.

    Args:
        port: Where it listens on 127.0.0.1.
        data: The folder of its database.
        token_file: Holds the bearer token that queries must bring.
        runtime: The supervisor's runtime folder.
        log: Receives its output.

    Attributes:
        workspace_id: The id of the workspace that it answers for; None until it has answered once.
    """

    def __init__(self, *, port: int, data: Path, token_file: Path, runtime: Path, log: LogFile) -> None:
        self.port = port
        self.token_file = token_file
        self.workspace_id: str | None = None
        self._data = data
        self._runtime = runtime
        self._process = SupervisedProcess(
            "telemetry store",
            self._store_command,
            log=log,
            back_off=BackOff(first_s=0.2, longest_s=30.0, healthy_s=30.0),
        )
        # A start must not come in the middle of a stop.
        self._changing = asyncio.Lock()

    @property
    def url(self) -> str:
        """The store's address."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id; None while no process runs."""
        return self._process.pid

    async def start(self) -> None:
        """Start the store; restart it whenever it ends."""
        async with self._changing:
            self._process.start()

    async def stop(self) -> None:
        """End the store; it is not started again before `start`."""
        async with self._changing:
            await self._process.stop(STOP_GRACE_S)

    async def wait_until_healthy(self, timeout_s: float) -> bool:
        """Wait until the store answers, and read its Log Analytics workspace id; return False if it is too slow."""

        async def is_healthy() -> bool:
            """Return whether the store answers its health check; set `workspace_id` from the answer."""
            try:
                response = (await client.get(f"{self.url}/healthz")).raise_for_status()
                self.workspace_id = str(response.json()["workspace_id"])
            except (httpx.HTTPError, ValueError, KeyError):
                return False
            return True

        # Without the proxies that the environment names.
        async with httpx.AsyncClient(timeout=PROBE_TIMEOUT_S, trust_env=False) as client:
            return await until(is_healthy, timeout_s, interval_s=PROBE_INTERVAL_S)

    def _store_command(self) -> Command:
        """Return the command that starts the telemetry store."""
        arguments = [
            sys.executable,
            "-m",
            "controlled_rollout.cli",
            "telemetry-store",
            "--port",
            str(self.port),
            "--data",
            str(self._data),
            "--token-file",
            str(self.token_file),
        ]
        environment = inherited_environment() | {
            RUNTIME_VARIABLE: str(self._runtime),
            "PYTHONUNBUFFERED": "1",
        }
        return Command(arguments, environment)
