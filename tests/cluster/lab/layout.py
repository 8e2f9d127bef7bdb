"""The folder, the addresses and the names of a lab. Values only."""

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
# The node's address is on an interface of its own: only pods and this machine can reach listeners there, and no other
# program uses its ports.
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
# The control group of every process of the lab, and the parent of the groups of its pods.
SLICE = "controlled-rollout-lab"

GATEWAY_NAMESPACE = "gateway"
GATEWAY = f"{GATEWAY_NAMESPACE}/models"
GATEWAY_CLASS = "envoy"


def default_folder() -> Path:
    """Return the default folder of a lab."""
    return cache_folder() / "run"


@dataclass(frozen=True)
class Layout:
    """The parts of a lab's folder."""

    folder: Path

    @property
    def state(self) -> Path:
        """The started processes, and the settings that `down` restores."""
        return self.folder / "state.json"

    @property
    def logs(self) -> Path:
        """One log for each process; those of pods are in `pods`."""
        return self.folder / "logs"

    @property
    def configuration(self) -> Path:
        """The configuration files of the processes."""
        return self.folder / "etc"

    @property
    def certificates(self) -> Path:
        """Keys and certificates."""
        return self.folder / "pki"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.folder / "kubeconfig"

    @property
    def node_kubeconfig(self) -> Path:
        """The kubelet's kubeconfig."""
        return self.configuration / "node.kubeconfig"

    @property
    def containerd_socket(self) -> Path:
        """The socket of containerd; the path of a unix socket must be shorter than 108 characters."""
        return self.folder / "containerd.sock"

    @property
    def telemetry_data(self) -> Path:
        """The telemetry store's folder."""
        return self.folder / "telemetry"

    @property
    def telemetry_token(self) -> Path:
        """The bearer token of queries of the telemetry store."""
        return self.folder / "telemetry-token"

    def data(self, name: str) -> Path:
        """Return the data folder of a process."""
        return self.folder / "data" / name
