"""From a Kubernetes connection to an open client of the cluster. A real one: tests/cluster."""

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.hooks import cluster
from controlled_rollout.hooks.cluster import cluster_settings
from controlled_rollout.workspace import Workspace
from tests.unit.hooks.connections import Connect, on_kubernetes

SECRET = "a-token-that-nobody-may-see"
KUBE_CONFIG: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "there",
    "clusters": [
        {"name": "far", "cluster": {"server": "https://far.example:6443"}},
        {"name": "near", "cluster": {"server": "https://near.example:6443"}},
    ],
    "users": [{"name": "me", "user": {"token": SECRET}}],
    "contexts": [
        {"name": "there", "context": {"cluster": "far", "user": "me"}},
        {"name": "here", "context": {"cluster": "near", "user": "me"}},
    ],
}


async def opened(workspace: Workspace) -> tuple[str, str, bool]:
    """Open the workspace's cluster; return its address, the token, and whether certificates are checked."""
    assert workspace.open_cluster
    async with workspace.open_cluster() as client:
        configuration = client.configuration
        return configuration.host, configuration.api_key.get("BearerToken"), configuration.verify_ssl


@pytest.mark.parametrize("form", [KUBE_CONFIG, json.dumps(KUBE_CONFIG), yaml.safe_dump(KUBE_CONFIG)])
def test_a_kube_config_in_the_connection_opens_its_cluster_from_a_worker(
    connect: Connect, form: str | dict[str, Any]
) -> None:
    hook = connect(ml=on_kubernetes(namespace="models"), kubernetes_default=("kubernetes", {"kube_config": form}))

    workspace = hook.get_workspace()

    assert (workspace.name, workspace.namespace, workspace.gateway) == ("ml", "models", "infra/shared")
    assert asyncio.run(opened(workspace)) == ("https://far.example:6443", f"Bearer {SECRET}", True)
    # Every step of a task has an event loop of its own.
    assert asyncio.run(opened(workspace))[0] == "https://far.example:6443"


def test_a_path_a_context_and_unchecked_certificates_are_taken_from_the_named_connection(
    connect: Connect, tmp_path: Path
) -> None:
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(KUBE_CONFIG))
    extra: dict[str, Any] = {"kube_config_path": str(path), "cluster_context": "here", "disable_verify_ssl": "true"}
    extra |= {"kube_config": "", "in_cluster": False, "namespace": None}
    hook = connect(ml=on_kubernetes(kubernetes_conn_id="aks"), aks=("kubernetes", extra))

    assert asyncio.run(opened(hook.get_workspace())) == ("https://near.example:6443", f"Bearer {SECRET}", False)


def test_a_program_for_signing_in_is_asked_at_every_opening(connect: Connect, tmp_path: Path) -> None:
    program = tmp_path / "sign-in"
    program.write_text(
        f"#!{sys.executable}\nimport json, pathlib\n"
        f"count = pathlib.Path({str(tmp_path / 'count')!r})\n"
        "count.write_text(str(int(count.read_text() or 0) + 1 if count.exists() else 1))\n"
        "status = {'token': f'token-{count.read_text()}'}\n"
        "print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1', 'kind': 'ExecCredential', "
        "'status': status}))\n"
    )
    program.chmod(0o700)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(program)}}
    content = KUBE_CONFIG | {"users": [{"name": "me", "user": user}]}
    hook = connect(ml=on_kubernetes(), kubernetes_default=("kubernetes", {"kube_config": content}))
    workspace = hook.get_workspace()

    assert [asyncio.run(opened(workspace))[1] for _ in range(2)] == ["Bearer token-1", "Bearer token-2"]


def test_a_trigger_reads_both_connections_without_a_synchronous_call(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = connect(ml=on_kubernetes(), kubernetes_default=("kubernetes", {"kube_config": KUBE_CONFIG}))

    def blocks(conn_id: str) -> None:
        raise AssertionError(f"{conn_id} was asked for in the event loop")

    async def trigger() -> tuple[str, str, bool]:
        workspace = await hook.aget_workspace()
        return await opened(workspace)

    monkeypatch.setattr("airflow.sdk.definitions.connection.Connection.get", blocks)
    assert asyncio.run(trigger())[0] == "https://far.example:6443"


def test_without_a_kubernetes_connection_the_workspace_says_what_to_make(connect: Connect) -> None:
    for hook in (connect(ml=on_kubernetes()), connect(ml=on_kubernetes(kubernetes_conn_id="aks"))):
        with pytest.raises(WorkspaceError, match=r"connection '\w+' does not exist: create it with the type 'kuberne"):
            hook.get_workspace()
        with pytest.raises(WorkspaceError, match="does not exist"):
            asyncio.run(hook.aget_workspace())


def test_in_a_pod_the_default_connection_may_be_missing_or_empty_another_may_not(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("t")
    monkeypatch.setattr(cluster, "SERVICE_ACCOUNT_TOKEN", token)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    hook = connect(ml=on_kubernetes())
    for _ in ("missing", "empty"):
        # What the library finds of the service account in here; that it is asked for is what counts.
        with pytest.raises(WorkspaceError, match="Service host/port is not set"):
            asyncio.run(opened(hook.get_workspace()))
        hook = connect(kubernetes_default=("kubernetes", {"in_cluster": "", "kube_config_path": ""}))

    with pytest.raises(WorkspaceError, match="'aks' does not exist"):
        connect(ml=on_kubernetes(kubernetes_conn_id="aks")).get_workspace()


def test_a_connection_of_another_type_is_refused(connect: Connect) -> None:
    hook = connect(ml=on_kubernetes(kubernetes_conn_id="db"), db=("postgres", {}))
    with pytest.raises(WorkspaceError, match="'db', which is of the type 'postgres'"):
        hook.get_workspace()


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({"kube_config_path": "/nonexistent/config"}, "kube_config_path /nonexistent/config, which does not exist"),
        ({"kube_config": KUBE_CONFIG, "cluster_context": "nowhere"}, "nowhere"),
        ({"kube_config": KUBE_CONFIG, "in_cluster": True}, "mutually exclusive"),
        ({"kube_config": KUBE_CONFIG | {"users": [{"name": "me", "token": SECRET}]}}, "Expected key user"),
        ({"kube_config": {"token": SECRET}}, "workspace 'ml' cannot open"),
    ],
)
def test_a_kube_config_that_leads_nowhere_is_an_error_without_its_content(
    connect: Connect, caplog: pytest.LogCaptureFixture, extra: dict[str, Any], problem: str
) -> None:
    caplog.set_level(logging.INFO)
    workspace = connect(ml=on_kubernetes(), kubernetes_default=("kubernetes", extra)).get_workspace()

    with pytest.raises(WorkspaceError, match=problem) as refused:
        asyncio.run(opened(workspace))

    assert SECRET not in str(refused.value)
    assert SECRET not in caplog.text
    assert SECRET not in repr(workspace)


@pytest.mark.parametrize("text", [f"token: {SECRET}: {SECRET}", f"[{SECRET}]", SECRET])
def test_invalid_kube_config_is_refused_without_its_content(text: str) -> None:
    with pytest.raises(WorkspaceError, match="neither JSON nor YAML") as refused:
        cluster_settings("aks", {"kube_config": text})
    assert SECRET not in str(refused.value)


def test_fields_under_their_old_names_count_and_empty_ones_do_not() -> None:
    extras = {"extra__kubernetes__kube_config_path": "/old", "extra__kubernetes__in_cluster": False}
    assert cluster_settings("aks", extras) == {"kube_config_path": "/old"}
    assert cluster_settings("aks", {**extras, "kube_config_path": "/new"}) == {"kube_config_path": "/new"}
    assert cluster_settings("aks", {"in_cluster": "False", "disable_verify_ssl": None, "cluster_context": ""}) == {}


def test_a_missing_package_says_which_extra_to_install(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = connect(ml=on_kubernetes(), kubernetes_default=("kubernetes", {"kube_config": KUBE_CONFIG}))
    monkeypatch.setitem(sys.modules, "airflow.providers.cncf.kubernetes.hooks.kubernetes", None)

    with pytest.raises(WorkspaceError, match=r"a package is missing .* with the extra kubernetes"):
        asyncio.run(opened(hook.get_workspace()))
