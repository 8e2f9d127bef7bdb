"""Two targets with TLS: a local router with a certificate from files, and a Gateway with one from a Secret."""

import json
import secrets
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import pytest

from controlled_rollout.target.kubernetes.target import KubernetesTarget
from tests.certificates import Authority, Pair
from tests.cluster.lab import Lab
from tests.conformance.target_lab import TargetLab, cluster_lab, local_lab
from tests.polling import wait_until
from tests.target_per_call import target_per_call

__all__ = ["TlsLab", "cluster_tls_lab", "local_tls_lab"]


@dataclass(frozen=True)
class TlsLab(TargetLab):
    """A target whose callers use https.

    Attributes:
        authority: Signs the certificates.
        authority_file: Its own certificate.
        base_url: Where callers reach the router by https.
        plain_url: The same router, for callers of plain http.
        renew: Gives the router another certificate, as whoever runs it does.
    """

    authority: Authority
    authority_file: Path
    base_url: str
    plain_url: str
    renew: Callable[[Pair], None]

    @classmethod
    def of(cls, lab: TargetLab, **more: Any) -> Self:
        """Return a target as it is, with what TLS adds; `more` may replace what it has."""
        return cls(**({field.name: getattr(lab, field.name) for field in fields(lab)} | more))


def _authority(folder: Path) -> tuple[Authority, Path]:
    """Return a new authority, and the file with its certificate."""
    authority, file = Authority(), folder / "ca.crt"
    file.write_bytes(authority.pem)
    return authority, file


@contextmanager
def local_tls_lab(folder: Path) -> Iterator[TlsLab]:
    """Start a local workspace whose router has its certificate from files."""
    authority, authority_file = _authority(folder)
    certificate, key = authority.pair().write(folder)
    settings = {"tls": True, "tls_certificate": certificate, "tls_key": key, "endpoint_ca": authority_file}
    with local_lab(folder, **settings) as lab:
        url = json.loads(lab.workspace.state_file.read_text())["router_url"]
        yield TlsLab.of(
            lab,
            authority=authority,
            authority_file=authority_file,
            base_url=url,
            plain_url=url.replace("https:", "http:"),
            renew=lambda pair: pair.write(folder),
        )


@contextmanager
def cluster_tls_lab(lab: Lab, folder: Path) -> Iterator[TlsLab]:
    """Make a Gateway with plain http beside https, and a namespace for endpoints behind it."""
    if not lab.is_ours:
        pytest.skip("the Envoys of a further Gateway are reached through the lab's node ports")
    authority, authority_file = _authority(folder)
    namespace, name = lab.gateway.partition("/")[0], f"tls-{secrets.token_hex(3)}"

    def renew(pair: Pair) -> None:
        lab.kubectl("apply", "-f", "-", input=json.dumps(_secret(namespace, name, pair)))

    with cluster_lab(lab, folder) as target_lab:
        with target_lab.turn():
            renew(authority.pair())
            lab.kubectl("create", "-f", "-", input=json.dumps(_gateway(namespace, name)))
        try:
            with target_lab.turn():
                plain, secure = (f"127.0.0.1:{_node_port(lab, namespace, name, port)}" for port in (80, 443))
            settings = {
                "gateway": f"{namespace}/{name}",
                "endpoint_url": f"https://{secure}",
                "endpoint_ca": authority_file,
                "tls": True,
            }
            workspace = target_lab.workspace.model_copy(update=settings)
            yield TlsLab.of(
                target_lab,
                workspace=workspace,
                target=target_per_call(lambda: KubernetesTarget.open(workspace)),
                authority=authority,
                authority_file=authority_file,
                base_url=f"https://{secure}",
                plain_url=f"http://{plain}",
                renew=renew,
            )
        finally:
            with target_lab.turn():
                lab.kubectl("--namespace", namespace, "delete", f"gateway/{name}", f"secret/{name}", "--wait=false")


def _secret(namespace: str, name: str, pair: Pair) -> dict[str, Any]:
    """Return a Secret with a certificate and its key."""
    files = {"tls.crt": pair.certificate, "tls.key": pair.key}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": namespace},
        "data": {file: b64encode(content).decode() for file, content in files.items()},
    }


def _gateway(namespace: str, name: str) -> dict[str, Any]:
    """Return a Gateway with both listeners, whose Envoy runs as that of the lab's own Gateway does."""
    allowed = {"namespaces": {"from": "All"}}
    tls = {"mode": "Terminate", "certificateRefs": [{"name": name}]}
    parameters = {"group": "gateway.envoyproxy.io", "kind": "EnvoyProxy", "name": "models"}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "gatewayClassName": "envoy",
            "infrastructure": {"parametersRef": parameters},
            "listeners": [
                {"name": "plain", "protocol": "HTTP", "port": 80, "allowedRoutes": allowed},
                {"name": "secure", "protocol": "HTTPS", "port": 443, "allowedRoutes": allowed, "tls": tls},
            ],
        },
    }


def _node_port(lab: Lab, namespace: str, name: str, port: int) -> int:
    """Return the port on this machine that leads to a port of the Gateway's Envoys; wait until there is one."""
    owner = "gateway.envoyproxy.io/owning-gateway"
    query = ("-l", f"{owner}-name={name},{owner}-namespace={namespace}", "-o", "json")

    def found() -> int | None:
        services = json.loads(lab.kubectl("--namespace", "envoy-gateway-system", "get", "services", *query))
        ports = [one for service in services["items"] for one in service["spec"]["ports"] if one["port"] == port]
        return next((int(one["nodePort"]) for one in ports if "nodePort" in one), None)

    return wait_until(found, f"the Gateway has a Service with port {port}", timeout_s=120, interval_s=0.5)
