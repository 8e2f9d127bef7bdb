"""A Gateway with plain http beside https: callers' keys are taken, and sent, on https only."""

import json
import secrets
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.sandbox import Sandbox
from tests.polling import wait_until


def gateway_manifest(namespace: str, name: str) -> dict[str, Any]:
    """Return a Gateway with both listeners, whose Envoy runs as that of the lab's own Gateway does."""
    certificate = {"name": name}
    allowed = {"namespaces": {"from": "All"}}
    tls = {"mode": "Terminate", "certificateRefs": [certificate]}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "gatewayClassName": "envoy",
            "infrastructure": {
                "parametersRef": {"group": "gateway.envoyproxy.io", "kind": "EnvoyProxy", "name": "models"}
            },
            "listeners": [
                {"name": "plain", "protocol": "HTTP", "port": 80, "allowedRoutes": allowed},
                {"name": "secure", "protocol": "HTTPS", "port": 443, "allowedRoutes": allowed, "tls": tls},
            ],
        },
    }


@pytest.fixture
def two_listeners(sandbox: Sandbox, tmp_path: Path) -> Iterator[Sandbox]:
    """The sandbox behind a Gateway of its own."""
    if not sandbox.lab.is_ours:
        pytest.skip("the Envoys of a further Gateway are reached through the lab's node ports")
    namespace, name = sandbox.lab.gateway.partition("/")[0], f"both-{secrets.token_hex(3)}"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=models.example.com"]
    subprocess.run([*command, "-keyout", "tls.key", "-out", "tls.crt"], cwd=tmp_path, check=True, capture_output=True)
    files = (f"--cert={tmp_path / 'tls.crt'}", f"--key={tmp_path / 'tls.key'}")
    sandbox.lab.kubectl("--namespace", namespace, "create", "secret", "tls", name, *files)
    try:
        sandbox.lab.kubectl("create", "-f", "-", input=json.dumps(gateway_manifest(namespace, name)))
        settings = {"gateway": f"{namespace}/{name}", "endpoint_url": None}
        yield replace(sandbox, workspace=sandbox.workspace.model_copy(update=settings))
    finally:
        sandbox.lab.kubectl("--namespace", namespace, "delete", f"gateway/{name}", f"secret/{name}", "--wait=false")


def node_port(sandbox: Sandbox, port: int) -> int:
    """Return the port on this machine that leads to a port of the Gateway's Envoys; wait until there is one."""
    namespace, _, name = sandbox.workspace.gateway.partition("/")
    owner = "gateway.envoyproxy.io/owning-gateway"
    query = ("-l", f"{owner}-name={name},{owner}-namespace={namespace}", "-o", "json")
    found: list[int] = []

    def is_there() -> bool:
        services = json.loads(sandbox.lab.kubectl("--namespace", "envoy-gateway-system", "get", "services", *query))
        ports = [one for service in services["items"] for one in service["spec"]["ports"] if one["port"] == port]
        found[:] = [one["nodePort"] for one in ports if "nodePort" in one]
        return bool(found)

    wait_until(is_there, "the Gateway has a Service", timeout_s=60, interval_s=0.5)
    return found[0]


async def test_an_endpoint_behind_http_and_https_is_served_and_shown_on_https_only(two_listeners: Sandbox) -> None:
    sandbox = two_listeners
    await sandbox.roll_out("one")
    key = await sandbox.key()
    path = f"/api/v1/service/{sandbox.endpoint}/score"
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE

    async with httpx.AsyncClient(verify=trusting, headers={"Authorization": f"Bearer {key}"}) as caller:
        secure = await caller.post(f"https://127.0.0.1:{node_port(sandbox, 443)}{path}", json={})
        plain = await caller.post(f"http://127.0.0.1:{node_port(sandbox, 80)}{path}", json={})

    assert (secure.status_code, plain.status_code) == (200, 404)
    assert (await sandbox.target.status(sandbox.endpoint)).url.startswith("https://")
    [parent] = json.loads(sandbox.kubectl("get", "httproute", sandbox.endpoint, "-o", "json"))["spec"]["parentRefs"]
    assert parent["sectionName"] == "secure"
