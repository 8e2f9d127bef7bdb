"""From an Airflow connection into a real cluster, with exactly the shipped Role, and the check before a rollout."""

import asyncio
import base64
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

import tests.airflow_home  # noqa: F401 - before anything of Airflow
from controlled_rollout import CheckConnectivityOperator, steps
from controlled_rollout.checks.connectivity import CheckScope, check_connectivity
from controlled_rollout.checks.result import CheckResult
from controlled_rollout.errors import TargetUnavailableError, WorkspaceError
from controlled_rollout.evaluation.next_action import GateTerms, take_look
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.target.connect import connect
from controlled_rollout.triggers.treatment_gate import TreatmentGateTrigger
from controlled_rollout.workspace import Workspace
from tests.cluster.lab import Lab
from tests.cluster.lab.images import base_image
from tests.cluster.sandbox import ACCOUNT, CHANGE, MAX_WAIT, OWNER, Sandbox, create_sandbox, delete_roles
from tests.local.task_lab import TaskInstance, context
from tests.polling import wait_until

Connect = Callable[..., WorkspaceHook]


@pytest.fixture
def signed_in(lab: Lab, namespace: str, tmp_path: Path) -> Iterator[Sandbox]:
    """A namespace with the shipped Role; nothing is deployed there."""
    yield create_sandbox(lab, namespace, {}, tmp_path)
    delete_roles(lab, namespace)


@pytest.fixture
def connect_to(signed_in: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Make the workspace's connection, and the Kubernetes connection with the given extras; return the hook."""

    def connect_to(extras: dict[str, Any], **settings: Any) -> WorkspaceHook:
        known = signed_in.workspace.model_dump(mode="json", exclude_none=True, exclude={"name", "kubeconfig"})
        known["registry"] = f"{signed_in.lab.registry}/models"
        for conn_id, conn_type, extra in (
            ("ML", "controlled_rollout", known | settings),
            ("KUBERNETES_DEFAULT", "kubernetes", extras),
        ):
            monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id}", json.dumps({"conn_type": conn_type, "extra": extra}))
        return WorkspaceHook("ml")

    return connect_to


def by_path(sandbox: Sandbox, folder: Path) -> dict[str, Any]:
    return {"kube_config_path": str(sandbox.workspace.kubeconfig), "in_cluster": False, "kube_config": ""}


def by_content(sandbox: Sandbox, folder: Path) -> dict[str, Any]:
    return {"kube_config": Path(str(sandbox.workspace.kubeconfig)).read_text()}


SIGN_INS = "sign-ins"


def by_program(sandbox: Sandbox, folder: Path) -> dict[str, Any]:
    """As with AKS and Entra ID: a program gives the token."""
    content = yaml.safe_load(by_content(sandbox, folder)["kube_config"])
    token = content["users"][0]["user"]["token"]
    status = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": token}}
    (folder / "credential.json").write_text(json.dumps(status))
    script = f"echo >> {folder / SIGN_INS}; cat {folder / 'credential.json'}"
    program = {"command": "sh", "args": ["-c", script], "interactiveMode": "Never"}
    content["users"][0]["user"] = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", **program}}
    return {"kube_config": content}


def without_checking_certificates(sandbox: Sandbox, folder: Path) -> dict[str, Any]:
    content = yaml.safe_load(by_content(sandbox, folder)["kube_config"])
    content["clusters"][0]["cluster"].pop("certificate-authority-data", None)
    return {"kube_config": json.dumps(content), "disable_verify_ssl": True}


async def endpoints(workspace: Workspace) -> list[str]:
    async with connect(workspace) as target:
        return await target.endpoints()


def gate_terms(endpoint: str, version: str) -> GateTerms:
    return GateTerms(
        endpoint=endpoint,
        version=version,
        who="a test",
        owner=None,
        gate=Gate(),
        bake=timedelta(0),
        min_requests=0,
        require_pass=True,
        decision_timeout=timedelta(0),
        on_deadline="hold",
        interval=timedelta(0),
        window=EvidenceWindow(
            bin_width=timedelta(seconds=1), allowed_lag=timedelta(0), baseline_length=timedelta(minutes=1)
        ),
        waiting_since=datetime.now(UTC),
    )


@pytest.mark.parametrize("way", [by_path, by_content, by_program, without_checking_certificates])
def test_every_form_of_a_kubernetes_connection_opens_the_cluster(
    way: Callable[[Sandbox, Path], dict[str, Any]], connect_to: Connect, signed_in: Sandbox, tmp_path: Path
) -> None:
    hook = connect_to(way(signed_in, tmp_path))

    async def in_the_triggerer() -> list[str]:
        return await endpoints(await hook.aget_workspace())

    workspace = hook.get_workspace()
    assert workspace.namespace == signed_in.namespace
    # A worker's tasks have an event loop each.
    assert [asyncio.run(endpoints(workspace)) for _ in range(2)] == [[], []]
    assert asyncio.run(in_the_triggerer()) == []


@pytest.mark.timeout(600)
async def test_every_step_and_every_look_signs_in_once(
    lab: Lab, images: dict[str, str], namespace: str, tmp_path: Path
) -> None:
    sandbox = create_sandbox(lab, namespace, images, tmp_path)
    kubeconfig = tmp_path / "kubeconfig-with-program"
    kubeconfig.write_text(json.dumps(by_program(sandbox, tmp_path)["kube_config"]))
    sandbox = replace(sandbox, workspace=sandbox.workspace.model_copy(update={"kubeconfig": kubeconfig}))
    run: dict[str, Any] = {
        "change": CHANGE,
        "owner": OWNER,
        "timeout": MAX_WAIT,
        "progress": sandbox.progress_lines.append,
    }
    workspace, endpoint = sandbox.workspace, sandbox.endpoint
    sign_ins: dict[str, int] = {}

    async def count(name: str, step: Awaitable[object]) -> None:
        (tmp_path / SIGN_INS).write_text("")
        await step
        sign_ins[name] = len((tmp_path / SIGN_INS).read_text().splitlines())

    await count("deploy the first", sandbox.deploy("one"))
    await count("deploy", sandbox.deploy("two"))
    await count("shift", steps.shift(workspace, endpoint, "two", percentile=10, **run))
    await count("look", take_look(workspace, gate_terms(endpoint, "two"), sandbox.progress_lines.append))
    await count("roll_back", steps.roll_back(workspace, endpoint, "two", **run))
    await count("promote", steps.promote(workspace, endpoint, "two", **{**run, "owner": None}))
    await count("retire", steps.retire_former_control(workspace, endpoint, "two", change=CHANGE, timeout=MAX_WAIT))
    delete_roles(lab, namespace)

    assert sign_ins == dict.fromkeys(sign_ins, 1)


def test_untrusted_certificate_is_refused(connect_to: Connect, signed_in: Sandbox, tmp_path: Path) -> None:
    extras = without_checking_certificates(signed_in, tmp_path) | {"disable_verify_ssl": False}

    with pytest.raises(TargetUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        asyncio.run(endpoints(connect_to(extras).get_workspace()))


def test_trigger_of_the_gate_reads_the_cluster(connect_to: Connect, signed_in: Sandbox, tmp_path: Path) -> None:
    connect_to(by_content(signed_in, tmp_path))
    terms = gate_terms("nobody", "one")

    async def fire() -> dict[str, Any]:
        trigger = TreatmentGateTrigger("ml", terms.model_dump(mode="json"))
        async for event in trigger.run():
            return dict(event.payload)
        raise AssertionError("the trigger did not fire")

    payload = asyncio.run(fire())

    assert "nobody" in json.dumps(payload)


@pytest.mark.timeout(180)
def test_a_worker_in_the_cluster_needs_no_kubernetes_connection(lab: Lab, signed_in: Sandbox) -> None:
    """The worker's pod takes Python and the package from this machine: only the node can lend them."""
    if not lab.is_ours:
        pytest.skip("the cluster's nodes are not this machine: its pods cannot use this machine's Python")
    settings = signed_in.workspace.model_dump(mode="json", exclude_none=True, exclude={"name", "kubeconfig", "root"})
    connection = json.dumps({"conn_type": "controlled_rollout", "extra": settings | {"root": "/tmp/workspace"}})  # noqa: S108
    program = (
        "import asyncio\n"
        "from controlled_rollout.target.connect import connect\n"
        "from controlled_rollout.hooks.workspace import WorkspaceHook\n"
        "async def endpoints():\n"
        "    async with connect(WorkspaceHook('ml').get_workspace()) as target:\n"
        "        return await target.endpoints()\n"
        "print('endpoints:', asyncio.run(endpoints()))\n"
    )
    borrowed = {sys.prefix, sys.base_prefix, str(Path(__file__).parents[2])}
    mounts = [{"name": f"m{number}", "mountPath": path, "readOnly": True} for number, path in enumerate(borrowed)]
    volumes = [{"name": mount["name"], "hostPath": {"path": mount["mountPath"]}} for mount in mounts]
    environment = {
        "AIRFLOW_CONN_ML": connection,
        "AIRFLOW_HOME": "/tmp/airflow",  # noqa: S108
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "error::ResourceWarning",
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "worker"},
        "spec": {
            "serviceAccountName": ACCOUNT,
            "restartPolicy": "Never",
            "volumes": volumes,
            "containers": [
                {
                    "name": "worker",
                    "image": base_image(lab.registry),
                    "command": [sys.executable, "-c", program],
                    "env": [{"name": name, "value": value} for name, value in environment.items()],
                    "volumeMounts": mounts,
                }
            ],
        },
    }
    signed_in.kubectl("apply", "-f", "-", input=json.dumps(pod))

    def phase() -> str | None:
        pod_phase = signed_in.kubectl("get", "pod", "worker", "-o", "jsonpath={.status.phase}").strip()
        return pod_phase if pod_phase in ("Succeeded", "Failed") else None

    ended = wait_until(phase, "the worker's pod ends", timeout_s=150, interval_s=0.25)

    assert (ended, signed_in.kubectl("logs", "worker").splitlines()[-1:]) == ("Succeeded", ["endpoints: []"])


def test_everything_that_a_rollout_needs_works_with_exactly_the_shipped_role(
    connect_to: Connect, signed_in: Sandbox, tmp_path: Path
) -> None:
    workspace = connect_to(by_path(signed_in, tmp_path)).get_workspace()

    results = {result.name: result for result in asyncio.run(check_connectivity(workspace, {}))}

    assert {name: result.message for name, result in results.items() if not result.works} == {}
    assert list(results) == [
        "API server", "permissions", "namespace", "Gateway API", "gateway", "endpoints' address", "clock",
        "metric store", "registry", "cache folder", "storage",
    ]  # fmt: skip
    assert "Kubernetes v1." in results["API server"].message
    assert "warning" not in results["gateway"].message  # it has the policies of docs/aks/gateway.yaml
    never = {needed: pod_check(workspace, CheckScope("never-was", needs_pod=needed)) for needed in (True, False)}
    assert [result.outcome for result in never.values()] == ["FAILS", "works"]
    assert never[False].message == "not checked: endpoint never-was does not exist yet"
    CheckConnectivityOperator(task_id="check", conn_id="ml").execute(context(TaskInstance("run-1", "check")))
    assert WorkspaceHook("ml").test_connection()[0] is True


def pod_check(workspace: Workspace, scope: CheckScope) -> CheckResult:
    [result] = [each for each in asyncio.run(check_connectivity(workspace, {}, scope)) if each.name == "pod"]
    return result


def failures(workspace: Workspace) -> dict[str, str]:
    return {
        result.name: result.message for result in asyncio.run(check_connectivity(workspace, {})) if not result.works
    }


def test_missing_permission_is_named_before_anything_is_changed(
    connect_to: Connect, signed_in: Sandbox, tmp_path: Path
) -> None:
    way_in = by_path(signed_in, tmp_path)
    gateway_namespace = signed_in.lab.gateway.split("/")[0]

    elsewhere = failures(connect_to(way_in, namespace="default").get_workspace())
    assert set(elsewhere) == {"permissions", "namespace"}
    assert "not allowed in namespace default: create, get" in elsewhere["permissions"]
    assert f"nor in namespace {gateway_namespace}" not in elsewhere["permissions"]

    other = failures(connect_to(way_in, gateway=f"{gateway_namespace}/nobody").get_workspace())
    assert "there is no Gateway 'nobody'" in other["gateway"]
    other = failures(connect_to(way_in, gateway=f"{signed_in.lab.gateway}/nobody").get_workspace())
    assert "has no listener 'nobody'" in other["gateway"]

    signed_in.kubectl("delete", "rolebinding", "--all")
    lost = failures(connect_to(way_in).get_workspace())
    assert set(lost) == {"permissions", "namespace"}
    assert f"not allowed in namespace {signed_in.namespace}: create, get" in lost["permissions"]


def test_missing_namespace_and_missing_role_have_different_messages(lab: Lab, signed_in: Sandbox) -> None:
    settings = signed_in.workspace.model_dump(mode="json", exclude_none=True)
    anywhere = Workspace.from_settings(settings | {"namespace": "nowhere", "kubeconfig": str(lab.kubeconfig)})

    messages = failures(anywhere)

    assert set(messages) == {"namespace"}
    assert "the cluster has no namespace 'nowhere': create it" in messages["namespace"]


@pytest.mark.parametrize("token", ["not-a-token", "expired"])
def test_expired_token_and_unreachable_server_have_different_messages(
    token: str, connect_to: Connect, signed_in: Sandbox, tmp_path: Path
) -> None:
    content = yaml.safe_load(by_content(signed_in, tmp_path)["kube_config"])
    if token == "expired":
        head, _, signature = content["users"][0]["user"]["token"].split(".")
        claims = base64.urlsafe_b64encode(b'{"exp": 1, "sub": "nobody"}').rstrip(b"=").decode()
        token = f"{head}.{claims}.{signature}"
    content["users"][0]["user"]["token"] = token

    messages = failures(connect_to({"kube_config": content}).get_workspace())

    assert "the token or certificate is not valid" in messages["API server"]
    assert messages["gateway"] == "not checked: the API server does not work"
    assert token not in json.dumps(messages)


def test_failed_connection_names_its_failing_part(connect_to: Connect, signed_in: Sandbox, tmp_path: Path) -> None:
    content = yaml.safe_load(by_content(signed_in, tmp_path)["kube_config"])
    content["clusters"][0]["cluster"]["server"] = "https://no-such-cluster.invalid:6443"
    messages = failures(connect_to({"kube_config": content}).get_workspace())
    assert messages["API server"].startswith("DNS: the name no-such-cluster.invalid is not known here")

    messages = failures(connect_to({"kube_config_path": str(tmp_path / "none")}).get_workspace())
    assert f"kube_config_path {tmp_path}/none, which does not exist here" in messages["API server"]
    with pytest.raises(WorkspaceError, match="which does not exist here"):
        asyncio.run(endpoints(WorkspaceHook("ml").get_workspace()))
