"""What versions collect on the real cluster: a whole rollout, with all that may happen to its pods and the storage."""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.errors import EndpointError
from controlled_rollout.target.kubernetes.collector_sidecar import CREDENTIAL, SALT
from tests.azurite import KEY
from tests.cluster.lab import Lab
from tests.cluster.lab.turns import turn
from tests.cluster.pod_storage import PodStorage, serving_pods
from tests.cluster.sandbox import Sandbox, fresh_sandbox
from tests.collected_rows import CollectedRows
from tests.numbered_callers import Answered, Calls, numbered_calls, request_body
from tests.polling import until

pytestmark = pytest.mark.xdist_group("collection")

RATE = 25.0
COLLECTS: dict[str, Any] = {"num_replicas": 2, "collect_model_data": True}
# What a lost node can lose is of the last 5 s, and of the time that shipping takes, which is long on a busy machine.
LOSS_S = 15.0


def pods(sandbox: Sandbox, version: str) -> list[dict[str, Any]]:
    """Return the pods of a version that are not being deleted, the oldest first."""
    found = json.loads(sandbox.kubectl("get", "pods", "-l", f"controlled-rollout/version={version}", "-o", "json"))
    there = [pod for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]]
    return sorted(there, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def evict(sandbox: Sandbox, pod: str) -> None:
    """Evict a pod, as the drain of a node does."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": sandbox.namespace},
    }
    path = f"/api/v1/namespaces/{sandbox.namespace}/pods/{pod}/eviction"
    sandbox.lab.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction))


def processes(pod: dict[str, Any]) -> list[int]:
    """Return the ids, on the node, of the processes of a pod's collector; the first process of its container first."""
    uid = pod["metadata"]["uid"].replace("-", "")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_collector = b"controlled_rollout_collector" in (folder / "cmdline").read_bytes()
            if is_collector and uid in (folder / "cgroup").read_text().replace("-", "").replace("_", ""):
                [ids] = [line for line in (folder / "status").read_text().splitlines() if line.startswith("NSpid:")]
                found.append((int(ids.split()[-1]), int(folder.name)))
        except OSError:
            continue
    return [outside for _, outside in sorted(found)]


@pytest.fixture(scope="module")
def storage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodStorage]:
    with serving_pods(lab, tmp_path_factory.mktemp("pod-storage")) as storage:
        yield storage


@pytest.fixture
def collecting(storage: PodStorage, sandbox: Sandbox) -> Sandbox:
    """A sandbox whose versions may collect."""
    return storage.used_by(sandbox)


async def replaced(sandbox: Sandbox, version: str, old: str) -> None:
    """Wait until a version's pods are ready without an old one."""

    async def is_replaced() -> bool:
        names = [pod["metadata"]["name"] for pod in await asyncio.to_thread(pods, sandbox, version)]
        status = (await sandbox.target.status(sandbox.endpoint)).versions[version]
        return old not in names and len(names) == 2 and status.ready

    await until(is_replaced, f"{old} is replaced", timeout_s=90, interval_s=0.5)


async def stored(rows: CollectedRows, calls: Calls, *, lost: Callable[[str, Answered], bool]) -> None:
    """Wait until all answered requests are in the storage, but for those that may be lost; none is there twice."""

    def missing() -> dict[str, set[str]]:
        """Return what is not there, by version and collection."""
        answers = {version: calls.of(version) for version in ("one", "two")}
        return {
            f"{version} {collection}": {
                number
                for number in answers[version] - set(rows.requests(version, collection))
                if not lost(version, calls.answered[number])
            }
            for version in answers
            for collection in ("inputs", "predictions")
        }

    left: dict[str, set[str]] = {}

    async def is_all() -> bool:
        left.update(await asyncio.to_thread(missing))
        return not any(left.values())

    try:
        await until(is_all, "all is in the storage", timeout_s=60, interval_s=1)
    except AssertionError as error:
        raise AssertionError(f"missing: { {name: sorted(numbers)[:5] for name, numbers in left.items()} }") from error


@pytest.mark.timeout(420, func_only=True)
async def test_of_a_whole_rollout_every_answered_request_is_in_the_storage_once_whatever_happens_meanwhile(
    storage: PodStorage, collecting: Sandbox
) -> None:
    sandbox = collecting
    rows = CollectedRows(sandbox.workspace, sandbox.endpoint)
    await sandbox.deploy("one", **COLLECTS)
    async with numbered_calls(sandbox.url, await sandbox.key(), rate=RATE) as calls:
        await calls.more(50)
        await sandbox.deploy("two", "steady2", **COLLECTS)
        await sandbox.shift("two", 30)

        # Pods leave their node, as when it is drained.
        leaving = {version: pods(sandbox, version)[0]["metadata"]["name"] for version in ("one", "two")}
        for pod in leaving.values():
            evict(sandbox, pod)
        await asyncio.gather(*(replaced(sandbox, version, pod) for version, pod in leaving.items()))

        await kill_collector(pods(sandbox, "one")[0], calls)

        # The storage goes away, and the version that lost is retired meanwhile.
        await sandbox.promote("two")
        storage.azurite.stop()
        await calls.more(100)
        waiting = [pod["metadata"]["name"] for pod in pods(sandbox, "one")]
        retiring = asyncio.create_task(sandbox.retire("one"))
        await until(lambda: are_ending(sandbox, waiting), "its models have ended", timeout_s=60, interval_s=0.5)
        storage.azurite.start()
        back_at = time.time()
        await retiring

        # A pod is deleted as when its node is lost: what it had not shipped is gone. Collectors that could not write
        # try again after longer and longer pauses.
        forced = pods(sandbox, "two")[0]["metadata"]["name"]
        await until(
            lambda: shipped_until(rows, "two", forced) > back_at, "its collector ships", timeout_s=90, interval_s=1
        )
        forced_at = time.time()
        sandbox.kubectl("delete", "pod", forced, "--force", "--grace-period=0", "--wait=false")
        await replaced(sandbox, "two", forced)
        replaced_at = time.time()
        await calls.more(50)

    lost_from = shipped_until(rows, "two", forced)
    assert forced_at - lost_from < LOSS_S

    def may_be_lost(version: str, one: Answered) -> bool:
        """Whether the pod that was deleted by force may have answered it and not shipped it."""
        return version == "two" and lost_from <= one.at <= replaced_at

    await stored(rows, calls, lost=may_be_lost)
    # What that pod was in the middle of, if anything.
    killed = [one for one in calls.failed if forced_at <= one.at <= replaced_at]
    assert calls.failed == killed, Counter(one.status for one in calls.failed)
    # Who got no connection, as when the gateway starves on a busy machine, has sent no request.
    broken = [why for why in calls.broken.values() if not why.startswith("ConnectError")]
    assert len(killed) + len(broken) <= 3, (killed, broken)
    check_rows(rows, calls)


async def kill_collector(pod: dict[str, Any], calls: Calls) -> None:
    """Kill the process of a pod's collector that ships, and then all of its container; wait until both are back."""
    first, *others = processes(pod)
    assert len(others) == 1
    os.kill(others[0], signal.SIGKILL)
    await until(lambda: processes(pod)[1:] not in ([], others), "the first process starts it again", timeout_s=60)
    assert processes(pod)[0] == first
    await calls.more(50)
    os.kill(first, signal.SIGKILL)
    await until(lambda: len(set(processes(pod)) - {first}) == 2, "its container runs again", timeout_s=60)


def check_rows(rows: CollectedRows, calls: Calls) -> None:
    """Check that no request is there twice, that none is there that nobody sent, and what one of them has in it."""
    for version in ("one", "two"):
        for collection in ("inputs", "predictions"):
            requests = rows.requests(version, collection)
            assert set(requests) <= calls.of(version) | set(calls.broken)
            assert set(requests.values()) == {1}
            assert len({row["$request_id"] for row in rows.rows(version, collection)}) == len(requests)
    inputs = {row["$correlation_id"]: row for row in rows.rows("two", "inputs")}
    number = next(iter(calls.of("two") & set(inputs)))
    asked = request_body(int(number.partition("-")[2]))
    assert {name: inputs[number][name] for name in asked} == asked
    states = [json.loads(state) for state in rows.states("one")]
    # Two pods, and the successor of the one that was evicted.
    assert len(states) == 3
    assert all(state["final"] and state["pending_bytes"] == 0 for state in states), states
    assert sum(state["dropped"] + state["unreadable"] for state in states) == 0


def shipped_until(rows: CollectedRows, version: str, replica: str) -> float:
    """Return up to when everything that a replica has captured is in the storage, as its collector said last."""
    states = map(json.loads, rows.states(version))
    return max(float(state["shipped_until"]) for state in states if state["replica"] == replica)


def are_ending(sandbox: Sandbox, names: list[str]) -> bool:
    """Return whether the collectors of some pods have been told to end, which is once their models have."""
    return all("has to end" in sandbox.kubectl("logs", name, "-c", "collector") for name in names)


@pytest.fixture(scope="module")
def with_one(
    lab: Lab, images: dict[str, str], storage: PodStorage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sandbox]:
    """A sandbox that tests share: its only version `one` collects, with columns that are hashed."""
    with ExitStack() as stack:
        with turn(alone=False):
            sandbox = storage.used_by(
                stack.enter_context(fresh_sandbox(lab, images, tmp_path_factory.mktemp("with-one")))
            )
            asyncio.run(sandbox.target.store_secret("salts", {"users": "sodium"}))
            collection = {"hash": ["customer"], "salt": {"secret": "salts", "key": "users"}}
            asyncio.run(sandbox.deploy("one", collect_model_data=True, collection=collection))
        yield sandbox
        with turn(alone=False):
            stack.close()


async def test_the_model_and_the_descriptions_of_its_pod_have_nothing_of_the_storages_credential(
    with_one: Sandbox,
) -> None:
    sandbox = with_one
    [pod] = pods(sandbox, "one")
    name = pod["metadata"]["name"]

    described = sandbox.kubectl("get", "deployments,replicasets,pods", "-o", "json")
    inside = ("exec", name, "-c", "model", "--", "sh", "-c")
    environment = sandbox.kubectl(*inside, "cat /proc/*/environ; env")
    found = sandbox.kubectl(*inside, f"ls -R /var/run /run {CREDENTIAL} 2>&1; cat {CREDENTIAL}/* {SALT}/* 2>&1; true")
    processes_seen = sandbox.kubectl(*inside, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    read = sandbox.kubectl("exec", name, "-c", "collector", "--", "sh", "-c", f"cat {CREDENTIAL}/* {SALT}/*")

    for text in (described, environment, found, sandbox.kubectl("logs", name, "--all-containers")):
        assert KEY not in text and "AccountKey" not in text and "sodium" not in text
    assert "controlled_rollout_scoring" in processes_seen and "controlled_rollout_collector" not in processes_seen
    assert "No such file" in found
    # That the collector has both shows that the files are looked for in the right place.
    assert KEY in read and "sodium" in read


async def test_whoever_goes_back_from_a_workspace_without_a_collector_leaves_the_pods_as_they_are(
    with_one: Sandbox,
) -> None:
    sandbox = with_one
    [before] = pods(sandbox, "one")
    unset = {"collector_image": None, "collector_secret": None, "storage": None}
    elsewhere = replace(sandbox, workspace=sandbox.workspace.model_copy(update=unset))

    await elsewhere.deploy("two")
    await elsewhere.roll_back("two", "to see")

    status = await elsewhere.target.status(sandbox.endpoint)
    assert (status.weight_ppm["one"], status.warnings) == (1_000_000, ())
    [after] = pods(sandbox, "one")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert [container["name"] for container in after["spec"]["initContainers"]] == ["collector"]


async def test_a_version_whose_collector_would_have_no_credential_is_refused_before_anything_is_made(
    with_one: Sandbox,
) -> None:
    sandbox = with_one
    absent = replace(sandbox, workspace=sandbox.workspace.model_copy(update={"collector_secret": "absent"}))

    with pytest.raises(EndpointError, match=r"names 'absent' as its collector_secret.*there is no such Secret"):
        await absent.deploy("three", collect_model_data=True)

    assert "three" not in (await sandbox.target.endpoint(sandbox.endpoint)).versions
