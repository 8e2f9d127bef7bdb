"""One demo: prepare, trigger the run, follow it to its end, clean up."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from controlled_rollout import image, steps
from controlled_rollout.image import ModelSource
from controlled_rollout.target.local.client import LocalTarget
from scripts.demo import train_control
from scripts.demo.airflow import HOST, Airflow
from scripts.demo.errors import DemoError
from scripts.demo.load_report import read_report
from scripts.demo.local_stack import LocalStack, environment, free_ports, run_quietly
from scripts.demo.processes import StartedProcess
from scripts.demo.result import DemoFacts, DemoResult, conclude
from scripts.demo.rollout_watcher import RolloutWatcher
from scripts.demo.rollouts import on_hold_because, roll_out_until_decided, waiting_for
from scripts.demo.settings import DAG_ID, DEADLINE_S, ENDPOINT, OUTAGE_S, RATE, SETTINGS, Fault, run_parameters
from scripts.demo.view import Preparation, Snapshot, View

__all__ = ["DemoRun"]

T = TypeVar("T")

REFRESH_S: Final = 1.0
LOAD_GRACE_S: Final = 8.0
CONTROL: Final = "first"


class DemoRun:
    """One demo.

    Args:
        folder: The demo's folder; the processes and files of an earlier demo in it are ended and removed.
        fault: What is wrong with the treatment; None for nothing.
        outage: Whether the telemetry store is stopped for a while.
        deadline_s: How long it may take, its clean-up left out.
    """

    def __init__(self, folder: Path, *, fault: Fault | None, outage: bool, deadline_s: float = DEADLINE_S) -> None:
        self._stack = LocalStack(folder)
        self._fault = fault
        self._outage = outage
        self._deadline_s = deadline_s
        self._started_s = time.monotonic()
        self._started = datetime.now(UTC)
        self._preparations: dict[str, float | None] = {}
        self._notice = ""
        self._anew = ""
        self._watcher: RolloutWatcher | None = None
        self._load: StartedProcess | None = None

    @property
    def logs(self) -> Path:
        """The folder of the logs."""
        return self._stack.logs

    @property
    def _report_file(self) -> Path:
        return self._stack.folder / "load.json"

    async def run(self, view: View) -> DemoResult:
        """Run the demo; all processes that it has started have ended when it returns or raises.

        Raises:
            DemoError: It could not be run to its end.
            ControlledRolloutError: A step of the engine failed.
        """
        with self._stack.exclusive():
            return await self._run(view)

    async def _run(self, view: View) -> DemoResult:
        await self._stack.clear()
        self._stack.prepare()
        removing = asyncio.create_task(self._stack.remove_cleared())
        showing = asyncio.create_task(self._show(view))
        try:
            async with asyncio.timeout(self._deadline_s) as limit:
                airflow = await self._prepare()
                await self._follow(airflow)
                await self._end_load()
            return self._conclude()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise DemoError(
                f"not over after {self._deadline_s:g} s, it waits for {waiting_for(self._snapshot())}: run it again, "
                "with nothing else busy on this machine"
            ) from error
        finally:
            showing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await showing
            self._notice = ""
            view.show(self._snapshot())
            await asyncio.shield(self._stack.end())
            await removing

    async def _prepare(self) -> Airflow:
        """Start Airflow and, at the same time, the workspace with its first version and the load."""
        airflow_port, router_port = free_ports(2)
        # Without schedules, because the DAG, once un-paused, would also run for the past week.
        airflow = self._stack.start_airflow(port=airflow_port, schedules=False)
        healthy = self._timed("Airflow", airflow.wait_until_healthy(self._stack.processes, dag_id=DAG_ID))
        await _together(healthy, self._first_version(router_port))
        return airflow

    async def _first_version(self, router_port: int) -> None:
        folder = self._stack.folder
        training = run_quietly(
            "training the control", ["-m", train_control.__name__, str(folder)], log=self.logs / "control.log"
        )
        await _together(
            self._timed("local workspace", self._stack.start_workspace(port=router_port)),
            self._timed("control trained", training),
        )
        built = image.build_local_image(
            train_control.PROJECT,
            name=ENDPOINT,
            cache=self._stack.workspace.cache_folder,
            models=[ModelSource("digits", folder / train_control.MODEL)],
            progress=self._note,
        )
        reference = await self._timed("control's image built", built)
        deployed = steps.deploy(
            self._stack.workspace,
            ENDPOINT,
            CONTROL,
            image=str(reference),
            owner="demo",
            change=steps.Change(who="demo"),
            settings=SETTINGS,
            progress=self._note,
        )
        await self._timed("control serves", deployed)
        await self._start_load()

    async def _start_load(self) -> None:
        async with LocalTarget.open(self._stack.workspace) as target:
            url = urlsplit((await target.status(ENDPOINT)).url)
            key = (await target.keys(ENDPOINT)).primary
        key_file = self._stack.folder / "load.key"
        key_file.touch(mode=0o600)
        key_file.write_text(key, encoding="ascii")
        settings = {
            "host": url.hostname or HOST,
            "port": url.port,
            "path": url.path,
            "key_file": str(key_file),
            "requests_file": str(self._stack.folder / train_control.REQUESTS),
            "rows": train_control.ROWS,
            "report_file": str(self._report_file),
            "rate": RATE,
        }
        settings_file = self._stack.folder / "load-settings.json"
        settings_file.write_text(json.dumps(settings), encoding="utf-8")
        self._load = self._stack.processes.start(
            "load generator",
            [sys.executable, "-m", "scripts.demo.load_generator", str(settings_file)],
            env=environment(),
            log=self.logs / "load.log",
        )

    async def _follow(self, airflow: Airflow) -> None:
        """Roll out, and anew if the first rollout could come to no decision; return when the last one has ended."""
        outage = asyncio.create_task(self._stop_telemetry_for_a_while()) if self._outage else None
        try:
            await roll_out_until_decided(lambda run_id: self._roll_out(airflow, run_id), self._say_anew)
            if outage:
                await outage
        finally:
            if outage:
                outage.cancel()
            await airflow.close()

    async def _roll_out(self, airflow: Airflow, run_id: str) -> RolloutWatcher:
        """Trigger a run, follow it until it ends, and return what was seen of it."""
        watcher = RolloutWatcher(airflow, self._stack.workspace, dag_id=DAG_ID, run_id=run_id, endpoint=ENDPOINT)
        if self._watcher is not None:
            watcher.endpoint, watcher.decisions = self._watcher.endpoint, self._watcher.decisions
        self._watcher = watcher
        await airflow.trigger(DAG_ID, run_id=run_id, conf=self._parameters())
        while not watcher.ended:
            self._check_processes()
            await watcher.refresh()
            if reason := on_hold_because(watcher.endpoint, watcher.decisions):
                raise DemoError(f"the rollout is on hold, and nobody decides in a demo: {reason}")
            await asyncio.sleep(REFRESH_S)
        await watcher.refresh()
        return watcher

    def _say_anew(self, line: str) -> None:
        self._anew = line

    def _parameters(self) -> dict[str, object]:
        if self._fault is None:
            return run_parameters(None)
        # Imported here: only a demo with a fault needs the tests.
        from tests.faults import project

        folder = self._stack.folder / "treatment"
        project(self._fault.value, train_control.PROJECT, folder)
        return run_parameters(self._fault, project=folder)

    async def _stop_telemetry_for_a_while(self) -> None:
        """Stop the telemetry store once a gate has looked, and start it again after `OUTAGE_S` seconds."""
        while self._watcher is None or self._watcher.look is None:
            await asyncio.sleep(REFRESH_S)
        async with LocalTarget.open(self._stack.workspace) as target:
            await target.set_telemetry(False)
            restart_at = time.monotonic() + OUTAGE_S
            try:
                while (left := restart_at - time.monotonic()) > 0:
                    self._notice = f"the telemetry store is stopped: {left:.0f} s to go"
                    await asyncio.sleep(min(REFRESH_S, left))
            finally:
                self._notice = ""
                await target.set_telemetry(True)

    def _check_processes(self) -> None:
        for started in self._stack.processes.started():
            if (code := self._stack.processes.exit_code(started)) is not None:
                raise DemoError(f"{started.name} ended with code {code} in the middle of the demo")

    async def _end_load(self) -> None:
        """Stop the load generator; its last report counts every request that it has sent."""
        assert self._load is not None  # noqa: S101 - started in _prepare
        if not await asyncio.to_thread(self._stack.processes.end, self._load, grace_s=LOAD_GRACE_S):
            raise DemoError(f"the load generator did not end in {LOAD_GRACE_S:g} s: look into {self.logs / 'load.log'}")

    def _conclude(self) -> DemoResult:
        report = read_report(self._report_file)
        watcher = self._watcher
        if report is None or not report.finished or watcher is None or watcher.endpoint is None:
            raise DemoError(f"the load generator has written no last report: look into {self.logs / 'load.log'}")
        end_times = [decision.time for decision in watcher.decisions if decision.step in ("promote", "roll_back")]
        return conclude(
            DemoFacts(
                fault=self._fault,
                outage=self._outage,
                control=CONTROL,
                run_state=watcher.run_state,
                decisions=watcher.decisions,
                endpoint=watcher.endpoint,
                report=report,
                anew=self._anew,
                seconds=(max(end_times, default=datetime.now(UTC)) - self._started).total_seconds(),
            )
        )

    async def _timed(self, name: str, work: Awaitable[T]) -> T:
        self._preparations[name] = None
        started_s = time.monotonic()
        result = await work
        self._preparations[name] = time.monotonic() - started_s
        return result

    def _note(self, line: str) -> None:
        with (self.logs / "demo.log").open("a", encoding="utf-8") as log:
            log.write(f"{time.monotonic() - self._started_s:6.1f} s {line}\n")

    async def _show(self, view: View) -> None:
        while True:
            view.show(self._snapshot())
            await asyncio.sleep(REFRESH_S)

    def _snapshot(self) -> Snapshot:
        watcher = self._watcher
        return Snapshot(
            elapsed_s=time.monotonic() - self._started_s,
            title="controlled-rollout demo" + (f", treatment: {self._fault}" if self._fault else ""),
            preparations=tuple(Preparation(name, seconds) for name, seconds in self._preparations.items()),
            tasks=watcher.tasks if watcher else (),
            endpoint=watcher.endpoint if watcher else None,
            report=read_report(self._report_file),
            look=watcher.look if watcher else None,
            notice=self._notice,
            anew=self._anew,
        )


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """Run several coroutines at once; the first error cancels the others and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
