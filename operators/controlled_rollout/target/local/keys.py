"""The file of an endpoint's two keys: created with the first revision, readable by its owner, never logged."""

import re
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from controlled_rollout.errors import DamagedFileError
from controlled_rollout.target.local import atomic_files
from controlled_rollout.target.local.reserve import Reserve
from controlled_rollout.target.protocol import Keys
from controlled_rollout.text_file import read_regular_file

__all__ = ["create_keys_if_missing", "keys_file", "read_keys", "replace_key"]

FILE_NAME: Final = "keys.json"
# What a header can carry; the router would refuse an empty key, and with it the routes of all endpoints.
KEY: Final = re.compile(r"[!-~]{8,}")


def keys_file(endpoint_folder: Path) -> Path:
    """Return the path of the keys file in an endpoint's folder."""
    return endpoint_folder / FILE_NAME


def create_keys_if_missing(endpoint_folder: Path) -> None:
    """Create the keys file of an endpoint with two new keys, unless the file exists."""
    path = keys_file(endpoint_folder)
    if not path.exists():
        _write_keys(path, Keys.new())


def read_keys(endpoint_folder: Path) -> Keys:
    """Read the two keys of an endpoint from its folder.

    Raises:
        DamagedFileError: The file is not there, cannot be read, or does not hold two keys.
    """
    path = keys_file(endpoint_folder)
    try:
        keys = Keys.model_validate_json(read_regular_file(path))
    except OSError as error:
        raise _damaged_keys_error(path, error.strerror or str(error)) from error
    except ValidationError as error:
        # The error's own text would show what the file holds.
        raise _damaged_keys_error(path, "it is not a JSON document with two keys") from error
    if not all(KEY.fullmatch(key) for key in (keys.primary, keys.secondary)):
        raise _damaged_keys_error(path, "a key needs 8 or more visible ASCII characters")
    if keys.primary == keys.secondary:
        raise _damaged_keys_error(path, "its two keys are the same")
    return keys


def replace_key(
    endpoint_folder: Path, which: Literal["primary", "secondary"], *, reserve: Reserve | None = None
) -> Keys:
    """Replace one of an endpoint's two keys in its file, or both if the file cannot be read; return both.

    Args:
        endpoint_folder: The endpoint's folder.
        which: The key to replace.
        reserve: The space to use if the disk is full; None for none.

    Raises:
        OSError: The file could not be written; it is unchanged.
    """
    try:
        keys = read_keys(endpoint_folder).renewed(which)
    except DamagedFileError:
        keys = Keys.new()
    _write_keys(keys_file(endpoint_folder), keys, reserve)
    return keys


def _write_keys(path: Path, keys: Keys, reserve: Reserve | None = None) -> None:
    """Write both keys to the keys file, on disk when this returns."""
    atomic_files.write_atomically(path, keys.model_dump_json().encode(), reserve=reserve)


def _damaged_keys_error(path: Path, reason: str) -> DamagedFileError:
    """Return the error for a keys file that cannot be read, with the ways to repair it."""
    return DamagedFileError(
        f"the file {path} cannot be read ({reason}): restore it, or make two new keys with "
        f"`controlled-rollout keys {path.parent.name} --regenerate primary`"
    )
