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

from controlled_rollout import steps
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import AccessError, TargetUnavailableError, WorkspaceError
from tests.cluster.lab.components import BARE_APISERVER, BARE_PORT
from tests.cluster.sandbox import CHANGE, Sandbox
from tests.local.local_target_lab import steady_load

RATE = 50.0
OUTAGE_S = 30.0


@pytest.mark.breaks_lab
async def test_shift_survives_an_outage_of_the_api_server(sandbox: Sandbox) -> None:
    await sandbox.deploy("one", num_replicas=2)
    await sandbox.deploy("two", num_replicas=2)
    async with steady_load(sandbox.url, await sandbox.key(), rate=RATE) as load:
        await load.more(100)
        shifting = asyncio.create_task(sandbox.shift("two", 30))
        await asyncio.sleep(0)
        await asyncio.to_thread(sandbox.lab.kill, "kube-apiserver")
        back_at = time.monotonic() + OUTAGE_S
        while time.monotonic() < back_at:
            await load.more(50)
        await asyncio.to_thread(sandbox.lab.start, "kube-apiserver")
        stored = await shifting
        await load.more(500)

    assert load.failed == {}, load.refusals
    assert stored.effective_traffic() == {"one": 70.0, "two": 30.0}
    assert load.versions["two"] > 0
    assert (await sandbox.target.status(sandbox.endpoint)).served_revision == stored.revision


@pytest.mark.breaks_lab
async def test_shift_survives_the_death_of_the_gateways_controller_also_with_a_policy_that_it_has_not_seen(
    sandbox: Sandbox,
) -> None:
    await sandbox.deploy("one", num_replicas=2)
    await sandbox.deploy("two", num_replicas=2)
    async with steady_load(sandbox.url, await sandbox.key(), rate=RATE) as load:
        await load.more(100)
        await asyncio.to_thread(sandbox.lab.kill, "envoy-gateway")
        # The step makes it again: a policy of which nobody can acknowledge anything until the controller is back.
        sandbox.kubectl("delete", "securitypolicy", "--all")
        shifting = asyncio.create_task(sandbox.shift("two", 30))
        await load.more(500)
        await asyncio.to_thread(sandbox.lab.start, "envoy-gateway")
        stored = await shifting
        await load.more(500)

    assert load.failed == {}, load.refusals
    assert load.versions["two"] > 0
    assert (await sandbox.target.status(sandbox.endpoint)).served_revision == stored.revision


# Runs one step again and again, each time in a process of its own that is killed, by a signal that nothing can catch,
# right after the first change to the cluster that none before it had made: between two changes all moments are the
# same. Says how often that was.
WORKER = """
import asyncio, json, os, re, signal, sys
from datetime import timedelta
import aiohttp, kubernetes_asyncio.client, kubernetes_asyncio.config
from controlled_rollout import steps
from controlled_rollout.cluster.api import Api
from controlled_rollout.workspace import Workspace

file, step, endpoint = sys.argv[1], sys.argv[2], sys.argv[3]
settings, arguments = json.loads(sys.argv[4]), json.loads(sys.argv[5])

def run():
    request_once = Api._request_once

    found = set()

    async def killed_after_change(self, method, path, *how):
        status, content = await request_once(self, method, path, *how)
        if method == "GET":
            found.update(re.findall(r'"resourceVersion": ?"(\\d+)"', content.decode(errors="replace")))
        elif status < 300 and json.loads(content)["metadata"].get("resourceVersion") not in found:
            # Each try notes anew that it is at work: one death after such a note is enough, or there is no end.
            is_note = "controlled-rollout/looked" in str(how) or "controlled-rollout/worked-at" in str(how)
            what = "note" if is_note else json.loads(content)["metadata"].get("resourceVersion")
            line = f"{method} {path} {what}\\n"
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


def work(sandbox: Sandbox, script: Path, step: str, arguments: dict[str, object]) -> int:
    """Run one step, killed after every change that it makes; return how often that was."""
    script.write_text(textwrap.dedent(WORKER))
    settings = sandbox.workspace.model_dump(mode="json", exclude_none=True)
    what = [str(script.with_suffix(".seen")), step, sandbox.endpoint, json.dumps(settings), json.dumps(arguments)]
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
def test_worker_killed_after_any_change_ends_the_same_when_retried(sandbox: Sandbox, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    run: dict[str, object] = {"owner": "weekly/run-1"}
    new: dict[str, object] = {"image": sandbox.images["steady"], "settings": {"cpu_cores": 0.02, "memory_gb": 0.2}}

    killed = [
        work(sandbox, script, "deploy", {"version": "one", **new, **run}),
        work(sandbox, script, "deploy", {"version": "two", **new, **run}),
        work(sandbox, script, "shift", {"version": "two", "percentile": 30, **run}),
        # By a person: a run would need the decision of a gate.
        work(sandbox, script, "promote", {"version": "two"}),
        work(sandbox, script, "retire", {"version": "one"}),
    ]

    # At least the changes that follow one after the other: what was asked for beside a change that killed may be done.
    assert all(times >= least for times, least in zip(killed, (7, 4, 3, 3, 3), strict=True)), killed
    history = asyncio.run(sandbox.target.history(sandbox.endpoint))
    assert [revision.change.reason for revision in history] == [
        "deploy one",
        "deploy two",
        "send 30 % to two",
        "promote two to control",
        "retire one",
    ]
    end = history[-1].endpoint
    assert (list(end.versions), end.rollout) == (["two"], None)
    status = asyncio.run(sandbox.target.status(sandbox.endpoint))
    assert status.served_revision == 5
    label = f"controlled-rollout/endpoint={sandbox.endpoint}"
    names = sandbox.kubectl("get", "deployments,services", "-l", label, "-o", "name")
    assert len(names.split()) == 2


async def test_a_roll_back_goes_on_until_a_permission_that_was_taken_away_is_back(sandbox: Sandbox) -> None:
    for version in ("one", "two"):
        await sandbox.deploy(version)
    await sandbox.shift("two", 30)
    binding = sandbox.lab.kubectl("--namespace", sandbox.namespace, "get", "rolebinding", "-o", "json")
    sandbox.lab.kubectl("--namespace", sandbox.namespace, "delete", "rolebinding", "--all")
    refusals = asyncio.Event()
    messages: list[str] = []

    def progress(message: str) -> None:
        messages.append(message)
        if len([line for line in messages if line.startswith("not rolled back yet")]) == 3:
            refusals.set()

    rolling_back = asyncio.create_task(
        steps.roll_back(sandbox.workspace, sandbox.endpoint, "two", change=CHANGE, progress=progress)
    )
    await asyncio.wait_for(refusals.wait(), 120)
    sandbox.lab.kubectl("apply", "-f", "-", input=binding)
    await asyncio.wait_for(rolling_back, 120)

    assert any("answered 403" in message for message in messages), messages
    assert (await sandbox.target.status(sandbox.endpoint)).weight_ppm == {"one": 1_000_000}


def sandbox_with(sandbox: Sandbox, **settings: object) -> Sandbox:
    workspace = sandbox.workspace.model_copy(update=settings)
    return Sandbox(sandbox.lab, sandbox.namespace, sandbox.endpoint, workspace, sandbox.images)


def first_version(sandbox: Sandbox) -> Endpoint:
    return Endpoint(name=sandbox.endpoint).create_version("one", image=sandbox.images["steady"], is_control=True)


async def test_a_namespace_without_permission_is_refused_and_says_what_is_missing(sandbox: Sandbox) -> None:
    elsewhere = sandbox_with(sandbox, namespace="kube-public")

    with pytest.raises(AccessError, match=r"403 .*controllerrevisions.*docs/aks\.md"):
        await elsewhere.target.apply(first_version(sandbox), CHANGE)


async def test_expired_token_is_an_error_that_says_so(sandbox: Sandbox, tmp_path: Path) -> None:
    kubeconfig = json.loads(sandbox.lab.kubectl("config", "view", "--raw", "-o", "json"))
    kubeconfig["users"][0]["user"] = {"token": "expired"}
    file = tmp_path / "kubeconfig"
    file.touch(mode=0o600)
    file.write_text(json.dumps(kubeconfig))

    with pytest.raises(AccessError, match=r"401 .*renew"):
        await sandbox_with(sandbox, kubeconfig=file).target.endpoints()


async def test_cluster_without_gateway_api_kinds_is_refused_before_anything_is_created(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    kubeconfig = json.loads(sandbox.lab.kubectl("config", "view", "--raw", "-o", "json"))
    cluster = kubeconfig["clusters"][0]["cluster"]
    cluster["server"] = cluster["server"].replace(":6443", f":{BARE_PORT}")
    file = tmp_path / "kubeconfig"
    file.touch(mode=0o600)
    file.write_text(json.dumps(kubeconfig))
    bare = sandbox_with(sandbox, kubeconfig=file, namespace="default")
    await asyncio.to_thread(sandbox.lab.start, BARE_APISERVER)
    try:
        with pytest.raises(
            WorkspaceError, match=r"does not know httproutes\.gateway\.networking\.k8s\.io.*docs/aks\.md"
        ):
            await bare.target.apply(first_version(sandbox), CHANGE)
        assert sandbox.endpoint not in await bare.target.endpoints()
    finally:
        await asyncio.to_thread(sandbox.lab.kill, BARE_APISERVER)


async def test_missing_gateway_is_refused_before_anything_is_created(sandbox: Sandbox) -> None:
    namespace, _ = sandbox.lab.gateway.split("/")

    with pytest.raises(WorkspaceError, match=r"has no Gateway 'nothing'"):
        await sandbox_with(sandbox, gateway=f"{namespace}/nothing").target.apply(first_version(sandbox), CHANGE)
    assert sandbox.endpoint not in sandbox.kubectl(
        "get", "configmaps,controllerrevisions,httproutes,deployments", "-o", "name"
    )


async def test_gateway_that_cannot_check_keys_is_refused_and_nothing_is_served_open(sandbox: Sandbox) -> None:
    namespace, _ = sandbox.lab.gateway.split("/")
    other = f"""
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: keyless-{sandbox.namespace}}}
spec: {{controllerName: example.com/keyless}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: keyless-{sandbox.namespace}, namespace: {namespace}}}
spec:
  gatewayClassName: keyless-{sandbox.namespace}
  listeners: [{{name: http, port: 80, protocol: HTTP, allowedRoutes: {{namespaces: {{from: All}}}}}}]
"""
    sandbox.lab.kubectl("apply", "-f", "-", input=other)
    try:
        with pytest.raises(WorkspaceError, match=r"served by example\.com/keyless.*only Envoy Gateway"):
            await sandbox_with(sandbox, gateway=f"{namespace}/keyless-{sandbox.namespace}").target.apply(
                first_version(sandbox), CHANGE
            )
    finally:
        sandbox.lab.kubectl("delete", "-f", "-", input=other)
    assert sandbox.endpoint not in sandbox.kubectl(
        "get", "configmaps,controllerrevisions,httproutes,deployments", "-o", "name"
    )


async def test_unreachable_cluster_is_an_error(sandbox: Sandbox, tmp_path: Path) -> None:
    kubeconfig = json.loads(sandbox.lab.kubectl("config", "view", "--raw", "-o", "json"))
    kubeconfig["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    file = tmp_path / "kubeconfig"
    file.touch(mode=0o600)
    file.write_text(json.dumps(kubeconfig))

    with pytest.raises(TargetUnavailableError, match=r"https://127\.0\.0\.1:1 did not answer"):
        await sandbox_with(sandbox, kubeconfig=file).target.endpoints()
