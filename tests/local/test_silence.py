"""Airflow is killed in the middle of a bad canary: the supervisor takes it back, and a run that returns ends."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlled_rollout import record, steps
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.history import ON_SILENCE
from controlled_rollout.target.local import supervisor
from tests.local.local_target_lab import CHANGE, Lab, running, steady_load
from tests.local.task_lab import Task, run
from tests.polling import until, wait_until

SILENCE = timedelta(seconds=10)
RUN = "run-2"
FAILING = """
def init():
    pass

def run(data):
    raise ValueError("this model has no idea")
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running(tmp_path_factory.mktemp("silence")) as lab:
        # A revision that cannot be read concerns its own endpoint only.
        damaged = lab.workspace.endpoints_folder / "damaged" / "revisions"
        damaged.mkdir(parents=True)
        (damaged / "00000001.json").write_text("{")
        yield lab


def task(operator: str, task_id: str, endpoint: str, **arguments: object) -> Task:
    return Task(operator, task_id, {"endpoint": endpoint, **arguments}, RUN)


def gate(endpoint: str) -> Task:
    """The task of a gate that looks twice a second and does not come to a decision."""
    return task(
        "TreatmentGateSensor", "gate_10", endpoint, version="v2a", gate={"latency_quantiles": []}, bake="1 h",
        decision_timeout="2 h", interval="0.5 s", deferrable=False,
    )  # fmt: skip


def canary(lab: Lab, connection: str, endpoint: str, **settings: object) -> None:
    """Roll a version out that fails at every request, beside a good control, and give it 10 % of the traffic."""
    for version, image, run_id in (
        ("v1a", asyncio.run(lab.image()), "run-1"),
        ("v2a", asyncio.run(lab.image(script=FAILING)), RUN),
    ):
        arguments = {"version": version, "image": image, "settings": {"num_replicas": 1}, **settings}
        deploy = Task("RolloutVersionOperator", "deploy", {"endpoint": endpoint, **arguments}, run_id)
        assert run(deploy, connection) == "done"
    assert run(shift(endpoint, 10), connection) == "done"


def shift(endpoint: str, percentile: float) -> Task:
    return task("ShiftTrafficOperator", f"shift_{percentile}", endpoint, version="v2a", percentile=percentile)


def newest(lab: Lab, endpoint: str) -> Endpoint:
    return asyncio.run(lab.target.endpoint(endpoint))


def share(lab: Lab, endpoint: str) -> float:
    return newest(lab, endpoint).effective_traffic()["v2a"]


def test_damaged_endpoint_is_said_once_and_stops_nobody(lab: Lab) -> None:
    log = lab.workspace.logs_folder / "supervisor.log"
    wait_until(lambda: said(log), "the damage is in the log", timeout_s=60)
    assert said(log) == 1


@pytest.mark.timeout(300)
def test_canary_of_a_killed_airflow_is_taken_back_unless_somebody_looks_holds_or_has_said_keep(
    lab: Lab, connection: str
) -> None:
    silence = {"on_silence": "roll_back", "silence": SILENCE.total_seconds()}
    canary(lab, connection, "kept", **{**silence, "on_silence": "keep"})
    canary(lab, connection, "held", **silence)
    held = newest(lab, "held").hold("v2a", owner=None, at=datetime.now(UTC))
    asyncio.run(lab.target.apply(held, CHANGE))
    canary(lab, connection, "bad", **silence)

    # As long as the gate looks, nothing happens.
    assert run(gate("bad"), connection, kill_after_s=1.3 * SILENCE.total_seconds()) == "killed"
    assert share(lab, "bad") == 10
    looked = asyncio.run(lab.target.last_look("bad"))
    assert looked is not None
    # In the middle of the silence the supervisor is restarted.
    assert supervisor.stop_workspace(lab.workspace) == 0
    assert supervisor.start_workspace(lab.workspace, port=0, detach=True) == 0
    restarted = datetime.now(UTC)

    async def under_load() -> None:
        keys = await lab.target.keys("bad")
        async with steady_load(await lab.url("bad"), keys.primary, rate=20) as load:

            async def is_taken_back() -> bool:
                return (await lab.target.endpoint("bad")).effective_traffic()["v2a"] == 0

            await until(is_taken_back, "the treatment is taken back", timeout_s=120, interval_s=0.2)
            await until(is_recorded, "the record has it", timeout_s=60, interval_s=0.2)
            failed = dict(load.failed)
            await load.more(40)
            assert load.failed == failed, "all that was sent since is answered by control"

    def is_recorded() -> bool:
        return any(decision.step == "roll_back" for decision in record.read(lab.workspace, "bad"))

    asyncio.run(under_load())
    decisions = list(record.read(lab.workspace, "bad"))
    [back] = [decision for decision in decisions if decision.step == "roll_back"]
    assert back.who == ON_SILENCE
    assert back.reason.startswith("nobody looked since ") and back.reason.endswith("(silence 10 s)")
    ending = asyncio.run(lab.target.history("bad"))[-1]
    assert ending.created - looked.at > SILENCE
    # A busy machine may need longer than the silence to restart it.
    assert ending.created - max(looked.at + SILENCE, restarted) < timedelta(seconds=30)

    # Longer without a look than the other one, and a decision each.
    assert (share(lab, "held"), share(lab, "kept")) == (10, 10)
    comes_back(lab, connection, ending.number)


def comes_back(lab: Lab, connection: str, revision: int) -> None:
    """Let the tasks of the run go on: they find what has happened, shift nothing, and tidy up."""
    found = f"weekly/{RUN} no longer holds endpoint 'bad' to roll out 'v2a': the traffic of 'v2a' was taken back from "
    found += f"weekly/{RUN} in revision {revision} (nobody looked since "
    promote = task("PromoteToControlOperator", "promote", "bad", version="v2a")
    for returned in (gate("bad"), shift("bad", 50), promote):
        end = run(returned, connection)
        assert end.startswith("AirflowFailException: ") and found in end
    assert newest(lab, "bad").revision == revision
    for going_back in (
        task("RollBackOperator", "roll_back", "bad", version="v2a"),
        task("RollBackOperator", "roll_back", "bad", version="v2a"),
        task("DeleteVersionOperator", "retire_treatment", "bad", version="v2a"),
    ):
        assert run(going_back, connection) == "done"
    assert list(newest(lab, "bad").versions) == ["v1a"]
    # With this the run's task `result` fails.
    reason = asyncio.run(steps.reason_not_promoted(lab.workspace, "bad", "v2a", f"weekly/{RUN}"))
    assert reason is not None and reason.startswith(
        "version 'v2a' was not promoted: the traffic of 'v2a' was taken back"
    )
    # The endpoint is free for the next run.
    assert newest(lab, "bad").rollout is None


def said(log: Path) -> int:
    """Return how often the log says that an endpoint cannot be checked."""
    return log.read_text().count("whether somebody looks after endpoint damaged cannot be checked")
