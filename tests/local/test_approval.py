"""The approval task on a real Airflow: a person is asked after the gate's time, and answers in time or too late."""

import asyncio
import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from httpx import Response

from controlled_rollout import record
from controlled_rollout.endpoint import Endpoint
from scripts.demo.airflow import Airflow, environment
from scripts.demo.local_stack import free_ports
from scripts.demo.processes import Processes, StartedProcess
from tests.local.local_target_lab import Lab, running, steady_load
from tests.polling import until

ENDPOINT = "digits"
READING_S = 4.0
DAG = """
from airflow.sdk import DAG
from controlled_rollout import ControlledRollout

with DAG("ask", schedule=None):
    ControlledRollout(
        endpoint="digits", version="{{{{ params.version }}}}", image="{image}", steps=(50,),
        settings={{"num_replicas": 1}}, gate={{"latency_quantiles": []}}, bake="3 s", decision_timeout="4 s",
        on_deadline="ask",
        interval="1 s", bin_width="1 s", allowed_lag="2 s", baseline_length="10 s", keep_warm="0 s",
        approval_settings={{"body": None}},
    )
"""


# Answers until a file says that from now on it fails.
BREAKABLE = """
import os

def init():
    pass

def run(data):
    if os.path.exists({broken!r}):
        raise RuntimeError("broken")
    return {{}}
"""


@dataclass(frozen=True)
class Triggerer:
    """The triggerer of a standalone Airflow.

    Attributes:
        processes: The processes of that Airflow.
        airflow: The standalone Airflow that has started it.
        settings: Its environment.
        log: Where another one's output goes.
        store: The port of the metric store that its looks read.
    """

    processes: Processes
    airflow: StartedProcess
    settings: dict[str, str]
    log: Path
    store: int

    async def is_killed_in_a_look(self) -> bool:
        """Kill it if it is reading the metric store in this moment; return whether it was."""
        running, reads = [], False
        for process in psutil.process_iter(["cmdline"]):
            # Processes come and go meanwhile, tasks above all.
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if "triggerer" in (process.info["cmdline"] or ()) and os.getsid(process.pid) == self.airflow.pid:
                    running.append(process)
                    addresses = [connection.raddr for connection in process.net_connections(kind="tcp")]
                    reads |= any(address and address.port == self.store for address in addresses)
        for process in running if reads else ():
            process.kill()
        return reads

    async def replace(self) -> StartedProcess:
        """Kill it in the middle of a look, and start another one."""
        # A look is short, so the next check comes at once.
        await until(self.is_killed_in_a_look, "the triggerer looks", timeout_s=60, interval_s=0.02)
        argv = [sys.executable, "-m", "airflow", "triggerer", "--skip-serve-logs"]
        return self.processes.start("triggerer", argv, env=self.settings, log=self.log)


@asynccontextmanager
async def airflow(lab: Lab, dag: str) -> AsyncIterator[tuple[Airflow, Triggerer]]:
    """A standalone Airflow with one DAG, on the lab's workspace."""
    home = lab.folder / "airflow"
    (home / "dags").mkdir(parents=True, mode=0o700)
    (home / "dags" / "ask.py").write_text(dag)
    port, *log_ports = free_ports(3)
    server = Airflow(home, port=port, log=lab.folder / "airflow.log")
    server.password_file.touch(mode=0o600)
    server.password_file.write_text(json.dumps({"admin": secrets.token_urlsafe(16)}))
    settings = environment(
        home, port=port, log_ports=(log_ports[0], log_ports[1]), workspace_root=lab.workspace.root, schedules=False,
        outside=os.environ,
    )  # fmt: skip
    settings["AIRFLOW__CORE__DAGS_FOLDER"] = str(home / "dags")
    # What a triggerer has waited for goes to another one so long after its last heartbeat; 30 s by default.
    settings["AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD"] = "10"
    processes = Processes(home)
    store = int(lab.state.telemetry_url.rpartition(":")[2])
    argv = [sys.executable, "-m", "airflow", "standalone"]
    started = processes.start("airflow", argv, env=settings, log=lab.folder / "airflow.log")
    try:
        await server.wait_until_healthy(processes, dag_id="ask")
        yield server, Triggerer(processes, started, settings, lab.folder / "airflow.log", store)
    finally:
        await server.close()
        # Not tested here: that Airflow ends by itself. Nothing of it may be left.
        processes.end_all(grace_s=20)
        assert not processes.is_running(started)


async def open_question(api: Airflow, run: str) -> dict[str, Any] | None:
    """Return the open question of a run; None if there is none."""
    answer = await api._client.get(f"/api/v2/dags/ask/dagRuns/{run}/hitlDetails")
    details = answer.raise_for_status().json()["hitl_details"]
    return next((question for question in details if not question["response_received"]), None)


async def answer(api: Airflow, run: str, option: str) -> Response:
    """Answer the question of a run; return what the API says to that."""
    path = f"/api/v2/dags/ask/dagRuns/{run}/taskInstances/rollout.ask_50/-1/hitlDetails"
    return await api._client.patch(path, json={"chosen_options": [option], "params_input": {}})


async def decide(api: Airflow, run: str, option: str) -> tuple[dict[str, Any], str, dict[str, str | None]]:
    """Answer the question after some seconds, as a person would, and wait until the run has ended.

    An answer that comes before Airflow has noticed that the worker has parked its task is lost to it.
    """
    questions: list[dict[str, Any]] = []
    parked_since: float | None = None

    async def ended() -> str | None:
        nonlocal parked_since
        waits = any(task.state == "deferred" and task.task == "rollout.ask_50" for task in await api.tasks("ask", run))
        parked_since = (parked_since or time.monotonic()) if waits else None
        if parked_since and time.monotonic() - parked_since > READING_S and (question := await open_question(api, run)):
            questions.append(question)
            await answer(api, run, option)
        end_state = await api.run_state("ask", run)
        return end_state if end_state in ("success", "failed") else None

    end_state = await until(ended, "the run ends", timeout_s=240, interval_s=0.5)
    tasks = {task.task.removeprefix("rollout."): task.state for task in await api.tasks("ask", run)}
    return questions[0], str(end_state), tasks


async def fail_while_asked(lab: Lab, api: Airflow, triggerer: Triggerer, broken: Path) -> None:
    """Start a run, let its treatment fail every request once the question is open, and wait until the run has ended.

    The triggerer is killed before that, in the middle of a look, and another one started.
    """
    await api.trigger("ask", run_id="alarm", conf={"version": "v4a"})
    await until(lambda: open_question(api, "alarm"), "a person is asked", timeout_s=120, interval_s=0.5)
    await triggerer.replace()
    broken.touch()

    async def ended() -> bool:
        return await api.run_state("ask", "alarm") in ("success", "failed")

    url, key = await lab.url(ENDPOINT), (await lab.target.keys(ENDPOINT)).primary
    async with steady_load(url, key, rate=40.0):
        await until(ended, "the run ends", timeout_s=120, interval_s=0.5)


@pytest.mark.timeout(900)
def test_a_person_is_asked_and_no_or_an_alarm_of_another_triggerer_meanwhile_rolls_back_and_yes_promotes(
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken"

    async def steps(lab: Lab) -> None:
        await lab.serve(
            Endpoint(name=ENDPOINT).create_version("v1a", is_control=True, image=await lab.image("first"))
        )  # fmt: skip
        image = await lab.image(script=BREAKABLE.format(broken=str(broken)))
        async with airflow(lab, DAG.format(image=image)) as (api, triggerer):
            await api.trigger("ask", run_id="no", conf={"version": "v2a"})
            question, state, tasks = await decide(api, "no", "Reject")
            assert question["subject"] == "Go on with version v2a of endpoint digits?"
            assert "not enough evidence" in question["body"]
            assert "errors are higher" in question["body"]
            assert (state, tasks["ask_50"], tasks["promote"]) == ("failed", "failed", "upstream_failed")
            assert (tasks["roll_back"], tasks["retire_treatment"]) == ("success", "success")
            assert (await lab.target.endpoint(ENDPOINT)).effective_traffic() == {"v1a": 100.0}

            await fail_while_asked(lab, api, triggerer, broken)
            tasks = {task.task.removeprefix("rollout."): task.state for task in await api.tasks("ask", "alarm")}
            assert (tasks["gate_50"], tasks["ask_50"], tasks["roll_back"]) == ("success", "failed", "success")
            assert (await lab.target.endpoint(ENDPOINT)).effective_traffic() == {"v1a": 100.0}
            assert await open_question(api, "alarm") is None
            assert (await answer(api, "alarm", "Approve")).status_code == 409
            broken.unlink()

            await api.trigger("ask", run_id="yes", conf={"version": "v3a"})
            _, state, tasks = await decide(api, "yes", "Approve")
            assert (state, tasks["ask_50"], tasks["promote"]) == ("success", "success", "success")
            assert (await lab.target.endpoint(ENDPOINT)).effective_traffic() == {"v3a": 100.0}

        kept = [(decision.version, decision.step, decision.who) for decision in record.read(lab.workspace, ENDPOINT)]
        assert ("v2a", "reject", "admin") in kept
        assert ("v4a", "reject", "ask/alarm/rollout.ask_50") in kept
        assert ("v3a", "approve", "admin") in kept
        assert ("v3a", "ask", "ask/yes/rollout.ask_50") in kept

    with running(tmp_path) as lab:
        asyncio.run(steps(lab))
