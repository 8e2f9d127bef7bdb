"""The file of an endpoint's signing keys: readable by its owner, never logged; the router gets the public part only."""

from pathlib import Path
from typing import Final

from pydantic import ValidationError

from controlled_rollout.errors import DamagedFileError
from controlled_rollout.target.local import atomic_files
from controlled_rollout.target.local.reserve import Reserve
from controlled_rollout.text_file import read_regular_file
from controlled_rollout.tokens import SigningKeys, key_set

__all__ = ["create_signing_keys_if_missing", "read_signing_keys", "rotate_signing_keys", "signing_keys_file"]

FILE_NAME: Final = "signing-keys.json"


def signing_keys_file(endpoint_folder: Path) -> Path:
    """Return the path of the file of the signing keys in an endpoint's folder."""
    return endpoint_folder / FILE_NAME


def create_signing_keys_if_missing(endpoint_folder: Path) -> None:
    """Create the file of the signing keys of an endpoint, unless the file exists."""
    path = signing_keys_file(endpoint_folder)
    if not path.exists():
        _write_keys(path, SigningKeys.new())


def read_signing_keys(endpoint_folder: Path) -> tuple[SigningKeys, str]:
    """Read the signing keys of an endpoint; return them, and the key set of their public parts.

    Raises:
        DamagedFileError: The file is not there, cannot be read, or does not hold all keys.
    """
    path = signing_keys_file(endpoint_folder)
    try:
        keys = SigningKeys.model_validate_json(read_regular_file(path))
        return keys, key_set(keys)
    except OSError as error:
        raise _damaged_error(path, error.strerror or str(error)) from error
    except ValidationError as error:
        # The error's own text would show what the file holds.
        raise _damaged_error(path, "it is not a JSON document with four keys") from error
    except ValueError as error:
        raise _damaged_error(path, str(error)) from error


def rotate_signing_keys(endpoint_folder: Path, *, reserve: Reserve | None = None) -> SigningKeys:
    """Move each signing key a place on in their file, or make new ones if it cannot be read; return them.

    Args:
        endpoint_folder: The endpoint's folder.
        reserve: The space to use if the disk is full; None for none.

    Raises:
        OSError: The file could not be written; it is unchanged.
    """
    try:
        keys = read_signing_keys(endpoint_folder)[0].rotated()
    except DamagedFileError:
        keys = SigningKeys.new()
    _write_keys(signing_keys_file(endpoint_folder), keys, reserve)
    return keys


def _write_keys(path: Path, keys: SigningKeys, reserve: Reserve | None = None) -> None:
    """Write all keys to their file, on disk when this returns."""
    atomic_files.write_atomically(path, keys.model_dump_json().encode(), reserve=reserve)


def _damaged_error(path: Path, reason: str) -> DamagedFileError:
    """Return the error for a file of signing keys that cannot be read, with the ways to repair it."""
    return DamagedFileError(
        f"the file {path} cannot be read ({reason}): restore it, or make new keys with "
        f"`controlled-rollout keys rotate {path.parent.name}`; tokens of before are refused then"
    )
