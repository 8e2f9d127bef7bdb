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
from controlled_rollout.errors import ConflictError, DeploymentError
from controlled_rollout.evaluation import look as looks
from controlled_rollout.evaluation.replay import replay
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate, Outcome
from controlled_rollout.target.kubernetes import reconciling
from controlled_rollout.target.kubernetes.names import version_object
from controlled_rollout.target.protocol import Change, ReplicaState
from controlled_rollout.target.waiting import wait_until_served
from tests.cluster.place import CHANGE, DEADLINE, SMALL, Place
from tests.cluster.scoring_images import build
from tests.local.local_target_lab import steady_load
from tests.polling import until

RATE = 110.0
# Enough for the gate, and the machine has other tests to run.
LITTLE = 40.0
WINDOW = EvidenceWindow(bin_width=timedelta(seconds=2), allowed_lag=timedelta(seconds=8))
# Small numbers, so that a test takes seconds: what they mean is docs/gate.md's business.
GATE = Gate(alpha=0.001, latency_quantiles=(0.5, 0.9), latency_tolerance=0.25, burst_cap=4.0)


async def ask(place: Place, *, key: str | None = None, version: str | None = None) -> tuple[int, str, str]:
    """Return status, the version that answered, and the body."""

    def call() -> tuple[int, str, str]:
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if version:
            headers["azureml-model-deployment"] = version
        request = urllib.request.Request(place.url, data=b"{}", headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers.get("azureml-model-deployment", ""), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers.get("azureml-model-deployment", ""), error.read().decode()

    return await asyncio.to_thread(call)


async def test_who_waits_for_an_older_revision_carries_on_with_the_newest_and_deletes_nothing_of_it(
    place: Place,
) -> None:
    """A version comes back, and whoever brings it back ends before the route knows of it."""
    await place.roll_out("one")
    await place.roll_out("two")
    await place.promote("two")
    retired = await place.retire("one")
    assert retired is not None
    waits = wait_until_served(place.target, place.endpoint, retired.revision + 1, timeout=DEADLINE, progress=print)
    bystander = asyncio.create_task(waits)
    await until(lambda: uid_of(place, "one") == "", "the retired version is gone", interval_s=0.5)

    again = retired.create_version("one", image=place.images["steady"], cpu_cores=0.05, memory_gb=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconciling, "reconcile", AsyncMock())
        await place.target.apply(again, Change(who="a test", why="bring it back"))
    made = uid_of(place, "one")
    served = await bystander

    assert set(served.versions) == {"one", "two"}
    assert uid_of(place, "one") == made, "it was not deleted in between"


def uid_of(place: Place, version: str) -> str:
    """Return the uid of a version's Deployment; empty for none."""
    name = version_object(place.endpoint, version)
    return place.kubectl("get", "deployment", name, "--ignore-not-found", "-o", "jsonpath={.metadata.uid}")


async def test_a_version_has_the_replicas_for_its_share_before_it_gets_it(place: Place) -> None:
    """40 requests/s of 60 ms keep 2.4 replicas busy: at a target of 70 %, half of them need 2."""
    await place.roll_out("one", "slow", num_replicas=4)
    async with steady_load(place.url, await place.key(), rate=40) as load:
        await load.more(300)
        await place.roll_out("two", "slow")
        assert (await place.target.status(place.endpoint)).versions["two"].wanted_replicas == 1
        await place.shift("two", 50)
        status = await place.target.status(place.endpoint)
        await load.more(200)

    assert status.versions["two"].wanted_replicas >= 2
    assert status.versions["two"].ready
    assert load.failed == {}, load.refusals


@pytest.mark.parametrize(
    ("image", "why", "rate"),
    # A replica dies at its 51st request: with less of them it comes back in time.
    [
        ("failing", "errors are higher", LITTLE),
        ("slow", "latency is higher", LITTLE),
        ("dies", "errors are higher|has no ready replica", RATE),
    ],
)
async def test_a_treatment_that_does_worse_is_found_and_rolled_back_and_control_is_unharmed(
    place: Place, image: str, why: str, rate: float
) -> None:
    await place.roll_out("one", num_replicas=2)
    async with steady_load(place.url, await place.key(), rate=rate) as load:
        await load.more(500)  # control's own latency has to be known before
        await place.roll_out("two", image, num_replicas=2)
        await place.shift("two", 50)

        async def verdict() -> looks.Look | None:
            look = await looks.look(
                place.workspace, place.target, place.endpoint, "two", gate=GATE, who="a test", window=WINDOW
            )
            place.said.append(f"{look.verdict.outcome}: {look.verdict.reason}")
            await asyncio.sleep(1)
            return look if look.verdict.outcome is Outcome.FAIL else None

        look = await until(verdict, f"a verdict; {place.said}", timeout_s=120)
        assert isinstance(look, looks.Look)
        assert re.search(why, look.verdict.reason)
        await place.roll_back("two", look.verdict.reason)
        failed_until_then = load.failed
        versions_until_then = load.versions["two"]
        await load.more(300)

    assert load.failed == failed_until_then
    # What was already on its way when the split changed may still be answered by it.
    assert load.versions["two"] - versions_until_then <= 2
    assert set(load.failed) <= {"500", "503"}


async def test_a_treatment_whose_only_replica_dies_again_and_again_is_found_although_no_answer_names_it(
    place: Place,
) -> None:
    """Envoy Gateway itself answers for a version without a replica, and its answers do not say whose share it was."""
    await place.roll_out("one")
    async with steady_load(place.url, await place.key(), rate=LITTLE) as load:
        await place.roll_out("two", "dies")
        await place.shift("two", 50)

        async def is_down() -> bool:
            found = (await place.target.status(place.endpoint)).versions["two"]
            return found.failed and not any(one.state is ReplicaState.READY for one in found.replicas)

        await until(is_down, "its replica waits for its fourth start", timeout_s=120, interval_s=0.5)
        look = await looks.look(
            place.workspace, place.target, place.endpoint, "two", gate=GATE, who="a test", window=WINDOW
        )
        assert look.verdict.outcome is Outcome.FAIL
        assert re.search(r"'two' has no ready replica .* exited with code 1; failed \d+ times", look.verdict.reason)
        await place.roll_back("two", look.verdict.reason)
        failed_until_then = load.failed
        await load.more(200)

    assert load.failed == failed_until_then
    [seen] = [one for one in replay(record.read(place.workspace, place.endpoint)) if one.verdict is not None]
    assert seen.difference == ""


async def test_a_treatment_that_no_node_has_room_for_fails_in_bounded_time_and_says_why(place: Place) -> None:
    await place.roll_out("one")

    with pytest.raises(DeploymentError, match=r"cannot be scheduled: .*Insufficient cpu"):
        await steps.roll_out(
            place.workspace,
            place.endpoint,
            "two",
            image=place.images["steady"],
            owner="run",
            change=CHANGE,
            settings={"cpu_cores": 500},
            timeout=timedelta(seconds=5),
            progress=place.said.append,
        )
    await place.roll_back("two", "no room")
    assert (await ask(place, key=await place.key()))[:2] == (200, "one")


async def test_a_treatment_that_does_not_pass_its_probe_in_time_says_so_and_what_kubernetes_saw(place: Place) -> None:
    late = await asyncio.to_thread(build, place.lab.registry, "steady", version="late", init_s=600)

    with pytest.raises(DeploymentError) as failure:
        await steps.roll_out(
            place.workspace,
            place.endpoint,
            "one",
            image=late,
            owner="run",
            change=CHANGE,
            settings=SMALL,
            timeout=timedelta(seconds=20),
            progress=place.said.append,
        )

    assert re.search(
        r"not ready after 20 s: pod \S+-one-\S+ runs and has not passed its startup probe yet; "
        r"Kubernetes: Startup probe failed: .+\nlast lines of its log:\n",
        str(failure.value),
    )


async def test_a_treatment_whose_image_is_not_there_fails_and_says_why(place: Place) -> None:
    await place.roll_out("one")
    missing = f"{place.lab.registry}/models/nothing@sha256:{'0' * 64}"

    with pytest.raises(DeploymentError, match=r"cannot pull its image"):
        await place.roll_out("two", missing)
    assert (await ask(place, key=await place.key()))[:2] == (200, "one")


async def test_two_runs_at_once_give_one_clear_conflict(place: Place) -> None:
    await place.roll_out("one")

    def run(version: str) -> "asyncio.Task[object]":
        return asyncio.create_task(
            steps.roll_out(
                place.workspace,
                place.endpoint,
                version,
                image=place.images["steady"],
                owner=f"run-of-{version}",
                change=CHANGE,
                settings={"cpu_cores": 0.02},
                progress=place.said.append,
            )
        )

    results = await asyncio.gather(run("two"), run("three"), return_exceptions=True)

    [conflict] = [result for result in results if isinstance(result, BaseException)]
    assert isinstance(conflict, ConflictError)
    assert "is held by run-of-" in str(conflict)
    assert len((await place.target.endpoint(place.endpoint)).versions) == 2


async def test_a_rule_of_somebody_else_survives_every_change_and_the_endpoints_end(place: Place) -> None:
    await place.roll_out("one")
    theirs = {
        "name": "theirs",
        "matches": [{"path": {"type": "PathPrefix", "value": "/theirs"}}],
        "filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 302, "hostname": "x.example"}}],
    }
    place.kubectl(
        "patch",
        "httproute",
        place.endpoint,
        "--type=json",
        "-p",
        json.dumps([{"op": "add", "path": "/spec/rules/0", "value": theirs}]),
    )

    await place.roll_out("two")
    await place.shift("two", 20)
    await place.promote("two")
    await place.retire("one")

    def rules() -> list[str]:
        return [
            rule["name"]
            for rule in json.loads(place.kubectl("get", "httproute", place.endpoint, "-o", "json"))["spec"]["rules"]
        ]

    assert rules()[0] == "theirs"
    await place.target.delete(place.endpoint, CHANGE)
    assert rules() == ["theirs"]
    left = place.kubectl(
        "get",
        "deployments,services,secrets,configmaps,controllerrevisions,securitypolicies,backendtrafficpolicies",
        "-o",
        "name",
    )
    assert place.endpoint not in left


async def test_a_route_that_somebody_edits_by_hand_is_reported_and_not_overwritten(place: Place) -> None:
    await place.roll_out("one")
    await place.roll_out("two")
    edit = [{"op": "replace", "path": "/spec/rules/0/timeouts/request", "value": "1s"}]
    place.kubectl(
        "patch", "httproute", place.endpoint, "--type=json", "--field-manager=somebody", "-p", json.dumps(edit)
    )
    before = place.kubectl("get", "httproute", place.endpoint, "-o", "jsonpath={.metadata.generation}")
    revision = (await place.target.endpoint(place.endpoint)).revision

    with pytest.raises(ConflictError, match=r"'somebody' at .* has changed the route last.*nothing was changed now"):
        await place.shift("two", 10)

    assert "somebody" in ((await place.target.status(place.endpoint)).trouble or "")
    assert place.kubectl("get", "httproute", place.endpoint, "-o", "jsonpath={.metadata.generation}") == before
    assert (await place.target.endpoint(place.endpoint)).revision == revision


async def test_an_endpoint_of_the_same_name_in_another_namespace_keeps_its_path(place: Place, other: Place) -> None:
    await place.roll_out("one")
    other.endpoint = place.endpoint

    with pytest.raises(ConflictError, match=rf"serves an endpoint '{place.endpoint}' of namespace '{place.namespace}'"):
        await other.roll_out("one")
