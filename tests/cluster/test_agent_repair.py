"""The agent while no step waits: drift is repaired, half-done changes end, silent canaries are taken back."""

import json
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from controlled_rollout.rollout import OnSilence
from controlled_rollout.target.kubernetes import reconciling
from controlled_rollout.target.kubernetes.names import endpoint_object_name, version_object_name
from controlled_rollout.target.kubernetes.permissions import AGENT, AGENT_GATEWAY, ENVOY_NAMESPACE
from controlled_rollout.target.protocol import Change
from tests.cluster.agent_callers import LONG_S, has_replicas, kubectl, open_requests
from tests.cluster.agents import agent_roles, recorded_agent
from tests.cluster.sandbox import OWNER, Sandbox
from tests.polling import until

pytestmark = pytest.mark.timeout(900, func_only=True)


# Long because an endpoint and an agent take long to start: what it does for them is seen one after the other.
async def test_drift_is_repaired_and_half_done_changes_are_ended_while_no_step_waits_with_exactly_the_shipped_role(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # That no step is at work is known sooner than after a minute.
    monkeypatch.setattr(reconciling, "IDLE_AFTER", timedelta(seconds=2))
    await sandbox.deploy("one", autoscale_max_replicas=2, replica_max_concurrent_requests=1)
    await sandbox.deploy("two", on_silence=OnSilence.ROLL_BACK, silence=timedelta(seconds=5))
    name, of_one = endpoint_object_name(sandbox.endpoint), version_object_name(sandbox.endpoint, "one")

    async def is_served(revision: int) -> bool:
        return (await sandbox.target.status(sandbox.endpoint)).served_revision >= revision

    with agent_roles(sandbox):
        async with recorded_agent(sandbox, tmp_path / "agent") as used:
            async with open_requests(sandbox, 2, 2.0):
                await has_replicas(sandbox, "one", 2)
            # What others delete and edit.
            lost = {
                "service": of_one,
                "poddisruptionbudget": of_one,
                "networkpolicy": name,
                "secret": f"{name}-keys",
                "backendtrafficpolicy": name,
                "securitypolicy": name,
                "httproutefilter": f"{name}-closed",
                "httproute": sandbox.endpoint,
                "deployment": of_one,
            }
            objects = [f"{kind}/{of}" for kind, of in lost.items()]
            await kubectl(sandbox, "delete", *objects)

            async def is_whole() -> bool:
                # One call, because each takes a tenth of a second of a processor.
                found = await kubectl(sandbox, "get", *objects, "--ignore-not-found", "-o=name")
                return len(found.split()) == len(objects)

            await until(is_whole, "all is made again", timeout_s=LONG_S, interval_s=1.0)
            newest = await sandbox.target.endpoint(sandbox.endpoint)
            await until(lambda: is_served(newest.revision), "it is served", timeout_s=LONG_S, interval_s=1.0)

            one_key = ("--type=merge", "--patch", '{"data":{"secondary":null}}')
            await kubectl(sandbox, "patch", "secret", f"{name}-keys", *one_key)
            await kubectl(sandbox, "label", "configmap", name, "controlled-rollout/endpoint-")
            await until(partial(_has_both_keys, sandbox, name), "both keys are there", timeout_s=LONG_S, interval_s=1.0)

            # A canary whose tasks are gone: nobody looks any more.
            await sandbox.shift("two", 20, owner=OWNER)

            async def is_taken_back() -> bool:
                last = (await sandbox.target.history(sandbox.endpoint))[-1]
                return not last.endpoint.versions["two"].traffic_percentile and "nobody looked" in last.change.reason

            await until(is_taken_back, "the treatment is taken back", timeout_s=LONG_S, interval_s=1.0)
            newest = await sandbox.target.endpoint(sandbox.endpoint)
            await until(lambda: is_served(newest.revision), "it has no traffic", timeout_s=LONG_S, interval_s=1.0)

            # A step that was killed after it had stored its revision: both versions change.
            endpoint = newest.update_version("two", traffic_percentile=0).promote("two").delete_version("one")
            endpoint = endpoint.create_version("three", image=sandbox.images["steady2"], cpu_cores=0.05, memory_gb=0.2)
            stored = await sandbox.target.apply(endpoint, Change(who="a step that is killed"))
            await until(lambda: is_served(stored.revision), "it is served", timeout_s=LONG_S, interval_s=1.0)
            gone = partial(_is_gone, sandbox, "deployment", of_one)
            await until(gone, "what it left is deleted", timeout_s=LONG_S, interval_s=1.0)

    granted = {
        (verb, permission.group, permission.resource)
        for permission in (*AGENT, *AGENT_GATEWAY, *ENVOY_NAMESPACE)
        for verb in permission.verbs
    }
    assert used <= granted
    assert granted - used == set(), "the Role allows what is never asked for"


async def _has_both_keys(sandbox: Sandbox, name: str) -> bool:
    secret = await kubectl(sandbox, "get", "secret", f"{name}-keys", "-o", "json")
    return set(json.loads(secret)["data"]) == {"primary", "secondary"}


async def _is_gone(sandbox: Sandbox, kind: str, name: str) -> bool:
    return not await kubectl(sandbox, "get", kind, name, "--ignore-not-found", "-o=name")
