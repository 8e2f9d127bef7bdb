"""What a check tells apart. On a real cluster: tests/cluster; on a real local workspace: tests/local."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controlled_rollout.checks.cluster_probes import SERVED, gateway_fault, in_words, not_granted, not_served
from controlled_rollout.checks.connectivity import _registry, _result, check, table
from controlled_rollout.checks.reach import ask, reach
from controlled_rollout.errors import TargetUnavailableError, WorkspaceError
from controlled_rollout.target.kubernetes.permissions import NAMESPACE, Permission
from controlled_rollout.workspace import Workspace

# One of the two ways to ask a server for a sign of life.
Probe = Callable[[str], Coroutine[Any, Any, object]]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken and does not listen: nobody else can begin to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "both.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    return context


async def serve(answer: bytes, **more: object) -> asyncio.Server:
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    return await asyncio.start_server(answer_once, "127.0.0.1", 0, **more)  # type: ignore[arg-type]


def port_of(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])


@pytest.mark.parametrize("go", [reach, ask])
async def test_a_name_that_is_not_known_is_told_from_a_port_that_is_closed(go: Probe, closed_port: int) -> None:
    with pytest.raises(TargetUnavailableError, match=r"^DNS: the name no-such-host\.invalid is not known here"):
        await go("http://no-such-host.invalid")
    with pytest.raises(TargetUnavailableError, match=r"^DNS: the name a{64}\.example is not known here"):
        await reach(f"http://{'a' * 64}.example")
    with pytest.raises(TargetUnavailableError, match=rf"^TCP: 127\.0\.0\.1:{closed_port} does not accept connections"):
        await go(f"http://127.0.0.1:{closed_port}")


@pytest.mark.parametrize("go", [reach, ask])
async def test_a_certificate_that_nobody_trusts_is_told_from_both(go: Probe, self_signed: ssl.SSLContext) -> None:
    async with await serve(b"", ssl=self_signed) as server:
        url = f"https://127.0.0.1:{port_of(server)}"
        with pytest.raises(
            TargetUnavailableError, match=rf"^TLS: 127\.0\.0\.1:{port_of(server)} is not trusted \(self"
        ):
            await go(url)
        assert await reach(url, tls=False) == f"127.0.0.1:{port_of(server)}"


async def test_a_server_that_accepts_and_does_not_speak_http_is_told_from_all() -> None:
    async with await serve(b"220 mail\r\n") as server:
        url = f"http://127.0.0.1:{port_of(server)}"
        with pytest.raises(TargetUnavailableError, match=rf"^{url} does not answer"):
            await ask(url)
    async with await serve(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n") as server:
        with pytest.raises(TargetUnavailableError, match="answers 503"):
            await ask(f"http://127.0.0.1:{port_of(server)}")
    async with await serve(b"HTTP/1.1 401 Who\r\nContent-Length: 0\r\n\r\n") as server:
        assert (await ask(f"http://127.0.0.1:{port_of(server)}")).status_code == 401


@pytest.mark.parametrize("url", ["models.example", "ftp://models.example", "https://", "http://host:port"])
async def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(WorkspaceError, match=r"no server's address"):
        await reach(url)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"HTTP/1.1 200 OK", "/v2/ answers"),
        (b"HTTP/1.1 401 Who", "/v2/ answers, and asks for a user"),
        (b"HTTP/1.1 404 What", "answers 404: this is no registry"),
    ],
)
async def test_a_registry_is_known_by_its_answer(answer: bytes, found: str, tmp_path: Path) -> None:
    async with await serve(answer + b"\r\nContent-Length: 0\r\n\r\n") as server:
        workspace = Workspace(root=tmp_path, registry=f"127.0.0.1:{port_of(server)}/models/team")
        result = await _result("registry", _registry(workspace, {}))
    assert result.works == ("404" not in found)
    assert result.found.endswith(found)


def rule(*verbs: str, groups: tuple[str, ...] = ("",), resources: tuple[str, ...], **more: object) -> dict[str, object]:
    return {"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources), **more}


PODS = (Permission("", "pods", ("list", "watch"), ""), Permission("", "pods/log", ("get",), ""))


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ([], ["list pods", "watch pods", "get pods/log"]),
        ([rule("list", resources=("pods",)), rule("watch", resources=("pods", "pods/log"))], ["get pods/log"]),
        ([rule("*", resources=("pods",))], ["get pods/log"]),
        ([rule("*", resources=("*/log",))], ["list pods", "watch pods"]),
        ([rule("*", groups=("*",), resources=("*",))], []),
        ([rule("*", groups=("apps",), resources=("*",))], ["list pods", "watch pods", "get pods/log"]),
        ([rule("*", resources=("*",), resourceNames=["mine"])], ["list pods", "watch pods", "get pods/log"]),
        ([{"verbs": ["*"], "resources": ["*"]}], ["list pods", "watch pods", "get pods/log"]),
    ],
)
def test_rules_grant_what_they_say_and_nothing_for_single_objects(rules: list[dict[str, Any]], left: list[str]) -> None:
    assert [f"{verb} {resource}" for verb, _, resource in not_granted(PODS, rules)] == left


def test_the_rules_that_a_role_is_made_of_grant_all_that_it_is_for() -> None:
    rules = [rule(*one.verbs, groups=(one.group,), resources=(one.resource,)) for one in NAMESPACE]
    assert not_granted(NAMESPACE, rules) == []
    assert {action[2] for action in not_granted(NAMESPACE, rules[1:])} == {NAMESPACE[0].resource}


def test_what_is_not_allowed_is_said_resource_by_resource() -> None:
    needed = (Permission("apps", "deployments/scale", ("patch",), ""), *PODS)
    assert in_words(not_granted(needed, [])) == "patch deployments/scale.apps; list, watch pods; get pods/log"


def test_a_cluster_knows_a_kind_only_in_the_version_that_is_asked_for() -> None:
    everything = {kind.version: {"resources": [{"name": one.plural} for one in SERVED]} for kind in SERVED}
    assert not_served(everything) == []
    assert not_served({**everything, SERVED[0].version: None}) == [one for one in SERVED if "networking" in one.group]
    assert not_served({}) == list(SERVED)


def gateway(
    *, programmed: str = "True", listener: str = "True", takes_from: str | None = "All", name: str = "https"
) -> dict[str, object]:
    def conditions(status: str) -> list[dict[str, str]]:
        said = {"type": "Programmed", "status": status, "reason": "Pending", "message": "no address yet"}
        return [said] if status else []

    allowed = {"namespaces": {"from": takes_from}} if takes_from else {}
    return {
        "spec": {"listeners": [{"name": name, "allowedRoutes": allowed}]},
        "status": {
            "conditions": conditions(programmed),
            "listeners": [{"name": name, "conditions": conditions(listener)}],
        },
    }


@pytest.mark.parametrize(
    ("found", "setting", "fault"),
    [
        (gateway(), "infra/shared", None),
        (gateway(), "infra/shared/https", None),
        (gateway(takes_from=None), "models/shared", None),
        (gateway(takes_from="Selector"), "infra/shared", None),
        (gateway(takes_from=None), "infra/shared", "takes routes from its own namespace only"),
        (gateway(takes_from="Same"), "infra/shared/https", "takes routes from its own namespace only"),
        (gateway(), "infra/shared/http", "has no listener 'http'"),
        (gateway(programmed=""), "infra/shared", "no controller has programmed it yet"),
        (gateway(programmed="False"), "infra/shared", "not programmed (Pending: no address yet)"),
        (gateway(listener="False"), "infra/shared", "listener 'https': it is not programmed (Pending"),
        ({"spec": {}}, "infra/shared", "no controller"),
        ({"spec": {}, "status": gateway()["status"]}, "infra/shared", "has no listeners"),
    ],
)
def test_a_gateway_that_would_not_serve_the_workspace_s_routes_is_known_before(
    found: dict[str, Any], setting: str, fault: str | None
) -> None:
    workspace = Workspace(target="kubernetes", namespace="models", gateway=setting)
    said = gateway_fault(found, workspace)
    assert said is None if fault is None else fault in str(said)


def test_without_an_api_server_nothing_is_asked_of_it_and_the_rest_is(tmp_path: Path, closed_port: int) -> None:
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(
        "{current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}],\n"
        f"clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{closed_port}'}}}}]}}"
    )
    settings = {"root": str(tmp_path), "target": "kubernetes", "gateway": "infra/shared", "kubeconfig": str(kubeconfig)}
    workspace = Workspace.from_settings({**settings, "registry": f"127.0.0.1:{closed_port}/models"})

    results = {result.name: result for result in asyncio.run(check(workspace, {}))}

    assert results["API server"].found.startswith(f"TCP: 127.0.0.1:{closed_port} does not accept connections")
    assert results["gateway"].found == "not asked: the API server comes first"
    assert "telemetry_workspace_id is missing" in results["metric store"].found
    assert results["registry"].found.startswith("TCP: 127.0.0.1")
    assert [name for name, result in results.items() if result.works] == ["cache folder"]
    printed = table(list(results.values())).splitlines()
    assert printed[0].split()[:3] == ["API", "server", "FAILS"]
    assert len(printed) == len(results) == 9
