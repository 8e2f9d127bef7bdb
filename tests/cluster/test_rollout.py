"""A whole rollout on the real cluster, under load from outside."""

import asyncio
import json
import re
import urllib.error
import urllib.request
from datetime import timedelta
from unittest.mock import AsyncMock

import pytest

from controlled_rollout import record, steps
from controlled_rollout.errors import ConflictError, DeploymentError, NameTakenError
from controlled_rollout.evaluation import look as looks
from controlled_rollout.evaluation.replay import replay
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate, Outcome
from controlled_rollout.target.kubernetes import reconciling
from controlled_rollout.target.kubernetes.names import ENDPOINT_LABEL, endpoint_object_name, version_object_name
from controlled_rollout.target.protocol import Change, ReplicaState
from controlled_rollout.target.waiting import wait_until_served
from tests.cluster.sandbox import CHANGE, MAX_WAIT, SMALL, Sandbox
from tests.cluster.scoring_images import build
from tests.local.local_target_lab import steady_load
from tests.polling import until

# Enough for the gate, and the machine has other tests to run.
RATE = 40.0
WINDOW = EvidenceWindow(bin_width=timedelta(seconds=2), allowed_lag=timedelta(seconds=8))
# Small numbers, so that a test takes seconds: what they mean is docs/gate.md's business.
GATE = Gate(alpha=0.001, latency_quantiles=(0.5, 0.9), latency_tolerance=0.25, burst_cap=4.0)


async def ask(sandbox: Sandbox, *, key: str | None = None, version: str | None = None) -> tuple[int, str, str]:
    """Return status, the version that answered, and the body."""

    def call() -> tuple[int, str, str]:
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if version:
            headers["azureml-model-deployment"] = version
        request = urllib.request.Request(sandbox.url, data=b"{}", headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers.get("azureml-model-deployment", ""), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers.get("azureml-model-deployment", ""), error.read().decode()

    return await asyncio.to_thread(call)


async def test_caller_that_waits_for_an_older_revision_reconciles_the_newest_and_deletes_nothing_of_it(
    sandbox: Sandbox,
) -> None:
    """A version comes back, and whoever brings it back ends before the route knows of it."""
    await sandbox.deploy("one")
    await sandbox.deploy("two")
    await sandbox.promote("two")
    retired = await sandbox.retire("one")
    assert retired is not None
    waits = wait_until_served(sandbox.target, sandbox.endpoint, retired.revision + 1, timeout=MAX_WAIT, progress=print)
    bystander = asyncio.create_task(waits)
    await until(lambda: uid_of(sandbox, "one") == "", "the retired version is gone", interval_s=0.5)

    again = retired.create_version("one", image=sandbox.images["steady"], cpu_cores=0.05, memory_gb=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconciling, "reconcile_endpoint", AsyncMock())
        await sandbox.target.apply(again, Change(who="a test", reason="bring it back"))
    made = uid_of(sandbox, "one")
    served = await bystander

    assert set(served.versions) == {"one", "two"}
    assert uid_of(sandbox, "one") == made, "it was not deleted in between"


def uid_of(sandbox: Sandbox, version: str) -> str:
    """Return the uid of a version's Deployment; empty for none."""
    name = version_object_name(sandbox.endpoint, version)
    return sandbox.kubectl("get", "deployment", name, "--ignore-not-found", "-o", "jsonpath={.metadata.uid}")


async def test_a_version_has_the_replicas_for_its_share_before_it_gets_it(sandbox: Sandbox) -> None:
    """40 requests/s of 60 ms keep 2.4 replicas busy: at a target of 70 %, half of them need 2."""
    await sandbox.deploy("one", "slow", num_replicas=4)
    async with steady_load(sandbox.url, await sandbox.key(), rate=40) as load:
        await load.more(300)
        await sandbox.deploy("two", "slow")
        assert (await sandbox.target.status(sandbox.endpoint)).versions["two"].wanted_replicas == 1
        await sandbox.shift("two", 50)
        status = await sandbox.target.status(sandbox.endpoint)
        await load.more(200)

    assert status.versions["two"].wanted_replicas >= 2
    assert status.versions["two"].ready
    assert load.failed == {}, load.refusals


async def test_slower_treatment_is_detected_and_rolled_back_and_control_keeps_serving(sandbox: Sandbox) -> None:
    await sandbox.deploy("one", num_replicas=2)
    async with steady_load(sandbox.url, await sandbox.key(), rate=RATE) as load:
        await load.more(500)  # control's own latency has to be known before
        await sandbox.deploy("two", "slow", num_replicas=2)
        await sandbox.shift("two", 50)

        async def verdict() -> looks.Look | None:
            look = await looks.look(
                sandbox.workspace, sandbox.target, sandbox.endpoint, "two", gate=GATE, who="a test", window=WINDOW
            )
            sandbox.progress_lines.append(f"{look.verdict.outcome}: {look.verdict.reason}")
            await asyncio.sleep(1)
            return look if look.verdict.outcome is Outcome.FAIL else None

        look = await until(verdict, f"a verdict; {sandbox.progress_lines}", timeout_s=120)
        assert isinstance(look, looks.Look)
        assert "latency is higher" in look.verdict.reason
        await sandbox.roll_back("two", look.verdict.reason)
        failed_until_then = load.failed
        versions_until_then = load.versions["two"]
        await load.more(300)

    assert load.failed == failed_until_then
    # What was already on its way when the split changed may still be answered by it.
    assert load.versions["two"] - versions_until_then <= 2


async def test_crashing_treatment_is_detected_although_no_response_names_it(
    sandbox: Sandbox,
) -> None:
    """Envoy Gateway itself answers for a version without a replica, and its answers do not say whose share it was."""
    await sandbox.deploy("one")
    async with steady_load(sandbox.url, await sandbox.key(), rate=RATE) as load:
        await sandbox.deploy("two", "dies")
        await sandbox.shift("two", 50)

        async def is_down() -> bool:
            version = (await sandbox.target.status(sandbox.endpoint)).versions["two"]
            return version.failed and not any(replica.state is ReplicaState.READY for replica in version.replicas)

        await until(is_down, "its replica waits for its fourth start", timeout_s=120, interval_s=0.5)
        look = await looks.look(
            sandbox.workspace, sandbox.target, sandbox.endpoint, "two", gate=GATE, who="a test", window=WINDOW
        )
        assert look.verdict.outcome is Outcome.FAIL
        assert re.search(r"'two' has no ready replica .* exited with code 1; failed \d+ times", look.verdict.reason)
        await sandbox.roll_back("two", look.verdict.reason)
        failed_until_then = load.failed
        await load.more(200)

    assert load.failed == failed_until_then
    [replayed] = [one for one in replay(record.read(sandbox.workspace, sandbox.endpoint)) if one.verdict is not None]
    assert replayed.difference == ""


async def test_treatment_that_fits_on_no_node_fails_in_bounded_time_with_the_cause(sandbox: Sandbox) -> None:
    await sandbox.deploy("one")

    with pytest.raises(DeploymentError, match=r"cannot be scheduled: .*Insufficient cpu"):
        await steps.deploy(
            sandbox.workspace,
            sandbox.endpoint,
            "two",
            image=sandbox.images["steady"],
            owner="run",
            change=CHANGE,
            settings={"cpu_cores": 500},
            timeout=timedelta(seconds=5),
            progress=sandbox.progress_lines.append,
        )
    await sandbox.roll_back("two", "no room")
    assert (await ask(sandbox, key=await sandbox.key()))[:2] == (200, "one")


async def test_treatment_that_fails_its_probe_is_an_error_with_the_event_of_kubernetes(sandbox: Sandbox) -> None:
    late = await asyncio.to_thread(build, sandbox.lab.registry, "steady", version="late", init_s=600)

    with pytest.raises(DeploymentError) as failure:
        await steps.deploy(
            sandbox.workspace,
            sandbox.endpoint,
            "one",
            image=late,
            owner="run",
            change=CHANGE,
            settings=SMALL,
            timeout=timedelta(seconds=20),
            progress=sandbox.progress_lines.append,
        )

    assert re.search(
        r"not ready after 20 s: pod \S+-one-\S+ runs and has not passed its startup probe yet; "
        r"Kubernetes: Startup probe failed: .+\nlast lines of its log:\n",
        str(failure.value),
    )


async def test_treatment_with_a_missing_image_fails_with_the_cause(sandbox: Sandbox) -> None:
    await sandbox.deploy("one")
    missing = f"{sandbox.lab.registry}/models/nothing@sha256:{'0' * 64}"

    with pytest.raises(DeploymentError, match=r"cannot pull its image"):
        await sandbox.deploy("two", missing)
    assert (await ask(sandbox, key=await sandbox.key()))[:2] == (200, "one")


async def test_two_runs_at_once_give_one_clear_conflict(sandbox: Sandbox) -> None:
    await sandbox.deploy("one")

    def run(version: str) -> "asyncio.Task[object]":
        return asyncio.create_task(
            steps.deploy(
                sandbox.workspace,
                sandbox.endpoint,
                version,
                image=sandbox.images["steady"],
                owner=f"run-of-{version}",
                change=CHANGE,
                settings={"cpu_cores": 0.02},
                progress=sandbox.progress_lines.append,
            )
        )

    results = await asyncio.gather(run("two"), run("three"), return_exceptions=True)

    [conflict] = [result for result in results if isinstance(result, BaseException)]
    assert isinstance(conflict, ConflictError)
    assert "is held by run-of-" in str(conflict)
    assert len((await sandbox.target.endpoint(sandbox.endpoint)).versions) == 2


async def is_refused_while_others_have_its_names(sandbox: Sandbox) -> None:
    name = endpoint_object_name(sandbox.endpoint)
    keys = f"{name}-keys"
    sandbox.kubectl("create", "configmap", name, "--from-literal=theirs=1")
    sandbox.kubectl("create", "secret", "generic", keys, "--from-literal=theirs=known")
    for kind, of in (("configmap", name), ("secret", keys)):
        with pytest.raises(NameTakenError, match=rf"{of}, .* is not its own \(written by 'kubectl-create' at "):
            await sandbox.deploy("one")
        sandbox.kubectl("delete", kind, of)


async def takes_entries_of_others_out_of_the_keys(sandbox: Sandbox) -> None:
    """Have the Gateway accept a third entry of the keys' Secret, and a step take it out, without any label of ours."""
    name, added = endpoint_object_name(sandbox.endpoint), json.dumps({"stringData": {"third": "letmein"}})
    sandbox.kubectl("patch", "secret", f"{name}-keys", "--type=merge", "-p", added)
    for kind, of in (("secret", f"{name}-keys"), ("configmap", name), ("securitypolicy", name)):
        sandbox.kubectl("label", kind, of, f"{ENDPOINT_LABEL}-", "app.kubernetes.io/managed-by-")

    async def is_let_in() -> bool:
        return (await ask(sandbox, key="letmein"))[0] == 200

    async def is_refused() -> bool:
        return (await ask(sandbox, key="letmein"))[0] == 401

    await until(is_let_in, "the Gateway takes any entry for a key")
    assert "other entries than primary and secondary (third)" in str(await sandbox.target.status(sandbox.endpoint))
    await sandbox.shift("two", 30)
    await until(is_refused, "the Gateway knows the two keys only")


async def test_what_is_foreign_survives_every_change_and_the_deletion_of_the_endpoint_but_no_key(
    sandbox: Sandbox,
) -> None:
    await is_refused_while_others_have_its_names(sandbox)
    await sandbox.deploy("one")
    foreign = {
        "name": "foreign",
        "matches": [{"path": {"type": "PathPrefix", "value": "/foreign"}}],
        "filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 302, "hostname": "x.example"}}],
    }
    sandbox.kubectl(
        "patch",
        "httproute",
        sandbox.endpoint,
        "--type=json",
        "-p",
        json.dumps([{"op": "add", "path": "/spec/rules/0", "value": foreign}]),
    )
    [moved] = (await sandbox.target.status(sandbox.endpoint)).warnings
    assert "were moved from positions 0, 1, 2 to 1, 2, 3" in moved

    await sandbox.deploy("two")
    await sandbox.shift("two", 20)
    await takes_entries_of_others_out_of_the_keys(sandbox)
    await sandbox.promote("two")
    await sandbox.retire("one")

    def rules() -> list[str]:
        return [
            rule["name"]
            for rule in json.loads(sandbox.kubectl("get", "httproute", sandbox.endpoint, "-o", "json"))["spec"]["rules"]
        ]

    assert rules()[0] == "foreign"
    await sandbox.target.delete(sandbox.endpoint, CHANGE)
    assert rules() == ["foreign"]
    left = sandbox.kubectl(
        "get",
        "deployments,services,secrets,configmaps,controllerrevisions,securitypolicies,backendtrafficpolicies",
        "-o",
        "name",
    )
    assert sandbox.endpoint not in left
    with pytest.raises(NameTakenError, match=f"HTTPRoute {sandbox.endpoint}, "):
        await sandbox.deploy("one")


async def test_route_edited_by_hand_is_reported_and_not_overwritten(sandbox: Sandbox) -> None:
    await sandbox.deploy("one")
    await sandbox.deploy("two")
    edit = [{"op": "replace", "path": "/spec/rules/0/timeouts/request", "value": "1s"}]
    sandbox.kubectl(
        "patch", "httproute", sandbox.endpoint, "--type=json", "--field-manager=somebody", "-p", json.dumps(edit)
    )
    before = sandbox.kubectl("get", "httproute", sandbox.endpoint, "-o", "jsonpath={.metadata.generation}")
    revision = (await sandbox.target.endpoint(sandbox.endpoint)).revision

    with pytest.raises(ConflictError, match=r"'somebody' at .* has changed the route last.*nothing was changed now"):
        await sandbox.shift("two", 10)

    assert "somebody" in ((await sandbox.target.status(sandbox.endpoint)).trouble or "")
    assert sandbox.kubectl("get", "httproute", sandbox.endpoint, "-o", "jsonpath={.metadata.generation}") == before
    assert (await sandbox.target.endpoint(sandbox.endpoint)).revision == revision


async def test_an_endpoint_of_the_same_name_in_another_namespace_keeps_its_path(
    sandbox: Sandbox, second_sandbox: Sandbox
) -> None:
    await sandbox.deploy("one")
    second_sandbox.endpoint = sandbox.endpoint

    with pytest.raises(
        ConflictError, match=rf"serves an endpoint '{sandbox.endpoint}' of namespace '{sandbox.namespace}'"
    ):
        await second_sandbox.deploy("one")
