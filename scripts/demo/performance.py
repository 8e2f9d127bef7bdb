"""One demo from its first process to its last: prepare, trigger the run, watch it to its end, clear up."""

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
from scripts.demo import control
from scripts.demo.airflow import HOST, Airflow
from scripts.demo.outcome import End, Ending, conclude
from scripts.demo.plan import DAG_ID, ENDPOINT, OUTAGE_S, RATE, RUN_ID, SETTINGS, Fault, run_parameters
from scripts.demo.problem import DemoError
from scripts.demo.processes import Started
from scripts.demo.report import read_report
from scripts.demo.stage import Stage, environment, free_ports, run_quietly
from scripts.demo.view import Preparation, Snapshot, View
from scripts.demo.watch import Watcher

__all__ = ["Performance"]

T = TypeVar("T")

REFRESH_S: Final = 1.0
RUN_WITHIN_S: Final = 600.0
LOAD_GRACE_S: Final = 8.0
FIRST: Final = "first"


class Performance:
    """One demo.

    Args:
        folder: Where everything is; what an earlier demo left there is ended and removed.
        fault: What is wrong with the treatment; None for nothing.
        outage: Whether the telemetry store is taken away for a while.
    """

    def __init__(self, folder: Path, *, fault: Fault | None, outage: bool) -> None:
        self._stage = Stage(folder)
        self._fault = fault
        self._outage = outage
        self._begun = time.monotonic()
        self._began = datetime.now(UTC)
        self._preparations: dict[str, float | None] = {}
        self._notice = ""
        self._watcher: Watcher | None = None
        self._load: Started | None = None

    @property
    def logs(self) -> Path:
        """Where the logs are."""
        return self._stage.logs

    @property
    def _report_file(self) -> Path:
        return self._stage.folder / "load.json"

    async def run(self, view: View) -> End:
        """Run the demo and return its end; whatever happens, everything that it started has ended then.

        Raises:
            DemoError, ControlledRolloutError: It could not be brought to its end.
        """
        with self._stage.alone():
            return await self._run(view)

    async def _run(self, view: View) -> End:
        await self._stage.clear()
        self._stage.prepare()
        removing = asyncio.create_task(self._stage.remove_cleared())
        showing = asyncio.create_task(self._show(view))
        try:
            airflow = await self._prepare()
            await self._follow(airflow)
            await self._end_load()
            return self._conclude()
        finally:
            showing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await showing
            self._notice = ""
            view.show(self._snapshot())
            await asyncio.shield(self._stage.end())
            await removing

    async def _prepare(self) -> Airflow:
        """Bring up Airflow and, beside it, the workspace with its first version and the load."""
        airflow_port, router_port = free_ports(2)
        # The run that is watched is the only one: un-paused, the DAG would also catch up with its last week.
        airflow = self._stage.start_airflow(port=airflow_port, schedules=False)
        healthy = self._timed("Airflow", airflow.wait_until_healthy(self._stage.processes, dag_id=DAG_ID))
        await _together(healthy, self._first_version(router_port))
        self._watcher = Watcher(airflow, self._stage.workspace, dag_id=DAG_ID, run_id=RUN_ID, endpoint=ENDPOINT)
        return airflow

    async def _first_version(self, router_port: int) -> None:
        folder = self._stage.folder
        training = run_quietly(
            "training the control", ["-m", control.__name__, str(folder)], log=self.logs / "control.log"
        )
        await _together(
            self._timed("local workspace", self._stage.start_workspace(port=router_port)),
            self._timed("control trained", training),
        )
        built = image.build_local_image(
            control.PROJECT,
            name=ENDPOINT,
            cache=self._stage.workspace.cache_folder,
            models=[ModelSource("digits", folder / control.MODEL)],
            progress=self._note,
        )
        reference = await self._timed("control's image built", built)
        rolled_out = steps.roll_out(
            self._stage.workspace,
            ENDPOINT,
            FIRST,
            image=str(reference),
            owner="demo",
            change=steps.Change(who="demo"),
            settings=SETTINGS,
            progress=self._note,
        )
        await self._timed("control serves", rolled_out)
        await self._start_load()

    async def _start_load(self) -> None:
        async with LocalTarget.open(self._stage.workspace) as target:
            url = urlsplit((await target.status(ENDPOINT)).url)
            key = (await target.keys(ENDPOINT)).primary
        key_file = self._stage.folder / "load.key"
        key_file.touch(mode=0o600)
        key_file.write_text(key, encoding="ascii")
        settings = {
            "host": url.hostname or HOST,
            "port": url.port,
            "path": url.path,
            "key_file": str(key_file),
            "requests_file": str(self._stage.folder / control.REQUESTS),
            "rows": control.ROWS,
            "report_file": str(self._report_file),
            "rate": RATE,
        }
        settings_file = self._stage.folder / "load-settings.json"
        settings_file.write_text(json.dumps(settings), encoding="utf-8")
        self._load = self._stage.processes.start(
            "load generator",
            [sys.executable, "-m", "scripts.demo.load", str(settings_file)],
            env=environment(),
            log=self.logs / "load.log",
        )

    async def _follow(self, airflow: Airflow) -> None:
        """Trigger the run, and watch it until it ends."""
        watcher = self._watcher
        assert watcher is not None  # noqa: S101 - made in _prepare
        await airflow.trigger(DAG_ID, run_id=RUN_ID, conf=self._parameters())
        outage = asyncio.create_task(self._take_telemetry_away(watcher)) if self._outage else None
        try:
            deadline = time.monotonic() + RUN_WITHIN_S
            while not watcher.ended:
                if time.monotonic() > deadline:
                    raise DemoError(f"the run of {DAG_ID} is {watcher.run_state!r} after {RUN_WITHIN_S:g} s")
                self._check_alive()
                await watcher.refresh()
                await asyncio.sleep(REFRESH_S)
            await watcher.refresh()
            if outage:
                await outage
        finally:
            if outage:
                outage.cancel()
            await airflow.close()

    def _parameters(self) -> dict[str, object]:
        if self._fault is None:
            return run_parameters(None)
        # The faults are the tests' own.
        from tests.faults import project

        folder = self._stage.folder / "treatment"
        project(self._fault.value, control.PROJECT, folder)
        return run_parameters(self._fault, project=folder)

    async def _take_telemetry_away(self, watcher: Watcher) -> None:
        """Stop the telemetry store while a gate is looking, and start it again after a while."""
        while watcher.look is None:
            await asyncio.sleep(REFRESH_S)
        async with LocalTarget.open(self._stage.workspace) as target:
            await target.set_telemetry(False)
            back = time.monotonic() + OUTAGE_S
            try:
                while (left := back - time.monotonic()) > 0:
                    self._notice = f"the telemetry store is stopped: {left:.0f} s to go"
                    await asyncio.sleep(min(REFRESH_S, left))
            finally:
                self._notice = ""
                await target.set_telemetry(True)

    def _check_alive(self) -> None:
        for started in self._stage.processes.started():
            if (code := self._stage.processes.exit_code(started)) is not None:
                raise DemoError(f"{started.name} ended with code {code} in the middle of the demo")

    async def _end_load(self) -> None:
        """Stop the load: its last report has every request that it sent."""
        assert self._load is not None  # noqa: S101 - started in _prepare
        if not await asyncio.to_thread(self._stage.processes.end, self._load, grace_s=LOAD_GRACE_S):
            raise DemoError(f"the load generator did not end in {LOAD_GRACE_S:g} s: look into {self.logs / 'load.log'}")

    def _conclude(self) -> End:
        report = read_report(self._report_file)
        watcher = self._watcher
        if report is None or not report.finished or watcher is None or watcher.endpoint is None:
            raise DemoError(f"the load generator has left no last report: look into {self.logs / 'load.log'}")
        ended = [decision.time for decision in watcher.decisions if decision.step in ("promote", "roll_back")]
        return conclude(
            Ending(
                fault=self._fault,
                outage=self._outage,
                control=FIRST,
                run_state=watcher.run_state,
                decisions=watcher.decisions,
                endpoint=watcher.endpoint,
                report=report,
                seconds=(max(ended, default=datetime.now(UTC)) - self._began).total_seconds(),
            )
        )

    async def _timed(self, name: str, work: Awaitable[T]) -> T:
        self._preparations[name] = None
        begun = time.monotonic()
        done = await work
        self._preparations[name] = time.monotonic() - begun
        return done

    def _note(self, line: str) -> None:
        with (self.logs / "demo.log").open("a", encoding="utf-8") as log:
            log.write(f"{time.monotonic() - self._begun:6.1f} s {line}\n")

    async def _show(self, view: View) -> None:
        while True:
            view.show(self._snapshot())
            await asyncio.sleep(REFRESH_S)

    def _snapshot(self) -> Snapshot:
        watcher = self._watcher
        return Snapshot(
            elapsed_s=time.monotonic() - self._begun,
            title="controlled-rollout demo" + (f", treatment: {self._fault}" if self._fault else ""),
            preparations=tuple(Preparation(name, seconds) for name, seconds in self._preparations.items()),
            tasks=watcher.tasks if watcher else (),
            endpoint=watcher.endpoint if watcher else None,
            report=read_report(self._report_file),
            look=watcher.look if watcher else None,
            notice=self._notice,
        )


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """Do several things at once; the first that fails ends the others, and its error is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
