"""What runs in the lab's cluster: names for pods, a gateway with its controller, and the way of spans to telemetry."""

import json
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from .binaries import chart
from .commands import until
from .errors import LabError
from .images import ENVOY_GATEWAY
from .layout import CLUSTER_DOMAIN, DNS_ADDRESS, GATEWAY_NAMESPACE, Layout

if TYPE_CHECKING:
    from .cluster import Lab

__all__ = ["CONTROLLER", "CONTROLLER_NAMESPACE", "gateway_port", "install"]

MANIFESTS = Path(__file__).parent / "manifests"
CONTROLLER_NAMESPACE = "envoy-gateway-system"
CONTROLLER = "envoy-gateway"
RELEASE = "gateway"
READY = "--timeout=120s"


def install(lab: "Lab") -> None:
    """Install everything, or what is missing of it, and wait until it serves.

    Raises:
        LabError: Something was refused, or not ready in time.
    """
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": GATEWAY_NAMESPACE}}
    _apply(lab, json.dumps(namespace))
    _apply(lab, _manifest(lab, "dns.yaml"))
    _apply(lab, _manifest(lab, "collector.yaml"))
    _install_controller(lab)
    _apply(lab, _manifest(lab, "gateway.yaml"))
    until(lambda: '"lab"' in lab.kubectl("get", "nodes", "-o=json"), "the node's registration", 60)
    lab.kubectl("wait", "node/lab", "--for=condition=Ready", READY)
    for where, name in (("kube-system", "coredns"), (GATEWAY_NAMESPACE, "collector")):
        lab.kubectl("--namespace", where, "rollout", "status", f"deployment/{name}", READY)
    lab.kubectl("--namespace", GATEWAY_NAMESPACE, "wait", "gateway/models", "--for=condition=Programmed", READY)


def _apply(lab: "Lab", text: str) -> None:
    lab.kubectl("apply", "--server-side", "--force-conflicts", "--field-manager=lab", "-f", "-", input=text)


def _manifest(lab: "Lab", name: str) -> str:
    identity = json.loads((Layout(lab.folder).telemetry_data / "identity.json").read_text())
    connection = f"InstrumentationKey={identity['instrumentation_key']};IngestionEndpoint={lab.telemetry_url}/"
    return Template((MANIFESTS / name).read_text()).safe_substitute(
        registry=lab.registry, domain=CLUSTER_DOMAIN, dns_address=DNS_ADDRESS, connection_string=connection
    )


def _install_controller(lab: "Lab") -> None:
    try:
        if '"deployed"' in lab.helm("status", RELEASE, "--namespace", CONTROLLER_NAMESPACE, "--output=json"):
            return
    except LabError:
        # Not there yet, which is why we are here.
        pass
    image = f"{lab.registry}/{ENVOY_GATEWAY}"
    repository, _, tag = image.rpartition(":")
    controller = "deployment.envoyGateway"
    values = {
        f"{controller}.image.repository": repository,
        f"{controller}.image.tag": tag,
        f"{controller}.resources.requests.cpu": "20m",
        f"{controller}.resources.requests.memory": "64Mi",
        "config.envoyGateway.provider.kubernetes.shutdownManager.image": image,
    }
    where = ("--namespace", CONTROLLER_NAMESPACE, "--create-namespace")
    settings = [f"--set-string={key}={value}" for key, value in values.items()]
    # One node has no zones to tell apart.
    settings.append("--set=topologyInjector.enabled=false")
    lab.helm("upgrade", "--install", RELEASE, str(chart()), *where, *settings)


def gateway_port(lab: "Lab") -> int:
    """Return the node port at which the gateway is reached."""
    owner = f"gateway.envoyproxy.io/owning-gateway-namespace={GATEWAY_NAMESPACE}"
    services = json.loads(lab.kubectl("get", "services", "--all-namespaces", f"--selector={owner}", "-o=json"))
    return int(services["items"][0]["spec"]["ports"][0]["nodePort"])
