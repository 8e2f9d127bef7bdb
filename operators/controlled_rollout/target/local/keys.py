"""The file of an endpoint's two keys: created with the first revision, readable by its owner, never logged."""

from pathlib import Path
from typing import Final, Literal

from controlled_rollout.target.local import atomic_files
from controlled_rollout.target.protocol import Keys

__all__ = ["create_if_missing", "read", "regenerate"]

FILE_NAME: Final = "keys.json"


def create_if_missing(endpoint_folder: Path) -> None:
    """Create the endpoint's keys unless it has some."""
    path = endpoint_folder / FILE_NAME
    if not path.exists():
        atomic_files.replace(path, Keys.new().model_dump_json().encode())


def read(endpoint_folder: Path) -> Keys:
    """Return the endpoint's keys."""
    return Keys.model_validate_json((endpoint_folder / FILE_NAME).read_bytes())


def regenerate(endpoint_folder: Path, which: Literal["primary", "secondary"]) -> Keys:
    """Replace one of the two keys, and return both."""
    keys = read(endpoint_folder).renewed(which)
    atomic_files.replace(endpoint_folder / FILE_NAME, keys.model_dump_json().encode())
    return keys
