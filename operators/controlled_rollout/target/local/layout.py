"""Where the router's files and sockets lie."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Layout"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the router's files and sockets lie.

    Attributes:
        folder: A private folder: route files hold keys.
    """

    folder: Path

    @property
    def bootstrap_file(self) -> Path:
        """What Envoy is started with."""
        return self.folder / "bootstrap.json"

    @property
    def listeners_file(self) -> Path:
        """Listener discovery."""
        return self.folder / "listeners.json"

    @property
    def routes_file(self) -> Path:
        """Route discovery; holds keys."""
        return self.folder / "routes.json"

    @property
    def clusters_file(self) -> Path:
        """Cluster discovery."""
        return self.folder / "clusters.json"

    @property
    def admin_socket(self) -> Path:
        """Envoy's administration interface."""
        return self.folder / "admin.sock"

    def assignment_file(self, cluster: str) -> Path:
        """Endpoint discovery of one cluster."""
        return self.folder / f"replicas.{cluster.replace('/', '.')}.json"
