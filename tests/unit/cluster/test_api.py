"""Opening a cluster's API server, and signing in again when it no longer accepts a token."""

import asyncio
import json
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientSession, web

from controlled_rollout.cluster import api as api_module
from controlled_rollout.cluster.api import Api
from controlled_rollout.cluster.pod_client import PodClient
from controlled_rollout.errors import AccessError, TargetUnavailableError, WorkspaceError
from controlled_rollout.workspace import Workspace
from tests.polling import until

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient

UNFINISHED = """
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, token: a-secret}]
"""


class Cluster:
    """An API server that accepts one token at a time, and the way to sign in that gives the token of the moment."""

    def __init__(self) -> None:
        self.accepted = "token-1"
        self.offered: str | None = None
        self.sign_ins = self.closed = 0
        self.status = 200
        self.is_held = asyncio.Event()
        self.is_held.set()
        self.sign_in_fails = False
        self.body: str | None = None
        self.url = ""

    @property
    def workspace(self) -> Workspace:
        workspace = Workspace.from_settings({"target": "kubernetes", "gateway": "a/b"})
        return workspace.model_copy(update={"open_cluster": self.open})

    @asynccontextmanager
    async def open(self) -> AsyncIterator["ApiClient"]:
        from kubernetes_asyncio.client import ApiClient, Configuration

        if self.sign_in_fails:
            raise WorkspaceError("the identity provider is away")
        self.sign_ins += 1
        configuration = Configuration(
            host=self.url,
            api_key={"BearerToken": self.offered or self.accepted},
            api_key_prefix={"BearerToken": "Bearer"},
        )
        async with ApiClient(configuration) as client:
            yield client
        self.closed += 1

    async def answer(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.accepted}":
            return web.json_response({"message": "Unauthorized", "reason": "Unauthorized"}, status=401)
        await self.is_held.wait()
        if self.body is not None:
            return web.Response(text=self.body, status=self.status)
        return web.json_response({"kind": "Anything"})


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", cluster.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    cluster.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield cluster
    await runner.cleanup()


@pytest.mark.parametrize("content", [UNFINISHED, "users: [{name: u, token: a-secret}", "- a-secret", ""])
async def test_a_kubeconfig_that_cannot_be_used_is_an_error_without_its_secrets(tmp_path: Path, content: str) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(content)
    workspace = Workspace.from_settings({"target": "kubernetes", "gateway": "a/b", "kubeconfig": str(file)})

    with pytest.raises(WorkspaceError, match="does not lead to a cluster") as refused:
        async with Api.open(workspace):
            pass
    assert "a-secret" not in "".join(traceback.format_exception(refused.value))


async def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mistyped"
    workspace = Workspace.from_settings({"target": "kubernetes", "gateway": "a/b", "kubeconfig": str(file)})

    with pytest.raises(WorkspaceError, match=f"the kubeconfig {file}, and there is no such file"):
        async with Api.open(workspace):
            pass


async def test_many_requests_need_one_sign_in(cluster: Cluster) -> None:
    async with Api.open(cluster.workspace) as api:
        await asyncio.gather(*(api.get("/api") for _ in range(5)))

    assert cluster.sign_ins == 1


async def test_a_token_that_expires_is_renewed_once_for_all_requests(cluster: Cluster) -> None:
    async with Api.open(cluster.workspace) as api:
        await api.get("/api")
        cluster.accepted = "token-2"
        await asyncio.gather(*(api.create("/api", {}) for _ in range(5)))

    assert cluster.sign_ins == 2


async def test_a_renewed_token_that_is_refused_too_is_an_access_error(cluster: Cluster) -> None:
    async with Api.open(cluster.workspace) as api:
        await api.get("/api")
        cluster.offered, cluster.accepted = "token-1", "token-2"
        with pytest.raises(AccessError):
            await api.get("/api")
        with pytest.raises(AccessError):
            await api.get("/api")

    assert cluster.sign_ins == 2


async def test_a_renewed_token_that_is_refused_for_long_is_renewed_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Api.open(cluster.workspace) as api:
        await api.get("/api")
        cluster.offered, cluster.accepted = "token-1", "token-2"
        with pytest.raises(AccessError):
            await api.get("/api")
        monkeypatch.setattr(api_module, "SIGN_IN_INTERVAL_S", 0.0)
        with pytest.raises(AccessError):
            await api.get("/api")
        cluster.offered = None
        assert await api.get("/api") == {"kind": "Anything"}

    assert cluster.sign_ins == 4


async def test_client_whose_credentials_are_replaced_is_closed_when_its_last_answer_is_read(cluster: Cluster) -> None:
    async with Api.open(cluster.workspace) as api:
        await api.get("/api")
        cluster.is_held.clear()
        reading = asyncio.create_task(api.get("/slow"))
        await until(lambda: api._signed_in.requests == 1, "the request is sent", timeout_s=60)
        cluster.accepted = "token-2"
        refused = asyncio.create_task(api.get("/api"))
        await until(lambda: cluster.sign_ins == 2, "somebody has signed in again", timeout_s=60)
        assert cluster.closed == 0, "an answer is still being read with it"
        cluster.is_held.set()
        await asyncio.gather(refused, return_exceptions=True)
        # The server has let this one in before, or lets it in again with the new credentials.
        assert await reading == {"kind": "Anything"}
        for number in range(3, 8):
            cluster.accepted = f"token-{number}"
            await api.get("/api")
        assert (cluster.sign_ins, cluster.closed) == (7, 6)

    assert cluster.closed == 7


async def test_a_sign_in_that_fails_while_a_step_waits_is_an_access_error(cluster: Cluster) -> None:
    async with Api.open(cluster.workspace) as api:
        await api.get("/api")
        cluster.accepted = "token-2"
        cluster.sign_in_fails = True
        with pytest.raises(AccessError, match="signing in again failed: the identity provider is away"):
            await api.get("/api")
        cluster.sign_in_fails = False
        assert await api.get("/api") == {"kind": "Anything"}


@pytest.mark.parametrize("body", ["<html>Sign in</html>", "", "[1]", "7"])
async def test_an_answer_that_is_no_object_is_as_good_as_none(cluster: Cluster, body: str) -> None:
    cluster.body = body
    async with Api.open(cluster.workspace) as api:
        with pytest.raises(TargetUnavailableError, match="something else than an API server answers"):
            await api.get("/api")


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        (
            'leases.coordination.k8s.io "a" is forbidden: User "anna" cannot get resource "leases"',
            "give this identity the Role that docs/aks.md describes, or docs/agent.md",
        ),
        ('deployments.apps "a" is forbidden: exceeded quota: small, requested: count/deployments.apps=1', "a quota"),
        ('admission webhook "policy.example" denied the request: no label team', "a rule of the cluster refuses it"),
        (
            'deployments.apps "a" is forbidden: unable to create new content in namespace models because it is being '
            "terminated",
            "somebody is deleting the namespace",
        ),
        ("Forbidden", "give this identity the Role"),
    ],
)
async def test_only_who_lacks_a_permission_is_told_to_get_a_role(cluster: Cluster, message: str, advice: str) -> None:
    cluster.status, cluster.body = 403, json.dumps({"message": message, "reason": "Forbidden"})
    async with Api.open(cluster.workspace) as api:
        with pytest.raises(AccessError) as refused:
            await api.create("/apis/apps/v1/namespaces/models/deployments", {})

    assert advice in str(refused.value)
    assert ("give this identity" in str(refused.value)) == ("give this identity" in advice)


async def test_a_token_that_was_never_accepted_is_not_renewed(cluster: Cluster) -> None:
    cluster.offered = "wrong"
    async with Api.open(cluster.workspace) as api:
        with pytest.raises(AccessError):
            await api.get("/api")

    assert cluster.sign_ins == 1


async def test_a_closed_api_is_not_used(cluster: Cluster) -> None:
    async with Api.open(cluster.workspace) as api:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await api.get("/api")


async def test_a_watch_goes_on_after_an_object_of_any_size_and_ends_with_the_last_whole_event(
    cluster: Cluster, tmp_path: Path
) -> None:
    large = {"type": "MODIFIED", "object": {"metadata": {"annotations": {"large": "x" * 1_000_000}}}}
    small = {"type": "DELETED", "object": {"metadata": {"name": "a"}}}
    cluster.body = f'{json.dumps(large)}\n{json.dumps(small)}\n{{"type": "ADD'
    token = tmp_path / "token"
    token.write_text(cluster.accepted)

    @asynccontextmanager
    async def open_client() -> AsyncIterator[PodClient]:
        async with ClientSession() as session:
            yield PodClient(cluster.url, session, token)

    async with Api.open(cluster.workspace.model_copy(update={"open_cluster": open_client})) as api:
        assert [event async for event in api.watch("/api", "1")] == [large, small]
