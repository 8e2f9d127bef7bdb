"""The causes that the check distinguishes. On a real cluster: tests/cluster; on a real local workspace: tests/local."""

import asyncio
import socket
from pathlib import Path

import pytest

from controlled_rollout.checks.connectivity import (
    CheckScope,
    _check_storage,
    check_connectivity,
    check_registry,
    run_check,
)
from controlled_rollout.checks.result import failures, results_table
from controlled_rollout.workspace import Workspace
from tests.unit.checks.server import OK, read_head, say, serving


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 200 OK", "/v2/ answers"),
        (b"HTTP/1.1 401 Who", "/v2/ answers, and asks for a user"),
        (b"HTTP/1.1 404 What", "answers 404: this is not a registry"),
    ],
)
async def test_registry_is_recognised_by_its_answer(answer: bytes, message: str, tmp_path: Path) -> None:
    with serving(say(answer + b"\r\nContent-Length: 0\r\n\r\n")) as port:
        workspace = Workspace(root=tmp_path, registry=f"127.0.0.1:{port}/models/team")
        result = await run_check("registry", check_registry(workspace, {}))
    assert result.works == ("404" not in message)
    assert result.message.endswith(message)


def test_without_an_api_server_the_other_checks_still_run(tmp_path: Path, closed_port: int) -> None:
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(
        "{current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}],\n"
        f"clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{closed_port}'}}}}]}}"
    )
    settings = {"root": str(tmp_path), "target": "kubernetes", "gateway": "infra/shared", "kubeconfig": str(kubeconfig)}
    workspace = Workspace.from_settings({**settings, "registry": f"127.0.0.1:{closed_port}/models"})

    results = {result.name: result for result in asyncio.run(check_connectivity(workspace, {}))}

    assert results["API server"].message.startswith(f"TCP: 127.0.0.1:{closed_port} does not accept connections")
    assert results["gateway"].message == "not checked: the API server does not work"
    assert "telemetry_workspace_id is missing" in results["metric store"].message
    assert results["registry"].message.startswith("TCP: 127.0.0.1")
    assert [name for name, result in results.items() if result.works] == ["cache folder", "storage"]
    assert results["storage"].message.startswith("none is set: ")
    printed = results_table(list(results.values())).splitlines()
    assert printed[0].split() == ["check", "from", "result", "DNS", "TCP", "TLS", "HTTP"]
    assert printed[1].split()[:7] == ["API", "server", "worker", "FAILS", "ok", "FAILS", "-"]
    assert len(printed) == len(results) + 1 == 12


def test_each_of_two_destinations_on_one_server_has_a_result(tmp_path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 503 Busy\r\n\r\n" if b"/broken " in read_head(connection) else OK)

    with serving(answer) as port:
        scope = CheckScope(destinations=(f"http://127.0.0.1:{port}/broken", f"http://127.0.0.1:{port}/works"))
        results = asyncio.run(check_connectivity(Workspace(root=tmp_path), {}, scope))

    own = [result for result in results if result.name == f"127.0.0.1:{port}"]
    assert [result.works for result in own] == [False, True]
    assert own[0] in failures(results)


def storage_check(workspace: Workspace) -> str:
    return asyncio.run(run_check("storage", _check_storage(workspace))).message


def test_storage_that_can_be_written_is_said_to_work_and_is_left_empty(tmp_path: Path) -> None:
    workspace = Workspace.from_settings({"root": str(tmp_path / "root"), "storage": str(tmp_path / "data")})

    assert storage_check(workspace) == f"{tmp_path}/data: can be written"
    assert list((tmp_path / "data").iterdir()) == []


def test_storage_that_cannot_be_written_fails_the_check(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    workspace = Workspace.from_settings({"root": str(tmp_path), "storage": str(tmp_path / "data")})

    result = asyncio.run(run_check("storage", _check_storage(workspace)))

    assert not result.works
    assert f"{tmp_path}/data" in result.message and "cannot be read or written" in result.message


@pytest.mark.parametrize("target", ["local", "kubernetes"])
def test_storage_check_names_decisions_that_a_new_place_of_records_hides(target: str, tmp_path: Path) -> None:
    settings = {"root": str(tmp_path / "root"), "target": target, "gateway": "gateway/models", "namespace": "models"}
    before = Workspace.from_settings(settings)
    hidden = before.records_folder
    hidden.mkdir(parents=True)
    (hidden / "digits.jsonl").write_text("{}\n")
    (hidden.parent / "of-others.jsonl").write_text("{}\n")
    workspace = Workspace.from_settings({**settings, "storage": str(tmp_path / "data")})

    assert "are not read" not in storage_check(before)
    assert storage_check(workspace).endswith(
        f"Decisions in {hidden} are not read: records are in {workspace.records_folder}"
    )
