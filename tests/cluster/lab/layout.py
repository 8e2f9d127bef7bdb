"""Where everything of a lab is: its folder's parts, its addresses, its names. Values only."""

from dataclasses import dataclass
from pathlib import Path

from .cache import cache_folder

__all__ = [
    "API_SERVER",
    "CLUSTER_DOMAIN",
    "DNS_ADDRESS",
    "GATEWAY",
    "GATEWAY_CLASS",
    "GATEWAY_NAMESPACE",
    "INTERFACE",
    "NODE",
    "NODE_ADDRESS",
    "PODS",
    "PRIVATE_NETWORK",
    "SERVICES",
    "SERVICE_OF_API",
    "SLICE",
    "TELEMETRY_PORT",
    "Layout",
    "default_folder",
]

NODE = "lab"
# One interface of our own carries the node's address: what listens there is seen by pods and by this machine, by
# nobody else, and no port can be taken already.
INTERFACE = "rollout-lab0"
PRIVATE_NETWORK = "10.231.0.0/16"
NODE_ADDRESS = "10.231.0.1"
PODS = "10.231.64.0/24"
SERVICES = "10.231.128.0/20"
SERVICE_OF_API = "10.231.128.1"
DNS_ADDRESS = "10.231.128.10"
CLUSTER_DOMAIN = "cluster.local"
API_SERVER = f"https://{NODE_ADDRESS}:6443"
TELEMETRY_PORT = 7070
# The control group of every process of the lab, and the parent of its pods'.
SLICE = "controlled-rollout-lab"

GATEWAY_NAMESPACE = "gateway"
GATEWAY = f"{GATEWAY_NAMESPACE}/models"
GATEWAY_CLASS = "envoy"


def default_folder() -> Path:
    """Return where a lab lives when nobody says otherwise."""
    return cache_folder() / "run"


@dataclass(frozen=True)
class Layout:
    """The parts of a lab's folder."""

    folder: Path

    @property
    def state(self) -> Path:
        """What is started, and what `down` has to put back."""
        return self.folder / "state.json"

    @property
    def logs(self) -> Path:
        """One file for each process; the pods' are in `pods`."""
        return self.folder / "logs"

    @property
    def configuration(self) -> Path:
        """What the processes are told in files."""
        return self.folder / "etc"

    @property
    def certificates(self) -> Path:
        """Keys and certificates."""
        return self.folder / "pki"

    @property
    def kubeconfig(self) -> Path:
        """The way in for who may do everything."""
        return self.folder / "kubeconfig"

    @property
    def node_kubeconfig(self) -> Path:
        """The kubelet's way in."""
        return self.configuration / "node.kubeconfig"

    @property
    def containerd_socket(self) -> Path:
        """Where containers are asked for; a unix socket's path must stay below 108 characters."""
        return self.folder / "containerd.sock"

    @property
    def telemetry_data(self) -> Path:
        """The telemetry store's folder."""
        return self.folder / "telemetry"

    @property
    def telemetry_token(self) -> Path:
        """The token that queries of the telemetry store must bring."""
        return self.folder / "telemetry-token"

    def data(self, name: str) -> Path:
        """What a process keeps."""
        return self.folder / "data" / name
