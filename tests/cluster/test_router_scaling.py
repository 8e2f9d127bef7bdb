"""The shipped EnvoyProxy on one node: Envoy Gateway makes of it what the page says, and no request fails by scaling."""

import asyncio
import copy
from collections.abc import Iterator

import pytest

from tests.cluster.own_gateway import OwnGateway, envoy_proxy, own_gateway
from tests.cluster.sandbox import Sandbox
from tests.local.local_target_lab import steady_load
from tests.polling import until


def test_the_envoys_of_the_two_files_differ_in_size_and_scaling_only() -> None:
    production, dev_test = (copy.deepcopy(envoy_proxy(file)) for file in ("gateway.yaml", "gateway-dev-test.yaml"))
    kubernetes = [proxy["spec"]["provider"]["kubernetes"] for proxy in (production, dev_test)]

    assert "envoyHpa" not in kubernetes[1]
    assert kubernetes[1]["envoyDeployment"]["replicas"] == 1
    # Envoy Gateway leaves the number to the autoscaler, whatever stands there.
    assert "replicas" not in kubernetes[0]["envoyDeployment"]
    assert kubernetes[0]["envoyPDB"]["minAvailable"] < kubernetes[0]["envoyHpa"]["minReplicas"]
    for proxy in (production, dev_test):
        del proxy["spec"]["provider"]
        del proxy["spec"]["concurrency"]
    assert production == dev_test


@pytest.fixture
def scaled(sandbox: Sandbox) -> Iterator[OwnGateway]:
    """Make an EnvoyProxy of the shipped one, and a Gateway of it."""
    with own_gateway(sandbox) as gateway:
        yield gateway


@pytest.mark.timeout(600, func_only=True)
async def test_envoys_come_and_go_by_the_shipped_autoscaler_and_no_request_fails(scaled: OwnGateway) -> None:
    sandbox = scaled.sandbox
    await sandbox.deploy("one")
    url, key = (await sandbox.target.status(sandbox.endpoint)).url, await sandbox.key()
    autoscaler = scaled.of_envoys("horizontalpodautoscalers")
    deployment = scaled.of_envoys("deployments")

    assert autoscaler is not None
    assert deployment is not None
    shipped = scaled.shipped["spec"]["provider"]["kubernetes"]["envoyHpa"]
    made = autoscaler["spec"]
    assert made["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert (made["minReplicas"], made["maxReplicas"], made["metrics"]) == (1, 2, shipped["metrics"])
    for direction, rules in shipped["behavior"].items():
        assert rules.items() <= made["behavior"][direction].items()
    [envoy] = [one for one in deployment["spec"]["template"]["spec"]["containers"] if one["name"] == "envoy"]
    assert "--concurrency 2" in " ".join(envoy["args"])

    # There is no metrics server on the lab: the test takes the autoscaler's part.
    async with (
        steady_load(url, key, rate=10, connections=2) as kept,
        steady_load(url, key, rate=5, connections=1, per_connection=1) as fresh,
    ):
        for replicas in (2, 1):
            await asyncio.to_thread(scaled.scale, replicas)

            async def are_there(wanted: int = replicas) -> bool:
                return await asyncio.to_thread(scaled.envoys) == (wanted, wanted)

            await until(are_there, f"there are {replicas} Envoys", timeout_s=180, interval_s=1)
            await fresh.more(10)
            await kept.more(10)

    assert (kept.failed, fresh.failed) == ({}, {}), (kept.broken, fresh.broken, kept.refusals, fresh.refusals)
