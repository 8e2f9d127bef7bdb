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
from tests.cluster.place import Place
from tests.local.local_target_lab import steady_load
from tests.polling import until
from tests.prometheus.real_prometheus import require_program, scraping

WINDOW = EvidenceWindow(
    bin_width=timedelta(seconds=2), allowed_lag=timedelta(seconds=2), baseline_length=timedelta(seconds=15)
)
GATE = Gate(alpha=0.001, latency_quantiles=(0.5,), latency_tolerance=0, burst_cap=4.0)


def stats_addresses(place: Place) -> list[str]:
    """Where the Gateway's Envoys let Prometheus read their counters."""
    _, gateway = place.lab.gateway.split("/")
    labels = f"gateway.envoyproxy.io/owning-gateway-name={gateway}"
    found = place.lab.kubectl("get", "pods", "--namespace", "envoy-gateway-system", "-l", labels, "-o", "json")
    return [f"{pod['status']['podIP']}:19001" for pod in json.loads(found)["items"]]


async def test_a_failing_treatment_is_found_by_the_counters_of_the_gateways_envoys(
    place: Place, tmp_path: Path
) -> None:
    require_program()
    if not place.lab.is_ours:
        pytest.skip("the cluster's pods cannot be reached from this machine")
    await place.roll_out("one", num_replicas=2)
    with scraping(tmp_path / "prometheus", *stats_addresses(place), interval="1s") as prometheus:
        without_store = {"telemetry_endpoint": None, "telemetry_workspace_id": None, "telemetry_token_file": None}
        workspace = Workspace.model_validate(
            {**place.workspace.model_dump(), **without_store, "prometheus_url": prometheus.url}
        )
        async with steady_load(place.url, await place.key(), rate=60) as load:
            await load.more(700)
            await place.roll_out("two", "failing", num_replicas=2)
            await place.shift("two", 50)

            async def verdict() -> looks.Look | None:
                look = await looks.look(
                    workspace, place.target, place.endpoint, "two", gate=GATE, who="a test", window=WINDOW,
                )  # fmt: skip
                place.said.append(f"{look.verdict.outcome}: {look.verdict.reason}")
                return look if look.verdict.outcome is Outcome.FAIL else None

            look = await until(verdict, f"a verdict; {place.said}", timeout_s=120, interval_s=0.5)
            assert isinstance(look, looks.Look)
            await place.roll_back("two", look.verdict.reason)

    assert "errors are higher" in look.verdict.reason
    replayed = [one for one in replay(record.read(workspace, place.endpoint)) if one.look is not None]
    assert [one.difference for one in replayed if one.difference] == []
    last = replayed[-1].look
    assert last is not None
    evidence = last.evidence
    # Callers were answered by both, and the Envoys' counters know no more than that.
    for name, seen in (
        ("one", sum(one.control.requests for one in evidence.bins)),
        ("two", sum(one.treatment.requests for one in evidence.bins)),
    ):
        assert 0 < seen <= load.versions[name]
