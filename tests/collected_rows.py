"""Reads what versions have collected, part by part, from whatever storage a workspace has."""

import io
from collections import Counter
from typing import Any

import pyarrow.parquet as pq

from controlled_rollout.storage import open_storage
from controlled_rollout.workspace import Workspace

__all__ = ["CollectedRows"]


class CollectedRows:
    """What one endpoint's versions have in a workspace's storage; a part is read once.

    Args:
        workspace: The workspace.
        endpoint: The endpoint's name.
    """

    def __init__(self, workspace: Workspace, endpoint: str) -> None:
        self._storage = open_storage(workspace)
        self._endpoint = endpoint
        self._parts: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def rows(self, version: str, collection: str) -> list[dict[str, Any]]:
        """Return all rows of a version's collection."""
        files = list(self._storage.list(f"collected/{self._endpoint}/{version}/{collection}/"))
        for file in files:
            if (file.name, file.etag) not in self._parts:
                content = self._storage.get(file.name)
                self._parts[file.name, file.etag] = pq.read_table(io.BytesIO(content)).to_pylist()
        return [row for file in files for row in self._parts[file.name, file.etag]]

    def requests(self, version: str, collection: str) -> Counter[str]:
        """Return how often each request is in a version's collection, by the caller's correlation id."""
        return Counter(row["$correlation_id"] for row in self.rows(version, collection))

    def states(self, version: str) -> list[bytes]:
        """Return the files in which the collectors of a version say how far they are."""
        files = self._storage.list(f"collected/{self._endpoint}/{version}/_state/")
        return [self._storage.get(file.name) for file in files]
