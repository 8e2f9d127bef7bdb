"""Reads a workspace's settings from a YAML or JSON file; the names are those of Airflow's connection."""

from pathlib import Path
from typing import Any, Final

import yaml

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.text_file import read_text_file
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


def read_workspace(file: Path) -> Workspace:
    """Read a workspace from a YAML or JSON file; its name defaults to the file's name without suffix.

    Raises:
        WorkspaceError: The file cannot be read, or a setting is unknown or not valid.
    """
    settings = _read_settings(file)
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


def _read_settings(file: Path) -> dict[str, Any]:
    """Return the file's settings without empty values; raise WorkspaceError if it is not YAML or JSON of a mapping."""
    try:
        content = yaml.safe_load(read_text_file(file))
    except (OSError, ValueError) as error:
        raise WorkspaceError(f"the workspace's file {file} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise WorkspaceError(f"the workspace's file {file} is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict):
        raise WorkspaceError(
            f"the workspace's file {file} holds no settings: write one a line, such as `target: kubernetes`"
        )
    return {str(name): value for name, value in content.items() if value not in (None, "")}
