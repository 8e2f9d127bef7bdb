"""The file of an endpoint's two keys: created with the first revision, readable by its owner, never logged."""

from pathlib import Path
from typing import Final, Literal

from controlled_rollout.target.local import atomic_files
from controlled_rollout.target.protocol import Keys

__all__ = ["create_keys_if_missing", "read_keys", "replace_key"]

FILE_NAME: Final = "keys.json"


def create_keys_if_missing(endpoint_folder: Path) -> None:
    """Create the keys file of an endpoint with two new keys, unless the file exists."""
    path = endpoint_folder / FILE_NAME
    if not path.exists():
        atomic_files.write_atomically(path, Keys.new().model_dump_json().encode())


def read_keys(endpoint_folder: Path) -> Keys:
    """Read the two keys of an endpoint from its folder."""
    return Keys.model_validate_json((endpoint_folder / FILE_NAME).read_bytes())


def replace_key(endpoint_folder: Path, which: Literal["primary", "secondary"]) -> Keys:
    """Replace one of an endpoint's two keys in its file; return both."""
    keys = read_keys(endpoint_folder).renewed(which)
    atomic_files.write_atomically(endpoint_folder / FILE_NAME, keys.model_dump_json().encode())
    return keys
