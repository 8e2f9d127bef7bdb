"""What is installed in the lab's cluster: CoreDNS, Envoy Gateway, and the collector that ships spans to telemetry."""

import json
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from tests.polling import wait_until

from .errors import LabError
from .images import ENVOY_GATEWAY
from .layout import CLUSTER_DOMAIN, DNS_ADDRESS, GATEWAY, GATEWAY_NAMESPACE, Layout
from .programs import chart

if TYPE_CHECKING:
    from .cluster import Lab

__all__ = ["DEPLOYMENTS", "gateway_port", "install", "is_running", "kill", "start"]

MANIFESTS = Path(__file__).parent / "manifests"
CONTROLLER_NAMESPACE = "envoy-gateway-system"
# Deployments that tests can kill by name, and their namespaces.
DEPLOYMENTS = {"coredns": "kube-system", "collector": GATEWAY_NAMESPACE, "envoy-gateway": CONTROLLER_NAMESPACE}
RELEASE = "gateway"
READY = "--timeout=120s"


def install(lab: "Lab") -> None:
    """Install what is missing, and wait until everything serves.

    Raises:
        LabError: The cluster refused something, or something was not ready in time.
    """
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": GATEWAY_NAMESPACE}}
    _apply(lab, json.dumps(namespace))
    _apply(lab, _manifest(lab, "dns.yaml"))
    _apply(lab, _manifest(lab, "collector.yaml"))
    _install_controller(lab)
    _apply(lab, _manifest(lab, "gateway.yaml"))
    wait_until(
        lambda: '"lab"' in lab.kubectl("get", "nodes", "-o=json"),
        "the node's registration",
        timeout_s=60,
        interval_s=0.25,
        error=LabError,
    )
    lab.kubectl("wait", "node/lab", "--for=condition=Ready", READY)
    for name, namespace_of in DEPLOYMENTS.items():
        lab.kubectl("--namespace", namespace_of, "rollout", "status", f"deployment/{name}", READY)
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
        # It is not installed yet.
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
    # One node has one zone.
    settings.append("--set=topologyInjector.enabled=false")
    lab.helm("upgrade", "--install", RELEASE, str(chart()), *where, *settings)


def gateway_port(lab: "Lab") -> int:
    """Return the node port of the gateway; a test may have a Gateway of its own beside it."""
    label = "gateway.envoyproxy.io/owning-gateway"
    owner = f"{label}-namespace={GATEWAY_NAMESPACE},{label}-name={GATEWAY.rpartition('/')[2]}"
    services = json.loads(lab.kubectl("get", "services", "--all-namespaces", f"--selector={owner}", "-o=json"))
    return int(services["items"][0]["spec"]["ports"][0]["nodePort"])


def kill(lab: "Lab", name: str) -> None:
    """Kill the pods of a Deployment without a grace period, and scale it to zero.

    Raises:
        LabError: The cluster refuses it.
    """
    _scale(lab, name, 0)
    lab.kubectl(*_where(name), "delete", "pods", f"--selector={_selector(lab, name)}", "--grace-period=0", "--force")


def start(lab: "Lab", name: str) -> None:
    """Scale a Deployment to one pod, and wait until it is ready.

    Raises:
        LabError: It was not ready in time.
    """
    _scale(lab, name, 1)
    lab.kubectl(*_where(name), "rollout", "status", f"deployment/{name}", READY)


def is_running(lab: "Lab", name: str) -> bool:
    """Whether a Deployment has a ready pod."""
    status = json.loads(lab.kubectl(*_where(name), "get", f"deployment/{name}", "-o=json"))["status"]
    return bool(status.get("readyReplicas"))


def _where(name: str) -> tuple[str, str]:
    return "--namespace", DEPLOYMENTS[name]


def _scale(lab: "Lab", name: str, replicas: int) -> None:
    lab.kubectl(*_where(name), "scale", f"deployment/{name}", f"--replicas={replicas}")


def _selector(lab: "Lab", name: str) -> str:
    spec = json.loads(lab.kubectl(*_where(name), "get", f"deployment/{name}", "-o=json"))["spec"]
    return ",".join(f"{label}={value}" for label, value in spec["selector"]["matchLabels"].items())
