"""What breaks around a rollout: the API server, the gateway's controller, the worker, the permissions."""

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import AccessError, TargetUnavailableError, WorkspaceError
from tests.cluster.lab.components import BARE_APISERVER, BARE_PORT
from tests.cluster.place import CHANGE, Place
from tests.local.local_target_lab import steady_load

RATE = 50.0
OUTAGE_S = 30.0
OURS = "configmaps,secrets,controllerrevisions,httproutes,securitypolicies,services,deployments"


@pytest.mark.breaks_lab
async def test_the_api_server_is_away_for_half_a_minute_in_the_middle_of_a_shift(place: Place) -> None:
    await place.roll_out("one", num_replicas=2)
    await place.roll_out("two", num_replicas=2)
    async with steady_load(place.url, await place.key(), rate=RATE) as load:
        await load.more(100)
        shifting = asyncio.create_task(place.shift("two", 30))
        await asyncio.sleep(0)
        await asyncio.to_thread(place.lab.kill, "kube-apiserver")
        back_at = time.monotonic() + OUTAGE_S
        while time.monotonic() < back_at:
            await load.more(50)
        await asyncio.to_thread(place.lab.start, "kube-apiserver")
        stored = await shifting
        await load.more(500)

    assert load.failed == {}, load.refusals
    assert stored.effective_traffic() == {"one": 70.0, "two": 30.0}
    assert load.versions["two"] > 0
    assert (await place.target.status(place.endpoint)).served_revision == stored.revision


@pytest.mark.breaks_lab
async def test_the_gateways_controller_dies_in_the_middle_of_a_shift(place: Place) -> None:
    await place.roll_out("one", num_replicas=2)
    await place.roll_out("two", num_replicas=2)
    async with steady_load(place.url, await place.key(), rate=RATE) as load:
        await load.more(100)
        await asyncio.to_thread(place.lab.kill, "envoy-gateway")
        shifting = asyncio.create_task(place.shift("two", 30))
        await load.more(500)
        await asyncio.to_thread(place.lab.start, "envoy-gateway")
        stored = await shifting
        await load.more(500)

    assert load.failed == {}, load.refusals
    assert load.versions["two"] > 0
    assert (await place.target.status(place.endpoint)).served_revision == stored.revision


# Runs one step again and again, each time in a process of its own that is killed, by a signal that nothing can catch,
# right after the first change to the cluster that none before it had made: between two changes all moments are the
# same. Says how often that was.
WORKER = """
import asyncio, json, os, signal, sys
from datetime import timedelta
import aiohttp, kubernetes_asyncio.client, kubernetes_asyncio.config
from controlled_rollout import steps
from controlled_rollout.cluster.api import Api
from controlled_rollout.workspace import Workspace

file, step, endpoint = sys.argv[1], sys.argv[2], sys.argv[3]
settings, arguments = json.loads(sys.argv[4]), json.loads(sys.argv[5])

def run():
    request_once = Api._request_once

    async def killed_after_change(self, method, path, *how):
        status, content = await request_once(self, method, path, *how)
        if method != "GET" and status < 300:
            line = f"{method} {path} {json.loads(content)['metadata'].get('resourceVersion')}\\n"
            with open(file, "a+") as seen:
                seen.seek(0)
                if line not in seen.readlines():
                    seen.write(line)
                    seen.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
        return status, content

    Api._request_once = killed_after_change
    change = steps.Change(who="weekly/run-1/task")
    common = {"change": change, "timeout": timedelta(seconds=90), "progress": lambda line: None}
    asyncio.run(getattr(steps, step)(Workspace.from_settings(settings), endpoint, **arguments, **common))
    os._exit(0)

killed = 0
while True:
    child = os.fork()
    if not child:
        run()
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        break
    killed += 1
print(killed)
sys.exit(os.WEXITSTATUS(status))
"""


def work(place: Place, script: Path, step: str, arguments: dict[str, object]) -> int:
    """Run one step, killed after every change that it makes; return how often that was."""
    script.write_text(textwrap.dedent(WORKER))
    settings = place.workspace.model_dump(mode="json", exclude_none=True)
    what = [str(script.with_suffix(".seen")), step, place.endpoint, json.dumps(settings), json.dumps(arguments)]
    # Who is killed leaves its temporary files (certificates) behind.
    done = subprocess.run(
        [sys.executable, str(script), *what],
        env={**os.environ, "TMPDIR": str(script.parent)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.timeout(600)
def test_a_worker_killed_after_any_change_and_retried_comes_to_the_same_end(place: Place, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    run: dict[str, object] = {"owner": "weekly/run-1"}
    new: dict[str, object] = {"image": place.images["steady"], "settings": {"cpu_cores": 0.02, "memory_gb": 0.2}}

    killed = [
        work(place, script, "roll_out", {"version": "one", **new, **run}),
        work(place, script, "roll_out", {"version": "two", **new, **run}),
        work(place, script, "shift", {"version": "two", "percentile": 30, **run}),
        work(place, script, "promote", {"version": "two", **run}),
        work(place, script, "retire", {"version": "one"}),
    ]

    assert all(times >= least for times, least in zip(killed, (11, 5, 3, 3, 4), strict=True)), killed
    history = asyncio.run(place.target.history(place.endpoint))
    assert [revision.change.why for revision in history] == [
        "roll out one",
        "roll out two",
        "send 30 % to two",
        "promote two to control",
        "retire one",
    ]
    found = history[-1].endpoint
    assert (list(found.versions), found.rollout) == (["two"], None)
    status = asyncio.run(place.target.status(place.endpoint))
    assert status.served_revision == 5
    label = f"controlled-rollout/endpoint={place.endpoint}"
    names = place.kubectl("get", "deployments,services", "-l", label, "-o", "name")
    assert len(names.split()) == 2


def refused(place: Place, **settings: object) -> Place:
    workspace = place.workspace.model_copy(update=settings)
    return Place(place.lab, place.namespace, place.endpoint, workspace, place.images)


def first_version(place: Place) -> Endpoint:
    return Endpoint(name=place.endpoint).create_version("one", image=place.images["steady"], is_control=True)


async def test_a_namespace_without_permission_is_refused_and_says_what_is_missing(place: Place) -> None:
    elsewhere = refused(place, namespace="kube-public")

    with pytest.raises(AccessError, match=r"403 .*controllerrevisions.*docs/aks\.md"):
        await elsewhere.target.apply(first_version(place), CHANGE)


async def test_an_expired_token_is_refused_and_says_so(place: Place, tmp_path: Path) -> None:
    kubeconfig = json.loads(place.lab.kubectl("config", "view", "--raw", "-o", "json"))
    kubeconfig["users"][0]["user"] = {"token": "expired"}
    file = tmp_path / "kubeconfig"
    file.touch(mode=0o600)
    file.write_text(json.dumps(kubeconfig))

    with pytest.raises(AccessError, match=r"401 .*renew"):
        await refused(place, kubeconfig=file).target.endpoints()


async def test_a_cluster_without_the_gateways_kinds_is_refused_before_anything_is_made(
    place: Place, tmp_path: Path
) -> None:
    kubeconfig = json.loads(place.lab.kubectl("config", "view", "--raw", "-o", "json"))
    cluster = kubeconfig["clusters"][0]["cluster"]
    cluster["server"] = cluster["server"].replace(":6443", f":{BARE_PORT}")
    file = tmp_path / "kubeconfig"
    file.touch(mode=0o600)
    file.write_text(json.dumps(kubeconfig))
    bare = refused(place, kubeconfig=file, namespace="default")
    await asyncio.to_thread(place.lab.start, BARE_APISERVER)
    try:
        with pytest.raises(
            WorkspaceError, match=r"does not know httproutes\.gateway\.networking\.k8s\.io.*docs/aks\.md"
        ):
            await bare.target.apply(first_version(place), CHANGE)
        assert place.endpoint not in await bare.target.endpoints()
    finally:
        await asyncio.to_thread(place.lab.kill, BARE_APISERVER)


async def test_a_gateway_that_is_not_there_is_refused_before_anything_is_made(place: Place) -> None:
    namespace, _ = place.lab.gateway.split("/")

    with pytest.raises(WorkspaceError, match=r"has no Gateway 'nothing'"):
        await refused(place, gateway=f"{namespace}/nothing").target.apply(first_version(place), CHANGE)
    assert place.endpoint not in place.kubectl(
        "get", "configmaps,controllerrevisions,httproutes,deployments", "-o", "name"
    )


async def test_a_gateway_that_cannot_ask_for_keys_is_refused_and_nothing_is_served_open(place: Place) -> None:
    namespace, _ = place.lab.gateway.split("/")
    other = f"""
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: keyless-{place.namespace}}}
spec: {{controllerName: example.com/keyless}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: keyless-{place.namespace}, namespace: {namespace}}}
spec:
  gatewayClassName: keyless-{place.namespace}
  listeners: [{{name: http, port: 80, protocol: HTTP, allowedRoutes: {{namespaces: {{from: All}}}}}}]
"""
    place.lab.kubectl("apply", "-f", "-", input=other)
    try:
        with pytest.raises(WorkspaceError, match=r"served by example\.com/keyless.*only Envoy Gateway"):
            await refused(place, gateway=f"{namespace}/keyless-{place.namespace}").target.apply(
                first_version(place), CHANGE
            )
    finally:
        place.lab.kubectl("delete", "-f", "-", input=other)
    assert place.endpoint not in place.kubectl(
        "get", "configmaps,controllerrevisions,httproutes,deployments", "-o", "name"
    )


async def test_a_cluster_that_does_not_answer_says_so(place: Place, tmp_path: Path) -> None:
    kubeconfig = json.loads(place.lab.kubectl("config", "view", "--raw", "-o", "json"))
    kubeconfig["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    file = tmp_path / "kubeconfig"
    file.touch(mode=0o600)
    file.write_text(json.dumps(kubeconfig))

    with pytest.raises(TargetUnavailableError, match=r"https://127\.0\.0\.1:1 did not answer"):
        await refused(place, kubeconfig=file).target.endpoints()
