"""Reads the users of the registries from the file that `docker login`, `podman login` or `az acr login` has written."""

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from controlled_rollout.errors import WorkspaceError

if TYPE_CHECKING:
    from controlled_rollout.image import Credentials

__all__ = ["registry_users"]


def registry_users(environment: Mapping[str, str] = os.environ) -> "dict[str, Credentials]":
    """Return the credentials of each registry, by host, from the first existing file of `docker login` and the like.

    The files are `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json`, `$XDG_RUNTIME_DIR/containers/auth.json` and
    `~/.docker/config.json`. Users that a credential helper keeps are not found.

    Raises:
        WorkspaceError: The file cannot be read as such a file.
    """
    from controlled_rollout.image import Credentials
    from controlled_rollout.image.reference import host_of_registry_url

    home = environment.get("HOME") or str(Path.home())
    candidates = (
        environment.get("REGISTRY_AUTH_FILE"),
        environment.get("DOCKER_CONFIG") and f"{environment['DOCKER_CONFIG']}/config.json",
        environment.get("XDG_RUNTIME_DIR") and f"{environment['XDG_RUNTIME_DIR']}/containers/auth.json",
        f"{home}/.docker/config.json",
    )
    file = next((Path(path) for path in candidates if path and Path(path).is_file()), None)
    if file is None:
        return {}
    try:
        entries: dict[str, dict[str, str]] = json.loads(file.read_text(encoding="utf-8")).get("auths") or {}
        users = {}
        for address, entry in entries.items():
            if entry.get("auth"):
                name, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
                users[host_of_registry_url(address)] = Credentials(name, password)
    except (OSError, ValueError, AttributeError, TypeError):
        # The error may quote a password.
        raise WorkspaceError(f"the file with the registries' users {file} cannot be read: sign in again") from None
    return users
