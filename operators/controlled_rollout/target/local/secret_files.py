"""The secrets of a local workspace: a file each, readable by its owner, never logged."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controlled_rollout.environment_variables import SecretReference, can_be_variable, check_secret_values
from controlled_rollout.errors import DamagedFileError, WorkspaceError
from controlled_rollout.target.local import atomic_files
from controlled_rollout.text_file import read_regular_file

__all__ = ["keys_of", "read_value", "store"]


def store(folder: Path, name: str, values: Mapping[str, str]) -> None:
    """Store values in a secret, on disk when this returns; other keys of it stay.

    Args:
        folder: The folder of the secrets.
        name: The secret's name.
        values: The values, by key.

    Raises:
        DamagedFileError: The secret's file cannot be read.
        EndpointError: A name is not valid, or a value could be no environment variable.
    """
    check_secret_values(name, values)
    atomic_files.create_private_folder(folder)
    content = {**(_read_values(folder, name) or {}), **values}
    atomic_files.write_atomically(_file(folder, name), json.dumps(content).encode())


def keys_of(folder: Path, name: str) -> set[str] | None:
    """Return the keys of a secret; None if there is no secret of that name.

    Raises:
        DamagedFileError: Its file cannot be read.
    """
    values = _read_values(folder, name)
    return None if values is None else set(values)


def read_value(folder: Path, reference: SecretReference) -> str:
    """Return the value of a key of a secret.

    Raises:
        DamagedFileError: The secret's file cannot be read.
        WorkspaceError: There is no such secret, or no such key in it.
    """
    values = _read_values(folder, reference.secret) or {}
    if reference.key not in values:
        raise WorkspaceError(
            f"the secret {reference.secret!r} with the key {reference.key!r} is not in {folder} any more: store it "
            f"with `controlled-rollout secret {reference.secret} {reference.key}`"
        )
    return values[reference.key]


def _file(folder: Path, name: str) -> Path:
    """Return the path of a secret's file."""
    return folder / f"{name}.json"


def _read_values(folder: Path, name: str) -> dict[str, str] | None:
    """Return the values of a secret by key; None if there is no secret of that name."""
    path = _file(folder, name)
    try:
        content = json.loads(read_regular_file(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        # The text of a JSON error has none of the content.
        raise _damaged_error(path, str(error)) from error
    values: dict[str, Any] = content if isinstance(content, dict) else {"": None}
    if not all(isinstance(value, str) and can_be_variable(value) for value in values.values()):
        raise _damaged_error(path, "it is not a JSON object with texts")
    return values


def _damaged_error(path: Path, reason: str) -> DamagedFileError:
    """Return the error for a secret's file that cannot be read."""
    return DamagedFileError(f"the file {path} cannot be read ({reason}): delete it, and store its values again")
