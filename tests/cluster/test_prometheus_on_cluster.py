"""Evidence from a Prometheus that scrapes the Envoys of a real Envoy Gateway."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from controlled_rollout import record
from controlled_rollout.evaluation import look as looks
from controlled_rollout.evaluation.replay import replay
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate, Outcome
from controlled_rollout.workspace import Workspace
from tests.cluster.sandbox import Sandbox
from tests.local.local_target_lab import steady_load
from tests.polling import until
from tests.prometheus.real_prometheus import require_program, scraping

WINDOW = EvidenceWindow(
    bin_width=timedelta(seconds=2), allowed_lag=timedelta(seconds=2), baseline_length=timedelta(seconds=15)
)
GATE = Gate(alpha=0.001, latency_quantiles=(0.5,), latency_tolerance=0, burst_cap=4.0)


def stats_addresses(sandbox: Sandbox) -> list[str]:
    """Where the Gateway's Envoys let Prometheus read their counters."""
    _, gateway = sandbox.lab.gateway.split("/")
    labels = f"gateway.envoyproxy.io/owning-gateway-name={gateway}"
    pods = sandbox.lab.kubectl("get", "pods", "--namespace", "envoy-gateway-system", "-l", labels, "-o", "json")
    return [f"{pod['status']['podIP']}:19001" for pod in json.loads(pods)["items"]]


async def test_failing_treatment_is_detected_by_the_counters_of_the_gateways_envoys(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    require_program()
    if not sandbox.lab.is_ours:
        pytest.skip("the cluster's pods cannot be reached from this machine")
    await sandbox.deploy("one", num_replicas=2)
    with scraping(tmp_path / "prometheus", *stats_addresses(sandbox), interval="1s") as prometheus:
        without_store = {"telemetry_endpoint": None, "telemetry_workspace_id": None, "telemetry_token_file": None}
        workspace = Workspace.model_validate(
            {**sandbox.workspace.model_dump(), **without_store, "prometheus_url": prometheus.url}
        )
        async with steady_load(sandbox.url, await sandbox.key(), rate=60) as load:
            await load.more(700)
            await sandbox.deploy("two", "failing", num_replicas=2)
            await sandbox.shift("two", 50)

            async def verdict() -> looks.Look | None:
                look = await looks.look(
                    workspace, sandbox.target, sandbox.endpoint, "two", gate=GATE, who="a test", window=WINDOW,
                )  # fmt: skip
                sandbox.progress_lines.append(f"{look.verdict.outcome}: {look.verdict.reason}")
                return look if look.verdict.outcome is Outcome.FAIL else None

            look = await until(verdict, f"a verdict; {sandbox.progress_lines}", timeout_s=120, interval_s=0.5)
            assert isinstance(look, looks.Look)
            await sandbox.roll_back("two", look.verdict.reason)

    assert "errors are higher" in look.verdict.reason
    replayed = [
        replayed_look
        for replayed_look in replay(record.read(workspace, sandbox.endpoint))
        if replayed_look.look is not None
    ]
    assert [replayed_look.difference for replayed_look in replayed if replayed_look.difference] == []
    last = replayed[-1].look
    assert last is not None
    evidence = last.evidence
    # Callers were answered by both, and the Envoys' counters know no more than that.
    for name, counted in (
        ("one", sum(each.control.requests for each in evidence.bins)),
        ("two", sum(each.treatment.requests for each in evidence.bins)),
    ):
        assert 0 < counted <= load.versions[name]
