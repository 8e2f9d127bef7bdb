"""The agent in a real cluster: replicas that follow the load, one agent at a time, and repair while nobody waits."""

import asyncio
import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from controlled_rollout.target.kubernetes.names import version_object_name
from tests.cluster.agent_callers import LONG_S, deployment, has_replicas, kubectl, open_requests, replicas
from tests.cluster.agents import Line, agent_pods, agent_roles, lease_holder, running_agent
from tests.cluster.lab import Lab
from tests.cluster.sandbox import Sandbox
from tests.polling import until

pytestmark = pytest.mark.timeout(900, func_only=True)

# How long an agent is cut off from the API server.
CUT_S = 60
KEDA = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: scaledobjects.keda.sh}
spec:
  group: keda.sh
  names: {kind: ScaledObject, listKind: ScaledObjectList, plural: scaledobjects, singular: scaledobject}
  scope: Namespaced
  versions:
    - name: v1alpha1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"""


async def status_says(sandbox: Sandbox, *parts: str) -> None:
    async def does() -> bool:
        said = "\n".join((await sandbox.target.status(sandbox.endpoint)).warnings)
        return all(part in said for part in parts)

    await until(does, f"status says {parts}", timeout_s=LONG_S, interval_s=1.0)


def failed(outcomes: Counter[str]) -> list[str]:
    """Return how requests have failed; not those that an overloaded version has refused itself."""
    return [outcome for outcome in outcomes if outcome != "200" and not outcome.startswith("503 ")]


async def status_is_silent(sandbox: Sandbox) -> None:
    async def does() -> bool:
        return (await sandbox.target.status(sandbox.endpoint)).warnings == ()

    await until(does, "status says nothing", timeout_s=LONG_S, interval_s=1.0)


def scaler_of(name: str, kind: str, version: str) -> str:
    """Return another autoscaler of a Deployment, which does nothing of its own in the lab."""
    spec = {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}}
    bounds = {"minReplicas": 1, "maxReplicas": 9} if kind == "HorizontalPodAutoscaler" else {}
    body = {"apiVersion": version, "kind": kind, "metadata": {"name": "theirs"}, "spec": spec | bounds}
    return json.dumps(body)


async def test_replicas_follow_the_load_whichever_agent_is_at_work_and_what_others_scale_is_left_alone(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    await sandbox.deploy("one", autoscale_max_replicas=3, replica_max_concurrent_requests=1)
    name = version_object_name(sandbox.endpoint, "one")
    with (
        agent_roles(sandbox),
        running_agent(sandbox, tmp_path / "first") as first,
        running_agent(sandbox, tmp_path / "second", wait=False) as second,
    ):
        async with open_requests(sandbox, 2, 2.0) as answers:
            await has_replicas(sandbox, "one", 3)
            said = (await deployment(sandbox, "one"))["metadata"]["annotations"]["controlled-rollout/autoscaled"]
            assert "1 → " in said or "→ 3 replicas" in said

            assert not second.is_at_work()
            first.kill()
            await until(second.is_at_work, "the second agent has taken over", timeout_s=LONG_S, interval_s=0.5)
            assert await replicas(sandbox, "one") == 3
            assert answers["200"] > 0 and failed(answers) == []

            await kubectl(
                sandbox, "create", "-f", "-", input=scaler_of(name, "HorizontalPodAutoscaler", "autoscaling/v2")
            )
            await status_says(sandbox, "is not scaled by its load: HorizontalPodAutoscaler 'theirs' scales it")
            await kubectl(sandbox, "delete", "horizontalpodautoscaler", "theirs")
            await status_is_silent(sandbox)

            # A person takes two of them away: they stay away, whatever the load.
            await kubectl(sandbox, "scale", "deployment", name, "--replicas=1")
            await status_says(sandbox, "has set the number of its replicas, and nobody changes what others have set")
            assert await replicas(sandbox, "one") == 1
            manager = ("--field-manager=controlled-rollout-scale", "--type=merge")
            await kubectl(sandbox, "patch", "deployment", name, *manager, "--patch", '{"spec":{"replicas":2}}')
            await has_replicas(sandbox, "one", 3)
        # Nobody asks any more: fewer, after the minute.
        await has_replicas(sandbox, "one", 1)


async def test_a_scaled_object_of_keda_is_found_and_its_version_left_alone(sandbox: Sandbox, tmp_path: Path) -> None:
    try:
        await asyncio.to_thread(lambda: sandbox.lab.kubectl("create", "-f", "-", input=KEDA))
        is_ours = True
    except Exception as error:
        assert "AlreadyExists" in str(error), error
        is_ours = False
    try:
        await asyncio.to_thread(
            lambda: sandbox.lab.kubectl(
                "wait", "--for=condition=Established", "crd/scaledobjects.keda.sh", "--timeout=60s"
            )
        )
        await sandbox.deploy("one")
        name = version_object_name(sandbox.endpoint, "one")
        await kubectl(sandbox, "create", "-f", "-", input=scaler_of(name, "ScaledObject", "keda.sh/v1alpha1"))
        with agent_roles(sandbox), running_agent(sandbox, tmp_path / "agent"):
            await status_says(sandbox, "is not scaled by its load: ScaledObject 'theirs' scales it")
    finally:
        if is_ours:
            sandbox.lab.kubectl("delete", "crd", "scaledobjects.keda.sh", "--wait=false")


async def test_an_agent_that_is_cut_off_from_the_api_server_gives_up_and_acts_no_more(
    sandbox: Sandbox, lab: Lab, tmp_path: Path
) -> None:
    if not lab.is_ours:
        pytest.skip("the certificate of another cluster's API server is not for an address of this machine")
    kubeconfig = yaml.safe_load(lab.kubeconfig.read_text())
    # Two replicas are enough for one request at a time.
    await sandbox.deploy("one", autoscale_min_replicas=2, autoscale_max_replicas=3, replica_max_concurrent_requests=1)
    async with (
        open_requests(sandbox, 1, 0.1) as answers,
        Line(kubeconfig["clusters"][0]["cluster"]["server"]).running() as line,
    ):
        with (
            agent_roles(sandbox),
            running_agent(sandbox, tmp_path / "first", server=line.address, wait=False) as first,
        ):
            await until(first.is_at_work, "the first agent is at work", timeout_s=LONG_S, interval_s=0.2)
            with running_agent(sandbox, tmp_path / "second", wait=False) as second:
                line.is_open.clear()
                cut_s = time.monotonic()
                await until(second.is_at_work, "the second agent has taken over", timeout_s=LONG_S, interval_s=0.2)
                assert "stops its work" in first.log
                async with open_requests(sandbox, 2, 2.0):
                    await has_replicas(sandbox, "one", 3)
                    assert "→ 3 replicas" in second.log
                    await until(
                        lambda: time.monotonic() > cut_s + CUT_S,
                        "it was cut off so long",
                        timeout_s=LONG_S,
                        interval_s=1.0,
                    )
                    line.is_open.set()
                assert "replicas:" not in first.log
                assert answers["200"] > CUT_S and failed(answers) == []

                # Suspended in the middle of its work, and woken when another one has the Lease.
                second.process.send_signal(signal.SIGSTOP)
                await until(lambda: first.log.count("is at work") == 2, "the first agent is back", timeout_s=LONG_S)
                second.process.send_signal(signal.SIGCONT)
                await until(lambda: "stops its work" in second.log, "the second has stopped", timeout_s=LONG_S)
                lease = await kubectl(sandbox, "get", "lease", "controlled-rollout-agent", "-o", "json")
                assert json.loads(lease)["spec"]["leaseTransitions"] == 2


async def test_the_shipped_pods_run_in_a_restricted_namespace_and_one_of_them_is_at_work(
    sandbox: Sandbox,
) -> None:
    await kubectl(sandbox, "label", "namespace", sandbox.namespace, "pod-security.kubernetes.io/enforce=restricted")
    async with agent_pods(sandbox) as first:
        pod = first.rpartition("-")[0]
        await kubectl(sandbox, "delete", "pod", pod, "--wait=false")

        async def other() -> bool:
            now = await lease_holder(sandbox)
            return bool(now) and not now.startswith(pod)

        await until(other, "the other one has taken over", timeout_s=LONG_S, interval_s=1.0)
        said = await kubectl(sandbox, "logs", "deployment/controlled-rollout-agent")
        assert "Traceback" not in said
        assert "is not followed" not in said
