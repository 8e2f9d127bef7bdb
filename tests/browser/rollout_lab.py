"""One real Airflow with its scheduler, and real rollouts on a local workspace, for all tests of this folder."""

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copy
from string import Template
from typing import Any, Final, TypeVar

from controlled_rollout import steps
from controlled_rollout.target.local.client import LocalTarget
from controlled_rollout.target.protocol import Change, Revision
from tests.airflow_home import DAGS
from tests.browser.browser_lab import Airflow, chromium
from tests.browser.open_page import OpenPage
from tests.local.airflow_api_server import airflow_api_server
from tests.local.local_target_lab import Lab, running, steady_load
from tests.polling import wait_until

__all__ = ["ENDPOINTS", "PAGE", "ROLLOUT_DAG", "WORKSPACE", "Rollouts", "Scene", "rollouts"]

T = TypeVar("T")

PAGE: Final = "plugin/controlled-rollout"
WORKSPACE: Final = "controlled_rollout_default"
AWAY: Final = "away"
# The first is promoted by a test, the second rolled back.
ENDPOINTS: Final = ("digits", "letters")
ROLLOUT_DAG: Final = "rollout_by_test"
RUN_ID: Final = "by-test"
DEADLINE_S: Final = 240.0
DAG_FILE: Final = Template("""
from airflow.sdk import DAG
from controlled_rollout import ControlledRollout

with DAG(
    "$dag_id", schedule=None, params={"endpoint": "digits", "image": ""}, is_paused_upon_creation=False
):
    ControlledRollout(
        endpoint="{{ params.endpoint }}", image="{{ params.image }}", steps=$steps, settings={"num_replicas": 1},
        bake="$bake", interval="1 s", bin_width="$bin_width", allowed_lag="2 s", baseline_length="30 s",
        gate={"warm_up": "1 s", "latency_quantiles": [$quantile], "latency_tolerance": $tolerance},
        decision_timeout="2 h", keep_warm="1 h", deferrable=False,
    )
""")


class Thread:
    """An event loop in a thread of its own: Playwright has this thread's."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self.start(coroutine).result(DEADLINE_S)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start a coroutine."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def end(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True)
class Scene:
    """What is rolled out, and how.

    Attributes:
        steps: The steps of each rollout.
        bake: The least time at each step: the tests' rollouts stay at their first until a person does something.
        bin_width: The width of the gate's bins.
        quantile: The quantile of latencies that it compares.
        tolerance: How much slower the treatment may be.
        rate: The requests a second to each endpoint.
        script: The model's `score.py`; None for one that answers at once.
        steady: Endpoints besides, without a rollout.
        dag_id: The DAG of the rollouts.
        away: Whether a workspace that does not answer is shown as well.
    """

    steps: tuple[float, ...] = (10,)
    bake: str = "1 h"
    bin_width: str = "1 s"
    quantile: float = 0.5
    tolerance: float = 3.0
    rate: float = 20
    script: str | None = None
    steady: tuple[str, ...] = ()
    dag_id: str = ROLLOUT_DAG
    away: bool = True


@dataclass(frozen=True)
class Rollouts:
    """What all tests of this folder share.

    Attributes:
        airflow: The Airflow, with a browser.
        lab: The local workspace with the endpoints.
        thread: Runs coroutines.
        left_open: The page of the second endpoint, open since before its rollout began.
    """

    airflow: Airflow
    lab: Lab
    thread: Thread
    left_open: OpenPage

    def traffic(self, endpoint: str) -> dict[str, float]:
        """Return the effective traffic of an endpoint's versions."""
        stored = self.thread.run(self.lab.target.endpoint(endpoint))
        return dict(stored.effective_traffic())

    def history(self, endpoint: str) -> list[Revision]:
        """Return an endpoint's revisions, the oldest first."""
        return self.thread.run(self.lab.target.history(endpoint))


TESTS: Final = Scene()


@contextmanager
def rollouts(folder: Path, scene: Scene = TESTS) -> Iterator[Rollouts]:
    """Context manager: two endpoints under load, each with a rollout at 10 per cent, and an Airflow that runs them."""
    thread = Thread()
    with ExitStack() as stack:
        stack.callback(thread.end)
        lab = stack.enter_context(running(folder))
        deploying = thread.start(_deploy_controls(lab, scene))
        server = stack.enter_context(
            airflow_api_server(folder / "airflow", _settings(folder, lab, scene), scheduler=True)
        )
        image = deploying.result(DEADLINE_S)
        ending = asyncio.Event()
        load = thread.start(_load(lab, scene, ending))
        stack.callback(load.result, DEADLINE_S)
        stack.callback(lambda: thread.run(_set(ending)))
        airflow = Airflow(server, stack.enter_context(chromium()))
        left_open = stack.enter_context(airflow.page_left_open(f"{PAGE}/{WORKSPACE}/{ENDPOINTS[1]}"))
        with server.client("admin") as client:
            for endpoint in ENDPOINTS:
                conf = {"endpoint": endpoint, "image": image}
                run = {"dag_run_id": f"{RUN_ID}-{endpoint}", "logical_date": None, "conf": conf}
                client.post(f"api/v2/dags/{scene.dag_id}/dagRuns", json=run).raise_for_status()
        made = Rollouts(airflow, lab, thread, left_open)
        for endpoint in ENDPOINTS:
            wait_until(
                lambda endpoint=endpoint: 10.0 in made.traffic(endpoint).values(),  # type: ignore[misc]
                f"the rollout on {endpoint} to be at 10 %",
                timeout_s=DEADLINE_S,
            )
        yield made


def _settings(folder: Path, lab: Lab, scene: Scene) -> dict[str, str]:
    """Return Airflow's settings: the DAGs, and a workspace that does not answer beside the real one."""
    dags = folder / "dags"
    dags.mkdir()
    for shipped in DAGS.glob("*.py"):
        copy(shipped, dags)
    dag_file = DAG_FILE.substitute(asdict(scene))
    (dags / f"{scene.dag_id}.py").write_text(dag_file)
    here = {"conn_type": "controlled_rollout", "extra": {"target": "local", "root": str(lab.workspace.root)}}
    away = {"conn_type": "controlled_rollout", "extra": {"target": "local", "root": str(folder / "nothing-runs-here")}}
    return {
        "AIRFLOW_CONN_CONTROLLED_ROLLOUT_DEFAULT": json.dumps(here),
        "AIRFLOW_CONN_AWAY": json.dumps(away),
        "AIRFLOW__CONTROLLED_ROLLOUT__UI_WORKSPACES": f"{WORKSPACE},{AWAY}" if scene.away else WORKSPACE,
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
    }


async def _deploy_controls(lab: Lab, scene: Scene) -> str:
    """Give each endpoint its first version; return the image of the treatments."""
    first, second = [
        await lab.image(note, scene.script and f"{scene.script}# {note}\n") for note in ("first", "second")
    ]
    for endpoint in (*ENDPOINTS, *scene.steady):
        await steps.deploy(
            lab.workspace,
            endpoint,
            "first",
            image=first,
            owner="a test",
            change=Change(who="a test", reason="the first model"),
            settings={"num_replicas": 1},
            progress=lambda line: None,
        )
    return second


async def _load(lab: Lab, scene: Scene, ending: asyncio.Event) -> None:
    """Send requests to all endpoints until the end."""
    async with AsyncExitStack() as stack:
        for endpoint in (*ENDPOINTS, *scene.steady):
            async with LocalTarget.open(lab.workspace) as target:
                url, key = (await target.status(endpoint)).url, (await target.keys(endpoint)).primary
            await stack.enter_async_context(steady_load(url, key, rate=scene.rate, connections=2))
        await ending.wait()


async def _set(event: asyncio.Event) -> None:
    """Set an event in the thread of its waiters."""
    event.set()
