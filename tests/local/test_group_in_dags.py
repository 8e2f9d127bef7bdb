"""The task group at its edges, run with `dag.test()`: mapped, nested, after a skipped task, before another task.

And the tasks about collected data, which need the same Airflow.
"""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout import record
from tests.local.local_target_lab import Lab
from tests.local.test_dags import Dags, dag_runner
from tests.unit.evidence.collected_parts import T0, Exchange, write_part

DAG_FILE = """
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, task, task_group
from airflow.sdk.exceptions import AirflowSkipException
from controlled_rollout import (
    CheckConnectivityOperator, ControlledRollout, RollBackOperator, RolloutNotifier, RolloutVersionOperator
)
from controlled_rollout.notifications.message import as_text

ARGUMENTS = {{
    "image": "{image}", "settings": {{"num_replicas": 1}}, "on_deadline": "ask", "keep_warm": 0,
}}
# Meant for other operators: nothing of it reaches the group's tasks.
OTHERS = {{"timeout": 1, "version": "x", "deferrable": False, "do_xcom_push": False, "depends_on_past": True}}


class InFile(RolloutNotifier):
    def send(self, message):
        with open("{told}", "a") as file:
            file.write(as_text(message))
        raise ConnectionError("the chat is away")


@task
def skipped():
    raise AirflowSkipException("there is nothing new")


with DAG("mapped", schedule=None, default_args=OTHERS):
    @task_group
    def one(endpoint):
        ControlledRollout(endpoint=endpoint, on_promoted=InFile(), **ARGUMENTS)

    one.expand(endpoint=["first", "second"]) >> EmptyOperator(task_id="notify")

with DAG("one_is_refused", schedule=None):
    @task
    def endpoints():
        return ["No_Name", "third"]

    one.expand(endpoint=endpoints())

with DAG("mapped_and_skipped", schedule=None):
    one.expand(endpoint=skipped())

with DAG("twice", schedule=None):
    of_new = {{"version": "new", "max_active_tis_per_dagrun": 1}}
    RolloutVersionOperator.partial(
        task_id="deploy", image=ARGUMENTS["image"], settings=ARGUMENTS["settings"], **of_new
    ).expand(endpoint=["first", "first"]) >> RollBackOperator.partial(
        task_id="roll_back", trigger_rule="all_done", **of_new
    ).expand(endpoint=["first", "first"])

with DAG("network", schedule=None):
    for name in ("open", "unknown"):
        CheckConnectivityOperator(
            task_id=name, endpoint="first", destinations=["{{{{ dag_run.conf['" + name + "'] }}}}"], retries=0
        )

with DAG("nothing_new", schedule=None):
    skipped() >> ControlledRollout(endpoint="never", **ARGUMENTS) >> EmptyOperator(task_id="notify")

# Its first task refuses the arguments.
for name in ("all_done", "teardown"):
    with DAG(f"refused_{{name}}", schedule=None):
        rollout = ControlledRollout(endpoint="never", **{{**ARGUMENTS, "bake": 0}})
        notify = EmptyOperator(task_id="notify", trigger_rule="all_done")
        rollout >> (notify.as_teardown() if name == "teardown" else notify)
"""

DATA_DAG_FILE = """
from airflow.sdk import DAG
from controlled_rollout import CollectedDataGateOperator, CollectedDataSensor

OF_VERSION = {"endpoint": "collects", "version": "v1", "since": "1 d"}

with DAG("nightly", schedule=None):
    enough = CollectedDataSensor(
        task_id="enough", collection="inputs", rows=4, interval="0.1 s", timeout=120, deferrable=True, **OF_VERSION
    )
    for name in ("good", "bad", "no_such_column"):
        enough >> CollectedDataGateOperator(
            task_id=name, expectations=f"{name}.json", retries=1, retry_delay=0, **OF_VERSION
        )
"""


def suite(*expectations: dict[str, Any]) -> str:
    return json.dumps({"name": "nightly", "expectations": expectations})


def between(column: str, most: float) -> dict[str, Any]:
    return {"type": "expect_column_values_to_be_between", "kwargs": {"column": column, "max_value": most}}


SUITES = {
    "good": suite(
        between("inputs.age", 100),
        {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "inputs.age", "max_value": 50}},
    ),
    "bad": suite(between("inputs.age", 30)),
    "no_such_column": suite(between("inputs.size", 30)),
}


@pytest.fixture(scope="module")
def dags(lab: Lab) -> Iterator[Dags]:
    folder = lab.folder / "dags"
    folder.mkdir()
    (folder / "data.py").write_text(DATA_DAG_FILE)
    for name, text in SUITES.items():
        (folder / f"{name}.json").write_text(text)
    (folder / "edges.py").write_text(DAG_FILE.format(image=asyncio.run(lab.image()), told=lab.folder / "told"))
    with dag_runner(lab.workspace.root, Path(lab.folder / "dags.log"), folder) as dags:
        yield dags


def states(answer: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name.rpartition(".")[2]: state for name, state in answer["tasks"].items()}


def test_group_mapped_over_endpoints_ends_in_a_result_that_the_next_task_follows(lab: Lab, dags: Dags) -> None:
    assert dags.loaded["import_errors"] == {}
    answer = dags.run("mapped")
    assert (answer["state"], states(answer)["result"], states(answer)["notify"]) == ("success",) * 3
    for name in ("first", "second"):
        endpoint = asyncio.run(lab.target.endpoint(name))
        assert endpoint.control is not None
        assert endpoint.effective_traffic() == {endpoint.control.name: 100.0}
        # People were told, and that a channel does not answer has changed nothing.
        told = f"version {endpoint.control.name} of endpoint {name} is promoted: it is the control now"
        assert told in (lab.folder / "told").read_text()


def test_an_instance_that_is_refused_stops_no_other_one_of_a_group_that_is_mapped_over_a_result(
    lab: Lab, dags: Dags
) -> None:
    answer = dags.run("one_is_refused")
    assert answer["state"] == "failed"
    [promotion] = record.read(lab.workspace, "third", step="promote")
    assert "[1]/" in promotion.who
    answer = dags.run("mapped_and_skipped")
    assert (answer["state"], set(states(answer).values())) == ("success", {"skipped"})


def test_of_two_mapped_instances_with_one_endpoint_one_holds_it_and_the_other_is_refused(lab: Lab, dags: Dags) -> None:
    dags.run("twice")
    history = asyncio.run(lab.target.history("first"))
    held = [revision for revision in history if revision.endpoint.rollout and "new" in revision.endpoint.versions]
    owners = {revision.endpoint.rollout.owner for revision in held if revision.endpoint.rollout}
    assert len(owners) == 1
    [owner] = owners
    assert owner.startswith("twice/") and owner[-3:] in ("[0]", "[1]")
    # The other one was refused, and has rolled nothing back.
    assert [revision.change.who for revision in history][-2:] == [f"{owner}/deploy", f"{owner}/roll_back"]
    assert history[-1].endpoint.rollout is None


def test_check_of_the_network_fails_with_what_to_do_for_a_server_that_is_not_reached(lab: Lab, dags: Dags) -> None:
    answer = dags.run("network", open=f"{lab.state.router_url}/healthz", unknown="tcp://no-such-host.invalid:5432")

    assert (answer["state"], states(answer)) == ("failed", {"open": "success", "unknown": "failed"})
    log = (lab.folder / "dags.log").read_text()
    assert "let the name server that this machine uses know no-such-host.invalid" in log


def test_group_after_a_skipped_task_is_skipped_and_so_is_what_follows(dags: Dags) -> None:
    answer = dags.run("nothing_new")
    assert answer["state"] == "success"
    assert set(states(answer).values()) == {"skipped"}


def test_run_fails_with_its_rollout_although_a_teardown_after_it_succeeds(dags: Dags) -> None:
    answer = dags.run("refused_teardown")
    assert (answer["state"], states(answer)["notify"]) == ("failed", "success")
    # The page says so, because Airflow decides it: the last task is another one here.
    answer = dags.run("refused_all_done")
    assert (answer["state"], states(answer)["notify"]) == ("success", "success")


def test_what_a_version_has_collected_is_waited_for_checked_and_reported(lab: Lab, dags: Dags) -> None:
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    at = (an_hour_ago - T0).total_seconds()
    part = Path(lab.workspace.storage_place) / f"collected/collects/v1/inputs/{an_hour_ago:%Y/%m/%d}/1-p.parquet"
    write_part(part, [Exchange(f"r{age}", at, [{"age": float(age)}]) for age in (20, 30, 40, 50)], {"age": "DOUBLE"})

    answer = dags.run("nightly")

    assert answer["state"] == "failed"
    assert answer["tasks"] == {"enough": "success", "good": "success", "bad": "failed", "no_such_column": "failed"}
    # One that is not fulfilled is not tried again; one that cannot be evaluated now may be later.
    assert (answer["tries"]["bad"], answer["tries"]["no_such_column"]) == (1, 2)
    reports = Path(lab.workspace.storage_place) / "reports/collects/v1"
    for task, text in (("good", "2 fulfilled"), ("bad", "r50: [50.0]"), ("no_such_column", "size")):
        assert answer["links"][task]["EndpointLink"].endswith("/collects")
        assert answer["links"][task]["ReportLink"] == "", "a browser cannot open a folder of the workers"
        assert any(text in report.read_text() for report in reports.glob(f"*{task}*.html"))
