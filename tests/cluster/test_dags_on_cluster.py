"""The same DAGs on a cluster: nothing is changed but the connections."""

import asyncio
import json
from typing import Any

import pytest
import yaml

from controlled_rollout import record
from tests.cluster.lab.images import base_image
from tests.cluster.sandbox import Sandbox
from tests.local.local_target_lab import Load, steady_load
from tests.local.test_dags import QUICK, Dags, dag_runner, states

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
    settings = sandbox.workspace.model_dump(mode="json", exclude_none=True, exclude={"name", "kubeconfig"})
    built = {"registry": f"{sandbox.lab.registry}/models", "base_image": base_image(sandbox.lab.registry)}
    for conn_id, conn_type, extra in (
        ("CONTROLLED_ROLLOUT_DEFAULT", "controlled_rollout", settings | built),
        ("KUBERNETES_DEFAULT", "kubernetes", {"kube_config_path": str(sandbox.workspace.kubeconfig)}),
    ):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id}", json.dumps({"conn_type": conn_type, "extra": extra}))
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


async def _under_load(sandbox: Sandbox, dags: Dags, conf: dict[str, Any]) -> tuple[dict[str, Any], Load]:
    async with steady_load(sandbox.url, await sandbox.key(), rate=40) as load:
        await load.more(100)
        return await asyncio.to_thread(dags.run, "retrain_and_deploy", **conf), load


def _token(sandbox: Sandbox) -> str:
    assert sandbox.workspace.kubeconfig is not None
    return str(yaml.safe_load(sandbox.workspace.kubeconfig.read_text())["users"][0]["user"]["token"])
