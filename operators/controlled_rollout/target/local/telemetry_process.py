"""The local telemetry store as a supervised process: always on the same port, stopped and started on demand."""

import asyncio
import sys
from pathlib import Path
from typing import Final

import httpx  # noqa: TID253 - runs only inside the supervisor's process

from controlled_rollout.polling import until
from controlled_rollout.target.local.child_process import RUNTIME_VARIABLE, inherited_environment
from controlled_rollout.target.local.liveness import LivenessCheck
from controlled_rollout.target.local.log_file import LogFile
from controlled_rollout.target.local.probe import http_status_on_port
from controlled_rollout.target.local.process_status import ProcessStatus
from controlled_rollout.target.local.supervised_process import BackOff, Command, SupervisedProcess

__all__ = ["TelemetryStoreProcess"]

HOST: Final = "127.0.0.1"
STOP_GRACE_S: Final = 10.0
PROBE_INTERVAL_S: Final = 0.1
PROBE_TIMEOUT_S: Final = 1.0
MAX_FAILED_STARTS: Final = 3
# Generous: a store that is busy with a large query loses what it was sent if it is replaced.
LIVENESS_START_S: Final = 120.0
LIVENESS_INTERVAL_S: Final = 5.0
LIVENESS_TIMEOUT_S: Final = 5.0
LIVENESS_FAILURES: Final = 3


class TelemetryStoreProcess:
    """The process of the telemetry store, which takes the router's spans and answers the gate's queries.

    Args:
        port: Where it listens on 127.0.0.1.
        data: The folder of its database.
        token_file: Holds the bearer token that queries must bring.
        upload_token_file: Holds the bearer token that the router's spans bring.
        runtime: The supervisor's runtime folder.
        log: Receives its output.

    Attributes:
        workspace_id: The id of the workspace that it answers for; None until it has answered once.
    """

    def __init__(
        self, *, port: int, data: Path, token_file: Path, upload_token_file: Path, runtime: Path, log: LogFile
    ) -> None:
        self.port = port
        self.token_file = token_file
        self.workspace_id: str | None = None
        self._upload_token_file = upload_token_file
        self._data = data
        self._runtime = runtime
        self._liveness = LivenessCheck(
            self._is_answering, start_s=LIVENESS_START_S, interval_s=LIVENESS_INTERVAL_S, max_failures=LIVENESS_FAILURES
        )
        self._process = SupervisedProcess(
            "telemetry store",
            self._store_command,
            log=log,
            back_off=BackOff(first_s=0.2, longest_s=30.0, healthy_s=30.0),
            watch=self._liveness.watch,
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

    @property
    def status(self) -> ProcessStatus:
        """The process's status for clients."""
        return ProcessStatus.of(self._process, is_answering=self._liveness.is_answering)

    async def _is_answering(self) -> bool:
        """Return whether the store answers its health check, whatever the answer."""
        return await http_status_on_port(HOST, self.port, "/healthz", LIVENESS_TIMEOUT_S) is not None

    async def start(self) -> None:
        """Start the store; restart it whenever it ends."""
        async with self._changing:
            self._process.start()

    async def stop(self) -> None:
        """End the store; it is not started again before `start`."""
        async with self._changing:
            await self._process.stop(STOP_GRACE_S)

    async def wait_until_healthy(self, timeout_s: float) -> bool:
        """Wait until the store answers, and read its Log Analytics workspace id.

        Returns:
            False if it does not answer within `timeout_s` seconds, or has ended `MAX_FAILED_STARTS` times meanwhile.
        """
        last_start = self._process.starts + MAX_FAILED_STARTS

        def has_failed() -> bool:
            """Return whether the store was started again and again."""
            return self._process.starts > last_start

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
            healthy = False

            async def is_decided() -> bool:
                """Return whether waiting can end."""
                nonlocal healthy
                healthy = await is_healthy()
                return healthy or has_failed()

            await until(is_decided, timeout_s, interval_s=PROBE_INTERVAL_S)
            return healthy

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
            "--upload-token-file",
            str(self._upload_token_file),
        ]
        environment = inherited_environment() | {
            RUNTIME_VARIABLE: str(self._runtime),
            "PYTHONUNBUFFERED": "1",
        }
        return Command(arguments, environment)
