"""Reads a workspace's settings from a YAML or JSON file; the names are those of Airflow's connection."""

from pathlib import Path
from typing import Any, Final

from controlled_rollout.cli.settings_file import read_settings_file
from controlled_rollout.errors import ArgumentError, WorkspaceError
from controlled_rollout.workspace import Workspace, is_url

__all__ = ["read_workspace"]

# Relative paths start at the file's folder, as in a kube config.
PATHS: Final = (
    "root",
    "cache_folder",
    "storage",
    "kubeconfig",
    "telemetry_token_file",
    "builder_pod_template",
    "tls_certificate",
    "tls_key",
    "endpoint_ca",
)


def read_workspace(file: Path, *, by_schema: bool = True) -> Workspace:
    """Read a workspace from a YAML or JSON file; its name defaults to the file's name without suffix.

    Args:
        file: The file.
        by_schema: Whether its JSON Schema is compared first, which finds all faults, and their lines. Without it the
            first fault is said. It needs a validator, which the agent's image does not have.

    Raises:
        WorkspaceError: The file cannot be read, or a setting is unknown or not valid.
    """
    settings = _read_settings(file, by_schema)
    try:
        for name in PATHS:
            if isinstance(settings.get(name), str) and not is_url(settings[name]):
                settings[name] = str(file.parent.absolute() / Path(settings[name]).expanduser())
        return Workspace.from_settings({"name": file.stem, **settings})
    except WorkspaceError as error:
        raise WorkspaceError(f"{file}: {error}") from error
    except RuntimeError as error:
        raise WorkspaceError(
            f"{file}: {name} = {settings[name]!r} is in a home folder that is not known here ({error}): write the path "
            "without ~"
        ) from error


def _read_settings(file: Path, by_schema: bool) -> dict[str, Any]:
    """Return the file's settings without empty values; raise WorkspaceError if it cannot be read or does not fit."""
    try:
        if by_schema:
            from controlled_rollout.cli.checked_file import read_checked

            return dict(read_checked(file, "workspace").settings)
        settings = read_settings_file(file)
        return {name: value for name, value in settings.items() if value not in (None, "") and name != "$schema"}
    except ArgumentError as error:
        raise WorkspaceError(str(error)) from error
