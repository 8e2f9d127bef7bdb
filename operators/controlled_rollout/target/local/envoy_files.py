"""The paths of the router's configuration files and sockets."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["EnvoyFiles"]


@dataclass(frozen=True, slots=True)
class EnvoyFiles:
    """The paths of the router's configuration files and sockets.

    Attributes:
        folder: A private folder, because the route file holds keys.
    """

    folder: Path

    @property
    def bootstrap(self) -> Path:
        """The path of the configuration that Envoy is started with."""
        return self.folder / "bootstrap.json"

    @property
    def listeners(self) -> Path:
        """The path of the listener discovery file."""
        return self.folder / "listeners.json"

    @property
    def routes(self) -> Path:
        """The path of the route discovery file; it holds keys."""
        return self.folder / "routes.json"

    @property
    def tokens(self) -> Path:
        """The path of the discovery file of the filter that checks tokens; it holds public keys only."""
        return self.folder / "tokens.json"

    @property
    def clusters(self) -> Path:
        """The path of the cluster discovery file."""
        return self.folder / "clusters.json"

    @property
    def certificate(self) -> Path:
        """The path of the secret discovery file with the router's certificate and its key."""
        return self.folder / "certificate.json"

    @property
    def admin_socket(self) -> Path:
        """The path of the unix socket of Envoy's administration interface."""
        return self.folder / "admin.sock"

    @property
    def health_socket(self) -> Path:
        """The path of the unix socket on which the threads that serve callers answer health checks."""
        return self.folder / "health.sock"

    def assignment(self, cluster: str) -> Path:
        """Return the path of the endpoint discovery file that lists one cluster's replicas."""
        return self.folder / f"replicas.{cluster.replace('/', '.')}.json"
