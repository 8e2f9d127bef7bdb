"""The folder of a local workspace: created or checked before a supervisor starts there, and made private."""

import os
from pathlib import Path
from typing import Final

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.target.local.atomic_files import create_private_folder

__all__ = ["has_workspace", "prepare_folder"]

# By one of these a folder is a workspace's: a supervisor has run there, or tasks have kept something in it.
MARKS: Final = ("lock", "endpoints", "records", "storage")
# What a new file system has by itself.
NOT_COUNTED: Final = ("lost+found",)
NAMED: Final = 5


def prepare_folder(root: Path) -> None:
    """Create the folder of a local workspace, or check that an existing one can be one; only its owner has access then.

    A folder with other files stays as it is: other users would lose their access to it.

    Raises:
        WorkspaceError: It holds other files and is no workspace, is somebody else's, or cannot be written.
    """
    try:
        others = _other_files(root)
        if others:
            more = ", …" if len(others) > NAMED else ""
            raise WorkspaceError(
                f"the folder {root} holds other files ({', '.join(others[:NAMED])}{more}) and no workspace: name a "
                "folder that is empty or does not exist yet; nothing was changed"
            )
        create_private_folder(root).chmod(0o700)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(0, "it cannot be written", str(root))
    except OSError as error:
        raise WorkspaceError(
            f"no local workspace can be in the folder {root}: {error.strerror or error} ({error.filename}): name "
            "another folder with --root or $CONTROLLED_ROLLOUT_HOME"
        ) from error


def has_workspace(root: Path) -> bool:
    """Return whether a supervisor has ever run in a folder, or tasks have kept something there."""
    return not set(MARKS).isdisjoint(_names_in(root))


def _names_in(folder: Path) -> list[str]:
    """Return the sorted names of the files in a folder; none if there is no such folder."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def _other_files(root: Path) -> list[str]:
    """Return what is in a folder that is no workspace; empty for a workspace, and where there is no such folder."""
    names = _names_in(root)
    if not set(MARKS).isdisjoint(names):
        return []
    return [name for name in names if not name.startswith(".") and name not in NOT_COUNTED]
