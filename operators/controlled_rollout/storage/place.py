"""Which storage a workspace has."""

from pathlib import Path

from controlled_rollout.storage.blobs import BlobFiles
from controlled_rollout.storage.folder import FolderFiles
from controlled_rollout.storage.protocol import Storage
from controlled_rollout.workspace import Workspace, is_url

__all__ = ["open_storage", "storage_at"]


def open_storage(workspace: Workspace) -> Storage:
    """Return the storage of a workspace; nothing is read or created yet."""
    return storage_at(workspace.storage_place)


def storage_at(place: str) -> Storage:
    """Return the storage in a folder, or at an address in Azure Blob Storage that `Workspace` has accepted."""
    return BlobFiles(place) if is_url(place) else FolderFiles(Path(place))
