"""An endpoint's two keys: made with its first revision, kept in one private file, never logged."""

from pathlib import Path
from typing import Final, Literal

from controlled_rollout.target.local import files
from controlled_rollout.target.protocol import Keys

__all__ = ["create_if_missing", "read", "regenerate"]

FILE_NAME: Final = "keys.json"


def create_if_missing(endpoint_folder: Path) -> Keys:
    """Return the endpoint's keys, made now if it has none."""
    path = endpoint_folder / FILE_NAME
    if not path.exists():
        files.replace(path, Keys.new().model_dump_json().encode())
    return read(endpoint_folder)


def read(endpoint_folder: Path) -> Keys:
    """Return the endpoint's keys."""
    return Keys.model_validate_json((endpoint_folder / FILE_NAME).read_bytes())


def regenerate(endpoint_folder: Path, which: Literal["primary", "secondary"]) -> Keys:
    """Replace one of the keys; the other stays."""
    keys = read(endpoint_folder).renewed(which)
    files.replace(endpoint_folder / FILE_NAME, keys.model_dump_json().encode())
    return keys
