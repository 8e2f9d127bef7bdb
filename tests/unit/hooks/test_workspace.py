import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.bases.secrets_backend import BaseSecretsBackend
from airflow.sdk.exceptions import AirflowNotFoundException, ErrorType
from airflow.sdk.execution_time import supervisor, task_runner
from airflow.sdk.execution_time.comms import ErrorResponse
from airflow.sdk.execution_time.secrets.execution_api import ExecutionAPISecretsBackend

from controlled_rollout.errors import TargetUnavailableError, WorkspaceError
from controlled_rollout.hooks import cluster
from controlled_rollout.hooks.workspace import WorkspaceHook, workspace_from
from tests.unit.hooks.connections import Connect, on_kubernetes


def test_a_local_workspace_asks_for_no_kubernetes_connection(connect: Connect, tmp_path: Path) -> None:
    workspace = connect(ml=("controlled_rollout", {"root": str(tmp_path / "x")})).get_workspace()
    assert workspace.open_cluster is None
    assert workspace.root == tmp_path / "x"


def test_only_the_default_workspace_may_be_missing(connect: Connect, tmp_path: Path) -> None:
    assert connect().default_conn_name == "controlled_rollout_default"
    assert WorkspaceHook().get_workspace().root == Path(tmp_path)
    with pytest.raises(AirflowNotFoundException, match="'ml' was asked for and does not exist"):
        connect().get_workspace()


async def test_a_connection_of_another_type_is_not_taken_for_the_local_workspace(
    connect: Connect, tmp_path: Path
) -> None:
    """A conn_id that was confused with another one would deploy to the wrong place."""
    for refused in (connect(ml=("http", {})).get_workspace, connect(ml=("kubernetes", {})).get_workspace):
        with pytest.raises(WorkspaceError, match=r"'ml' has the type '.*', and a workspace's has the type"):
            refused()
    with pytest.raises(WorkspaceError, match="correct conn_id"):
        await connect(ml=("http", {})).aget_workspace()
    for conn_type in ("generic", "controlled-rollout", ""):
        assert connect(ml=(conn_type, {"root": str(tmp_path / "x")})).get_workspace().root == tmp_path / "x"


def test_a_connection_names_its_cluster_by_a_connection() -> None:
    with pytest.raises(WorkspaceError, match="sets kubeconfig and kube_context, which are for the command line"):
        workspace_from("ml", {**on_kubernetes()[1], "kubeconfig": "/x", "kube_context": "y"})
    with pytest.raises(
        WorkspaceError, match="sets tls_certificate and tls_key, which are for `controlled-rollout local up`"
    ):
        workspace_from("ml", {"tls_certificate": "/x", "tls_key": "/y"})


def test_a_cluster_without_a_gateway_is_refused() -> None:
    with pytest.raises(WorkspaceError, match="needs the setting gateway"):
        workspace_from("ml", {"target": "kubernetes"})


class Vault(BaseSecretsBackend):
    """A secrets backend that does not answer, or has no connection."""

    def __init__(self, *, away: bool = True) -> None:
        self._away = away

    def get_conn_value(self, conn_id: str, team_name: str | None = None) -> str | None:
        if self._away:
            raise ConnectionError("the vault does not answer")
        return None


class ApiServer:
    """Answers a task's or a trigger's questions as Airflow's API server does."""

    def __init__(self, error: ErrorType) -> None:
        self._error = error

    def send(self, question: Any) -> ErrorResponse:
        return ErrorResponse(error=self._error, detail={"status_code": 503})

    async def asend(self, question: Any) -> ErrorResponse:
        return self.send(question)


def use_backends(monkeypatch: pytest.MonkeyPatch, *backends: Any) -> None:
    monkeypatch.setattr(supervisor, "ensure_secrets_backend_loaded", lambda: list(backends))


AWAY = pytest.mark.parametrize("error", [None, ErrorType.API_SERVER_ERROR, ErrorType.GENERIC_ERROR])


@AWAY
async def test_connection_that_cannot_be_read_is_not_taken_for_the_local_workspace(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, error: ErrorType | None
) -> None:
    connect()
    use_backends(monkeypatch, ExecutionAPISecretsBackend() if error else Vault())
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", ApiServer(error) if error else None, raising=False)
    for hook in (WorkspaceHook(), WorkspaceHook("ml")):
        with pytest.raises(TargetUnavailableError, match=r"cannot be read.*no other target is used in its place"):
            hook.get_workspace()
        with pytest.raises(TargetUnavailableError, match=r"cannot be read.*no other target is used in its place"):
            await hook.aget_workspace()


async def test_default_connection_that_no_backend_has_means_the_local_workspace(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connect()
    use_backends(monkeypatch, Vault(away=False), ExecutionAPISecretsBackend())
    answer = ApiServer(ErrorType.CONNECTION_NOT_FOUND)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", answer, raising=False)
    assert WorkspaceHook().get_workspace().root == (await WorkspaceHook().aget_workspace()).root == tmp_path


async def test_a_trigger_in_a_test_of_a_dag_reads_connections_as_tasks_do(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class OfDagTest:
        """What `dag.test()` has in the place of the API server: it has no `asend`."""

        def send(self, question: Any) -> ErrorResponse:
            return ErrorResponse(error=ErrorType.CONNECTION_NOT_FOUND)

    connect()
    use_backends(monkeypatch, ExecutionAPISecretsBackend())
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", OfDagTest(), raising=False)
    assert (await WorkspaceHook().aget_workspace()).root == tmp_path


async def test_kubernetes_connection_that_cannot_be_read_is_not_taken_for_the_own_cluster(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class HasOne(BaseSecretsBackend):
        def get_connection(self, conn_id: str, team_name: str | None = None) -> Any:
            if conn_id == "ml":
                return self.deserialize_connection(conn_id, json.dumps({"conn_type": kind, "extra": extra}))
            raise ConnectionError("the vault does not answer")

    kind, extra = on_kubernetes()
    connect()
    token = tmp_path / "token"
    token.touch()
    monkeypatch.setattr(cluster, "SERVICE_ACCOUNT_TOKEN", token)
    use_backends(monkeypatch, HasOne())
    with pytest.raises(TargetUnavailableError, match="'kubernetes_default' was asked for and cannot be read"):
        WorkspaceHook("ml").get_workspace()
    with pytest.raises(TargetUnavailableError, match="'kubernetes_default' was asked for and cannot be read"):
        await WorkspaceHook("ml").aget_workspace()
