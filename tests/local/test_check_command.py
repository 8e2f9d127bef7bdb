"""`controlled-rollout check` on a real local workspace: its table, its JSON, its exit code, and its time."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.checks import connectivity
from controlled_rollout.cli import main
from controlled_rollout.target.local import supervisor
from controlled_rollout.workspace import Workspace
from tests.ports import closed_port

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace that runs, without endpoints."""
    workspace = Workspace.local(tmp_path_factory.mktemp("check") / "workspace")
    try:
        assert supervisor.start_workspace(workspace, port=0, detach=True) == 0
        yield workspace.root
    finally:
        assert supervisor.stop_workspace(workspace) == 0


@pytest.fixture(name="closed_port")
def refusing() -> Iterator[int]:
    with closed_port() as port:
        yield port


def test_table_says_what_works_and_what_to_do_and_the_exit_code_whether_all_does(
    root: Path, closed_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--root", str(root)]) == 0
    works = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in works] == ["check", "supervisor", "router", "telemetry", "cache", "storage"]

    assert main(["check", "--root", str(root), "--to", f"tcp://127.0.0.1:{closed_port}"]) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split()[:7] == [f"127.0.0.1:{closed_port}", "worker", "FAILS", "ok", "FAILS", "-", "-"]
    assert line.endswith("start the server that should listen there")


def test_a_name_that_the_local_target_does_not_look_at_is_not_taken_for_checked(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "nobody", "--root", str(root)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("endpoint and version were not looked at")


def test_a_workspace_that_runs_at_another_port_than_is_asked_for_says_so(
    root: Path, closed_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["local", "up", "--root", str(root)]) == 0
    assert "already running" in capsys.readouterr().out

    assert main(["local", "up", "--root", str(root), "--port", str(closed_port)]) == 2
    assert f"was started with another port than {closed_port}" in capsys.readouterr().err


def test_json_has_every_stage(root: Path, closed_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--root", str(root), "--to", f"http://127.0.0.1:{closed_port}", "--output", "json"]) == 1
    *_, router, _, _, _, own = json.loads(capsys.readouterr().out)

    assert (router["name"], router["outcome"], router["probe"]) == ("router", "works", None)
    assert (own["outcome"], own["origin"], own["needed"]) == ("FAILS", "worker", True)
    assert (own["probe"]["passed"], own["probe"]["failed"], own["probe"]["cause"]) == (["DNS"], "TCP", "refused")


def test_address_that_is_none_is_refused_before_anything_is_asked(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--root", str(root), "--to", "https://user:geheim@host.example"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "leave it out" in output.err and "geheim" not in output.err


def test_name_that_hangs_holds_nothing_up_longer_than_all_servers_together_may_take(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    released = threading.Event()
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "hangs.example":
            released.wait(10 * DEADLINE_S)
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(connectivity, "SECONDS", 1.0)
    began = time.monotonic()
    try:
        assert main(["check", "--root", str(root), "--to", "https://hangs.example"]) == 1
        # Nothing at the end of the event loop waits for the name either.
        assert time.monotonic() - began < DEADLINE_S
    finally:
        released.set()

    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split()[:7] == ["hangs.example:443", "worker", "FAILS", "FAILS", "-", "-", "-"]
    assert "DNS: the name hangs.example is not known here (no answer within 1 s)" in line
