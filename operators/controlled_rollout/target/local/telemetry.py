"""The local telemetry store as a child process: started on one port, replaced when it dies, stopped on demand."""

import asyncio
import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Final

from controlled_rollout.polling import until
from controlled_rollout.target.local.probe import status_of_port
from controlled_rollout.target.local.processes import (
    MARK,
    BackOff,
    Child,
    LogFile,
    how_it_ended,
    inherited_environment,
)

__all__ = ["TelemetryStore"]

HOST: Final = "127.0.0.1"
STOP_GRACE_S: Final = 10.0
PROBE_S: Final = 0.1


class TelemetryStore:
    """The process that takes the router's spans and answers the gate's queries."""

    def __init__(self, *, port: int, data: Path, token_file: Path, runtime: Path, log: LogFile) -> None:
        self.port = port
        self.token_file = token_file
        self.workspace_id: str | None = None
        self._data = data
        self._runtime = runtime
        self._log = log
        self._child: Child | None = None
        self._task: asyncio.Task[None] | None = None
        self._wanted = False
        self._wake = asyncio.Event()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._child.pid if self._child else None

    async def set_running(self, running: bool) -> None:
        """Start the store, or stop it; either way until told otherwise."""
        self._wanted = running
        self._wake.set()
        if running:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._keep_running(), name="telemetry store")
            return
        if self._child:
            await self._child.stop(STOP_GRACE_S)
        if self._task:
            await self._task

    async def wait_until_healthy(self, timeout_s: float) -> bool:
        """Wait until the store answers; learn its workspace id."""

        async def answers() -> bool:
            return await status_of_port(HOST, self.port, "/healthz", timeout_s=1.0) == 200

        if not await until(answers, timeout_s, interval_s=PROBE_S):
            return False
        self.workspace_id = await asyncio.to_thread(self._ask_workspace_id)
        return True

    def _ask_workspace_id(self) -> str | None:
        # Without the proxies that the environment names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/healthz", timeout=2) as answer:
            workspace_id = json.load(answer).get("workspace_id")
        return str(workspace_id) if workspace_id else None

    async def _keep_running(self) -> None:
        pauses = BackOff(first_s=0.2, longest_s=30.0, healthy_s=30.0)
        while self._wanted:
            started = time.monotonic()
            try:
                self._child = await Child.start(self._argv(), env=self._environment(), log=self._log)
                how = how_it_ended(await self._child.wait())
            except OSError as error:
                how = f"could not be started: {error}"
            self._child = None
            self._log.note(f"telemetry store {how}")
            if self._wanted:
                self._wake.clear()
                await _event_within(self._wake, pauses.after(time.monotonic() - started))

    def _argv(self) -> list[str]:
        return [
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

    def _environment(self) -> dict[str, str]:
        return inherited_environment() | {MARK: str(self._runtime), "PYTHONUNBUFFERED": "1"}


async def _event_within(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
