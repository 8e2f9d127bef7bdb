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
        """The configuration that Envoy is started with."""
        return self.folder / "bootstrap.json"

    @property
    def listeners(self) -> Path:
        """Listener discovery."""
        return self.folder / "listeners.json"

    @property
    def routes(self) -> Path:
        """Route discovery; holds keys."""
        return self.folder / "routes.json"

    @property
    def clusters(self) -> Path:
        """Cluster discovery."""
        return self.folder / "clusters.json"

    @property
    def admin_socket(self) -> Path:
        """The unix socket of Envoy's administration interface."""
        return self.folder / "admin.sock"

    def assignment(self, cluster: str) -> Path:
        """Return the file of endpoint discovery of one cluster."""
        return self.folder / f"replicas.{cluster.replace('/', '.')}.json"
