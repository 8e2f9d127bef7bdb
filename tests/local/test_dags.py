"""The shipped DAGs, run with `dag.test()`. The demo tests a promotion under load (test_demo.py)."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import IO, Any

import pytest

from controlled_rollout import record
from controlled_rollout.endpoint import Endpoint
from tests.airflow_database import create_database
from tests.airflow_home import DAGS, HOME
from tests.faults import project
from tests.local import run_dags
from tests.local.local_target_lab import Lab, Load, steady_load

ENDPOINT = "digits"
# Times short enough for a test; errors alone are judged, since two cores under test say little about latency.
QUICK: dict[str, Any] = {
    "endpoint": ENDPOINT,
    "settings": {"num_replicas": 1, "max_request_wait_time": 5_000},
    "bake": "3 s",
    "min_requests": 5,
    "decision_timeout": "90 s",
    "keep_warm": "1 s",
    "interval": "0.5 s",
    "bin_width": "1 s",
    "allowed_lag": "2 s",
    "baseline_length": "30 s",
    "gate": {"warm_up": "1 s", "latency_quantiles": [], "acceptable_error_rate": 0.05},
}


@dataclass
class Dags:
    """A process that runs DAGs, and those that it starts, in a process group of their own."""

    process: "subprocess.Popen[str]"
    answers: IO[str]
    loaded: dict[str, Any]

    def run(
        self, dag: str, *, environment: Mapping[str, str] | None = None, done_by_hand: str | None = None, **conf: Any
    ) -> dict[str, Any]:
        """Run a DAG to its end; tasks whose names match `done_by_hand` count as done without being run."""
        request = {"dag": dag, "conf": conf, "environment": dict(environment or {}), "done_by_hand": done_by_hand}
        return self._ask(request)

    def go_on(self, dag: str, run_id: str) -> dict[str, Any]:
        """Let a run that another process has begun, and that was killed, go on to its end."""
        return self._ask({"dag": dag, "run_id": run_id, "environment": {}})

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request; return the answer, which is empty if the process has been killed."""
        assert self.process.stdin
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.answers.readline() or "{}")
        return answer

    def kill(self) -> None:
        """Kill the whole process group."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)


@cache
def runners_home() -> Path:
    """Return the home of the Airflow that runs DAGs for this process: a runner goes on with what another has begun.

    It is not that of the tests, whose own Airflow, here or in another process, may have opened its database already.
    """
    home = Path(mkdtemp(prefix="dag-runners-", dir=HOME))
    create_database(home)
    return home


@contextmanager
def dag_runner(root: Path, log: Path, folder: Path = DAGS) -> Iterator[Dags]:
    """Start a process that runs the DAGs of a folder."""
    environment = os.environ | {"CONTROLLED_ROLLOUT_HOME": str(root), "AIRFLOW_HOME": str(runners_home())}
    environment["AIRFLOW__CORE__DAGS_FOLDER"] = str(folder)
    environment["AIRFLOW__OPENLINEAGE__TRANSPORT"] = json.dumps(
        {"type": "file", "log_file_path": str(log.with_suffix(".lineage")), "append": True}
    )
    with log.open("ab") as output:
        read, write = os.pipe()
        os.set_inheritable(write, True)
        script = f'exec 3>&{write} {write}>&-; exec "$0" "$1"'
        process = subprocess.Popen(
            ["/bin/bash", "-c", script, sys.executable, run_dags.__file__],
            env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=[write], text=True,
            process_group=0,
        )  # fmt: skip
        os.close(write)
        with os.fdopen(read) as answers, process:
            assert process.stdin
            yield Dags(process, answers, json.loads(answers.readline()))
            process.stdin.close()


@pytest.fixture(scope="module")
def dags(lab: Lab) -> Iterator[Dags]:
    with dag_runner(lab.workspace.root, lab.folder / "dags.log") as dags:
        yield dags


@pytest.fixture(scope="module")
def first(dags: Dags) -> dict[str, Any]:
    """The result of the first run of the DAG: the first version of the digits."""
    return dags.run("retrain_and_deploy", **QUICK, part="first")


def endpoint(lab: Lab, name: str = ENDPOINT) -> Endpoint:
    return asyncio.run(lab.target.endpoint(name))


def ask(lab: Lab, body: bytes) -> tuple[int, Any]:
    key = asyncio.run(lab.target.keys(ENDPOINT)).primary
    request = urllib.request.Request(asyncio.run(lab.url(ENDPOINT)), body, {"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


async def under_load(lab: Lab, dags: Dags, dag: str, **conf: Any) -> tuple[dict[str, Any], Load]:
    keys = await lab.target.keys(conf["endpoint"])
    async with steady_load(await lab.url(conf["endpoint"]), keys.primary, rate=60) as load:
        await load.more(300)
        return await asyncio.to_thread(dags.run, dag, **conf), load


def states(answer: dict[str, Any]) -> dict[str, str]:
    return {task.removeprefix("rollout."): state for task, state in answer["tasks"].items()}


def lineage(lab: Lab, run_id: str) -> dict[str, Any]:
    """Return the event of each task of a run that has succeeded, as a backend of OpenLineage gets it."""
    events = map(json.loads, (lab.folder / "dags.lineage").read_text().splitlines())
    runs = [event for event in events if event["eventType"] == "COMPLETE" and "parent" in event["run"]["facets"]]
    return {
        event["job"]["name"].partition(".")[2]: event
        for event in runs
        if event["run"]["facets"]["airflow"]["dagRun"]["run_id"] == run_id
    }


def test_all_dag_files_are_loaded_without_errors(dags: Dags) -> None:
    assert dags.loaded["import_errors"] == {}
    assert set(dags.loaded["dags"]) == {
        "hold",
        "judge_by_labels",
        "promote",
        "retrain_and_deploy",
        "roll_back",
        "shift",
    }
    assert sorted(path.stem for path in DAGS.glob("*.py")) == sorted(dags.loaded["dags"])


@pytest.mark.timeout(600)
def test_the_first_model_of_an_endpoint_is_its_control_without_a_gate(
    lab: Lab, dags: Dags, first: dict[str, Any]
) -> None:
    assert first["state"] == "success"
    assert states(first) == {
        "train": "success", "build_image": "success", "check": "success", "roll_out": "success",
        "shift_10": "skipped", "gate_10": "skipped", "shift_50": "skipped", "gate_50": "skipped",
        "promote": "success", "retire_old": "skipped", "roll_back": "skipped", "retire_treatment": "skipped",
        "result": "success",
    }  # fmt: skip
    control = endpoint(lab).control
    assert control
    assert endpoint(lab).effective_traffic() == {control.name: 100.0}
    who = f"retrain_and_deploy/{first['run_id']}/rollout.promote"
    extra = {"endpoint": ENDPOINT, "version": control.name, "who": who}
    [event] = first["assets"]
    assert event["uri"] == "controlled-rollout://digits/control"
    assert event["extra"].items() >= extra.items()
    page = f"plugin/controlled-rollout/controlled_rollout_default/{ENDPOINT}"
    for task in ("check", "roll_out", "promote", "result"):
        assert first["links"][f"rollout.{task}"]["EndpointLink"] == page
    assert first["links"]["rollout.promote"]["VersionLogLink"] == f"{page}?version={control.name}"

    # What OpenLineage's provider was told: from the model to the image, the version and the endpoint's control.
    made = lineage(lab, first["run_id"])
    [model], [image] = made["build_image"]["inputs"][1:], made["build_image"]["outputs"]
    assert model["name"].endswith(".joblib")
    assert made["rollout.roll_out"]["inputs"] == [image]
    assert made["rollout.promote"]["inputs"] == made["rollout.roll_out"]["outputs"]
    assert [each["name"] for each in made["rollout.promote"]["outputs"]] == [f"{ENDPOINT}/control"]
    assert made["rollout.promote"]["run"]["facets"]["controlledRollout_rollout"].items() >= {
        "step": "promote", "endpoint": ENDPOINT, "version": control.name, "share": 100.0, "control": control.name,
    }.items()  # fmt: skip

    status, answer = ask(lab, json.dumps({"data": [[0.0] * 64, [16] * 64]}).encode())
    assert (status, len(answer["predictions"])) == (200, 2)
    for wrong in (b"{", b"[]", b'{"data": []}', b'{"data": [[1, 2]]}', json.dumps({"data": [[17] * 64]}).encode()):
        status, answer = ask(lab, wrong)
        assert status == 400
        assert "expected" in answer["error"] or "Expecting" in answer["error"]


@pytest.mark.timeout(600)
def test_a_failing_treatment_whose_gate_is_on_hold_is_rolled_back_and_only_its_own_requests_failed(
    lab: Lab, dags: Dags, first: dict[str, Any], tmp_path: Path
) -> None:
    script = project("failing", DAGS / "models" / "digits", tmp_path / "failing")
    faulty = {"source": str(tmp_path / "failing"), "entry_script": script}
    # The gate is on hold before there is any evidence that it judges.
    quick = QUICK | {"gate": QUICK["gate"] | {"alpha": 0.2, "warm_up": "8 s"}, "decision_timeout": "4 s"}
    before = endpoint(lab)

    answer, load = asyncio.run(under_load(lab, dags, "retrain_and_deploy", **quick, **faulty))

    assert answer["state"] == "failed"
    assert states(answer)["roll_back"] == states(answer)["retire_treatment"] == "success"
    assert states(answer)["result"] == "failed"
    # Of a gate that was deferred, and of a roll-back, which pushes its links when it is done.
    for task in ("gate_10", "roll_back"):
        assert answer["links"][f"rollout.{task}"]["EndpointLink"].endswith(f"/{ENDPOINT}")
    after = endpoint(lab)
    assert dict(after.versions) == dict(before.versions)
    assert after.rollout is None
    [hold] = record.read(lab.workspace, ENDPOINT, step="hold")
    assert hold.reason.startswith("no decision ")
    [back] = [entry for entry in record.read(lab.workspace, ENDPOINT) if entry.step == "roll_back"]
    assert back.reason.startswith("fail: ")
    assert "errors" in back.reason
    assert set(load.failed) == {"500"}
    log = (lab.folder / "dags.log").read_text()
    keys = asyncio.run(lab.target.keys(ENDPOINT))
    assert keys.primary not in log
    assert keys.secondary not in log


def test_promote_and_roll_back_dags_work_by_hand(lab: Lab, dags: Dags) -> None:
    name = "by-hand"

    async def begin() -> None:
        first = Endpoint(name=name).create_version("v1a", is_control=True, image=await lab.image("first"))
        stored, _ = await lab.serve(first)
        claimed = stored.claim("v2a", owner="weekly/run-2", at=datetime.now(UTC))
        await lab.serve(claimed.create_version("v2a", image=await lab.image("second")))
        await lab.ready(name, "v2a")

    asyncio.run(begin())

    back = dags.run("roll_back", endpoint=name, version="v2a", reason="not today")
    assert back["state"] == "success"
    assert endpoint(lab, name).rollout is None

    promoted = dags.run("promote", endpoint=name, version="v2a", reason="better after all", keep_warm="1 s")
    assert promoted["tasks"] == {"promote": "success", "retire_old": "success"}
    assert endpoint(lab, name).effective_traffic() == {"v2a": 100.0}
    assert [event["uri"] for event in promoted["assets"]] == [f"controlled-rollout://{name}/control"]

    refused = dags.run("roll_back", endpoint=name, version="v2a", reason="no way back")
    assert refused["state"] == "failed"
    history = asyncio.run(lab.target.history(name))
    assert [revision.change.reason.partition(" (")[0] for revision in history[-3:]] == [
        "not today", "better after all", "retire v1a",
    ]  # fmt: skip
    assert history[-2].change.who == f"promote/{promoted['run_id']}/promote"


def test_judge_by_labels_waits_and_does_what_was_chosen_and_a_wrong_question_changes_nothing(
    lab: Lab, dags: Dags
) -> None:
    name = "labelled"

    async def promoted() -> None:
        collects: dict[str, Any] = {"image": await lab.image("first"), "collect_model_data": True}
        first = Endpoint(name=name).create_version("v1a", is_control=True, **collects)
        stored = await lab.apply(first.create_version("v2a", **collects))
        await asyncio.gather(lab.ready(name, "v1a"), lab.ready(name, "v2a"))
        stored, _ = await lab.serve(stored.shift("v2a", 50))
        await lab.serve(stored.promote("v2a"))

    asyncio.run(promoted())
    files: dict[str, Any] = {"prefix": "labels/none/", "query": None, "conn_id": None}
    query: dict[str, Any] = {"prefix": None, "query": "labels/absent.sql", "conn_id": "nowhere"}
    given: dict[str, Any] = {"endpoint": name, "decision_timeout": "3 s", "interval": "1 s"}

    wrong = dags.run("judge_by_labels", **given, **query)
    assert (wrong["state"], wrong["tasks"]["judge"], wrong["tasks"]["roll_back"]) == (
        "failed", "failed", "upstream_failed",
    )  # fmt: skip

    # Nothing could be seen, and that takes no version back.
    kept = dags.run("judge_by_labels", **given, **files, on_deadline="roll_back")
    assert kept["state"] == "success"
    assert kept["tasks"] == {
        "judge": "success", "result": "success",
        "is_undecided": "success", "ask": "skipped", "keep": "skipped", "roll_back": "skipped",
    }  # fmt: skip
    assert "DateTimeTrigger" in (lab.folder / "dags.log").read_text()
    assert endpoint(lab, name).effective_traffic() == {"v1a": 0.0, "v2a": 100.0}

    # In the test nobody answers: both ways that a person can choose go on.
    asked = dags.run("judge_by_labels", **given, **files, on_deadline="ask", done_by_hand="ask")
    assert asked["tasks"]["roll_back"] == asked["tasks"]["result"] == "success"
    assert endpoint(lab, name).effective_traffic() == {"v1a": 100.0, "v2a": 0.0}
    [event] = asked["assets"]
    assert event["extra"].items() >= {"endpoint": name, "version": "v1a"}.items()
