"""The local router with TLS, and the clients that people have: openssl, curl, and this project's own commands."""

import asyncio
import json
import os
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlled_rollout.checks.connectivity import check_connectivity
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.target.local import supervisor
from controlled_rollout.target.local.client import LocalTarget
from controlled_rollout.workspace import Workspace
from tests.certificates import Authority, Pair
from tests.local.local_target_lab import CHANGE, Lab, running, steady_load
from tests.polling import until, wait_until
from tests.tls_callers import curl, serial_number


@dataclass(frozen=True)
class TlsLab:
    """A workspace whose router has its certificate from files, and an endpoint that answers."""

    lab: Lab
    authority: Authority
    authority_file: Path
    certificate: Path
    key: Path

    @property
    def router(self) -> str:
        return self.lab.state.router_url

    def write(self, pair: Pair) -> None:
        pair.write(self.certificate.parent)
        self.key.chmod(0o600)

    async def problem(self) -> str | None:
        statuses = await self.lab.target.process_statuses()
        return next(status.problem for status in statuses if status.name == "router")

    async def serve(self, name: str) -> tuple[str, str]:
        endpoint = Endpoint(name=name).create_version("one", image=await self.lab.image(), max_request_wait_time=20_000)
        _, status = await self.lab.serve(endpoint)
        await self.lab.ready(name, "one")
        return status.url, (await self.lab.target.keys(name)).primary


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsLab]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority()
    (folder / "ca.crt").write_bytes(authority.pem)
    certificate, key = authority.pair().write(folder)
    settings = {"tls_certificate": certificate, "tls_key": key, "endpoint_ca": folder / "ca.crt"}
    with running(folder, **settings) as lab:
        yield TlsLab(lab, authority, folder / "ca.crt", certificate, key)


def test_plain_http_is_refused_with_what_to_do_whatever_it_brings(tls: TlsLab) -> None:
    plain = tls.router.replace("https:", "http:")

    for path in ("/healthz", "/api/v1/service/any/score"):
        answer = curl(plain + path, "-H", "Authorization: Bearer a-key-in-clear")
        assert answer.status == 400
        assert "https only" in json.loads(answer.body)["message"]
    assert curl(f"{plain}/healthz", "--http1.0").status == 400


async def test_a_broken_new_pair_is_said_and_the_one_of_before_is_served(tls: TlsLab) -> None:
    url, key = await tls.serve("broken")
    before = serial_number(tls.router)
    context = ssl.create_default_context(cafile=tls.authority_file)
    async with steady_load(url, key, rate=20, connections=1, tls=context, per_connection=1) as load:
        for damage, message in (
            (lambda: tls.certificate.write_bytes(tls.authority.pair().certificate), "does not fit"),
            (lambda: tls.write(tls.authority.pair(lasts=timedelta(seconds=-1))), "it ended on"),
            (lambda: tls.key.chmod(0o644), "others than its owner have access to the key (mode 0644)"),
            (lambda: tls.key.unlink(), "cannot be read (No such file or directory)"),
        ):
            damage()

            async def is_said(message: str = message) -> bool:
                return message in (await tls.problem() or "")

            await until(is_said, message)
            assert serial_number(tls.router) == before
            [warning] = (await tls.lab.target.status("broken")).warnings
            assert message in warning
            assert str(tls.certificate) in warning
        await load.more(5)
        tls.write(tls.authority.pair(lasts=timedelta(days=10)))

        async def is_solved() -> bool:
            return await tls.problem() is None

        await until(is_solved, "a pair that fits is taken over")
        await load.more(5)

    assert load.failed == {}
    status = await tls.lab.target.status("broken")
    assert serial_number(tls.router) != before
    assert status.certificate_ends is not None
    assert timedelta(days=9) < status.certificate_ends - datetime.now(UTC) <= timedelta(days=10)
    assert "in 9 days: replace" in status.warnings[0]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the project with a minimal environment."""
    program = Path(sys.executable).with_name("controlled-rollout")
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, check=False, timeout=240, env=environment
    )


def test_up_refuses_a_pair_that_nobody_could_use_and_starts_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    certificate, key = Authority().pair().write(tmp_path)
    key.chmod(0o644)
    root = tmp_path / "workspace"
    workspace = Workspace.from_settings({"root": root, "tls_certificate": certificate, "tls_key": key})

    assert supervisor.start_workspace(workspace, port=0, detach=True) == 2

    assert "others than its owner have access to the key (mode 0644)" in capfd.readouterr().err
    assert not (root / "supervisor.json").exists()


@contextmanager
def up(root: Path, **settings: bool) -> Iterator[Workspace]:
    """Start a workspace on a free port, and end it at the end."""
    workspace = Workspace.from_settings({"root": str(root), **settings})
    try:
        assert supervisor.start_workspace(workspace, port=0, detach=True) == 0
        yield workspace
    finally:
        assert supervisor.stop_workspace(workspace) == 0


def test_the_workspace_makes_a_certificate_of_its_own_on_request_and_renews_it(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    with up(root, tls=True):
        state = json.loads((root / "supervisor.json").read_text())
        router, authority = state["router_url"], Path(state["router_ca"])
        port = router.rpartition(":")[2]
        for host in ("localhost", "127.0.0.1"):
            assert curl(f"https://{host}:{port}/healthz", authority=authority).status == 200
        assert stat.S_IMODE((root / "tls" / "router.key").stat().st_mode) == 0o600
        before = serial_number(router)
        # One that ends soon: it is made anew, under the same authority.
        Authority().pair(lasts=timedelta(days=20)).write(root / "tls", "router")

        wait_until(lambda: serial_number(router) != before, "the new certificate is served", interval_s=0.2)
        assert curl(f"{router}/healthz", authority=authority).status == 200
        again = command("local", "up", "--root", str(root), "--tls")
        assert (again.returncode, "already running: https://" in again.stdout) == (0, True)


def test_a_workspace_that_asks_for_tls_refuses_to_go_forward_on_plain_http(tmp_path: Path) -> None:
    root = tmp_path / "workspace"

    async def apply(workspace: Workspace) -> None:
        async with LocalTarget.open(workspace) as target:
            await target.apply(Endpoint(name="alpha"), CHANGE)

    with up(root):
        workspace = Workspace.from_settings({"root": str(root), "tls": True})
        with pytest.raises(WorkspaceError, match="asks for TLS, and its router was started without"):
            asyncio.run(apply(workspace))
        results = asyncio.run(check_connectivity(workspace, {}))
        again = command("local", "up", "--root", str(root), "--tls")

    [router] = [result for result in results if result.name == "router"]
    assert (router.works, "the workspace asks for TLS" in router.message) == (False, True)
    assert (again.returncode, "was started without TLS" in again.stderr) == (2, True)
