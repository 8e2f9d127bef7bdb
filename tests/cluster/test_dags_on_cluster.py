"""The same DAGs on a cluster: nothing is changed but the connections."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlled_rollout import record
from controlled_rollout.duration import format_duration
from controlled_rollout.rollout import Rollout
from controlled_rollout.target.history import ON_SILENCE
from tests.cluster.agent_callers import LONG_S
from tests.cluster.agents import agent_pods
from tests.cluster.lab.images import base_image
from tests.cluster.sandbox import Sandbox
from tests.local.local_target_lab import Load, steady_load
from tests.local.test_dags import QUICK, Dags, dag_runner, states
from tests.polling import until

CANARY = Path(__file__).with_name("dags")
SILENCE = timedelta(seconds=30)

# Telemetry takes a longer way than on one machine's local target.
QUICK_ON_CLUSTER = QUICK | {
    "settings": {"cpu_cores": 0.05, "memory_gb": 0.4, "num_replicas": 1, "max_request_wait_time": 5_000},
    "decision_timeout": "180 s",
    "allowed_lag": "10 s",
    "bake": "12 s",
}


@pytest.mark.timeout(1200)
def test_the_digits_are_deployed_then_retrained_and_promoted_under_load(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_airflow(sandbox, monkeypatch)
    conf = QUICK_ON_CLUSTER | {"endpoint": sandbox.endpoint}

    with dag_runner(sandbox.workspace.root, sandbox.workspace.root / "dags.log") as dags:
        first = dags.run("retrain_and_deploy", **conf, part="first")
        assert first["state"] == "success", states(first)
        [old] = asyncio.run(sandbox.target.endpoint(sandbox.endpoint)).versions
        second, load = asyncio.run(_under_load(sandbox, dags, conf))

    decisions = list(record.read(sandbox.workspace, sandbox.endpoint))
    assert second["state"] == "success", (states(second), decisions[-1].reason)
    assert {task for task, state in states(second).items() if state == "skipped"} == {"roll_back", "retire_treatment"}
    stored = asyncio.run(sandbox.target.endpoint(sandbox.endpoint))
    [new] = stored.versions
    assert new != old
    assert stored.control is not None
    assert stored.control.name == new
    assert load.failed == {}
    assert set(load.versions) == {old, new}
    looks = [entry.outcome for entry in decisions if entry.step == "look"]
    assert looks[-1] == "pass"
    log = (sandbox.workspace.root / "dags.log").read_text()
    assert asyncio.run(sandbox.key()) not in log
    assert _token(sandbox) not in log


def connect_airflow(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Airflow the connections to the sandbox."""
    settings = sandbox.workspace.model_dump(mode="json", exclude_none=True, exclude={"name", "kubeconfig"})
    built = {"registry": f"{sandbox.lab.registry}/models", "base_image": base_image(sandbox.lab.registry)}
    for conn_id, conn_type, extra in (
        ("CONTROLLED_ROLLOUT_DEFAULT", "controlled_rollout", settings | built),
        ("KUBERNETES_DEFAULT", "kubernetes", {"kube_config_path": str(sandbox.workspace.kubeconfig)}),
    ):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id}", json.dumps({"conn_type": conn_type, "extra": extra}))


@pytest.mark.timeout(900)
async def test_canary_of_an_airflow_that_is_killed_is_taken_back_by_the_agents_pods_and_its_run_ends_cleanly_later(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_airflow(sandbox, monkeypatch)
    await sandbox.deploy("one", num_replicas=1)
    root, log = sandbox.workspace.root, sandbox.workspace.root / "dags.log"
    conf: dict[str, Any] = {
        "endpoint": sandbox.endpoint,
        "image": sandbox.images["failing"],
        "silence": format_duration(SILENCE),
    }
    async with agent_pods(sandbox), steady_load(sandbox.url, await sandbox.key(), rate=40) as load:
        with dag_runner(root, log, CANARY) as dags:
            running = asyncio.create_task(asyncio.to_thread(partial(dags.run, "canary", **conf)))
            canary = await until(partial(_watched_canary, sandbox), "a gate looks at the canary", timeout_s=LONG_S)
            await load.more(200)
            await asyncio.to_thread(dags.kill)
            assert await running == {}
        looked = await sandbox.target.last_look(sandbox.endpoint)
        assert looked is not None
        counted = load.sent, load.versions[canary.version]

        async def has_no_traffic() -> bool:
            status = await sandbox.target.status(sandbox.endpoint)
            return canary.version not in status.weight_ppm

        await until(has_no_traffic, "the canary has no traffic", timeout_s=LONG_S, interval_s=0.5)
        served_s = (datetime.now(UTC) - looked.at).total_seconds()
        ending = (await sandbox.target.history(sandbox.endpoint))[-1]
        stored_s = (ending.created - looked.at).total_seconds()
        # Requests that were under way when the router was told.
        await load.more(100)
        failed = dict(load.failed)
        await load.more(200)
        assert load.failed == failed, "all that was sent since is answered by control"
    print(  # noqa: T201 - the figure
        f"taken back {stored_s:.1f} s after the last look (silence {SILENCE.total_seconds():.0f} s), without traffic "
        f"after {served_s:.1f} s; meanwhile {load.sent - counted[0]} requests, "
        f"{load.versions[canary.version] - counted[1]} of them to the canary; failed in all: {load.failed}"
    )
    assert SILENCE <= timedelta(seconds=stored_s) <= SILENCE + timedelta(seconds=30)
    assert ending.change.who == ON_SILENCE
    assert ending.change.reason == f"nobody looked since {looked.at:%Y-%m-%d %H:%M:%S} UTC (silence 30 s)"
    assert set(load.failed) == {"500"}, "only what the canary itself has answered"
    assert load.failed["500"] < load.versions[canary.version]

    with dag_runner(root, log, CANARY) as dags:
        ended = await asyncio.to_thread(dags.go_on, "canary", canary.owner.partition("/")[2])
    tasks = states(ended)
    assert ended["state"] == "failed"
    assert (tasks["gate_10"], tasks["promote"], tasks["roll_back"], tasks["retire_treatment"], tasks["result"]) == (
        "failed", "upstream_failed", "success", "success", "failed",
    )  # fmt: skip
    found = f"no longer holds endpoint {sandbox.endpoint!r} to roll out {canary.version!r}: the traffic of "
    found += f"{canary.version!r} was taken back from {canary.owner} in revision {ending.number} (nobody looked since"
    assert found in log.read_text()
    after = await sandbox.target.endpoint(sandbox.endpoint)
    assert (list(after.versions), after.rollout) == (["one"], None)
    [back] = record.read(sandbox.workspace, sandbox.endpoint, step="roll_back")
    assert (back.who, back.reason) == (ON_SILENCE, ending.change.reason)


async def _watched_canary(sandbox: Sandbox) -> Rollout | None:
    """Return the rollout whose treatment has traffic and whose gate looks; None while there is none."""
    newest = (await sandbox.target.history(sandbox.endpoint))[-1]
    rollout, looked = newest.endpoint.rollout, await sandbox.target.last_look(sandbox.endpoint)
    if rollout is None or rollout.version == "one" or not newest.endpoint.effective_traffic().get(rollout.version):
        return None
    waits = datetime.now(UTC) - newest.created > timedelta(seconds=3)
    return rollout if waits and looked and looked.version == rollout.version and looked.at > newest.created else None


async def _under_load(sandbox: Sandbox, dags: Dags, conf: dict[str, Any]) -> tuple[dict[str, Any], Load]:
    async with steady_load(sandbox.url, await sandbox.key(), rate=40) as load:
        await load.more(100)
        return await asyncio.to_thread(dags.run, "retrain_and_deploy", **conf), load


def _token(sandbox: Sandbox) -> str:
    assert sandbox.workspace.kubeconfig is not None
    return str(yaml.safe_load(sandbox.workspace.kubeconfig.read_text())["users"][0]["user"]["token"])
