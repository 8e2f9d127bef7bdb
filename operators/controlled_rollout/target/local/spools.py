"""The spools of replicas that collect: what their processes and the collector have to know of them.

A replica appends to a folder of its own, `<endpoint>/<version>/<replica>/`. `spool.json` in it tells the collector
which columns it may keep; the model's process is told none of that.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from controlled_rollout.collection_settings import MEGABYTE, Collection
from controlled_rollout.target.local import atomic_files, secret_files

__all__ = ["end_spools", "has_spools", "prepare_spool"]

SETTINGS_FILE: Final = "spool.json"
SALT_FILE: Final = "salt"
# Tells the collector that the replica never starts again: once all is in the storage, the spool is deleted.
ENDED_FILE: Final = "ended"
# The resource that the old service's file names begin with: there is none on one machine.
NO_RESOURCE: Final = {"subscription": "default", "resource_group": "default", "workspace": "default"}


def prepare_spool(spool: Path, collection: Collection, secrets_folder: Path) -> Mapping[str, str]:
    """Write what the collector has to know into a replica's spool; return the variables that let the replica capture.

    Args:
        spool: The spool's folder, `…/<endpoint>/<version>/<replica>`; it is made if it is not there.
        collection: What is kept of the version's data.
        secrets_folder: The folder of the secrets.

    Raises:
        DamagedFileError: The file of the salt's secret cannot be read.
        OSError: The disk is full, or fails.
        WorkspaceError: The salt's secret is not there any more.
    """
    endpoint, version, replica = spool.parts[-3:]
    salt = secret_files.read_value(secrets_folder, collection.salt) if collection.salt else None
    settings = {
        "endpoint": endpoint,
        "version": version,
        "replica": replica,
        "layout": collection.layout,
        "keep": collection.keep,
        "mask": collection.mask,
        "hash": collection.hash,
        "salt_file": None if salt is None else str(spool / SALT_FILE),
        **NO_RESOURCE,
    }
    atomic_files.create_private_folder(spool)
    if salt is not None:
        atomic_files.write_atomically(spool / SALT_FILE, salt.encode())
    atomic_files.write_atomically(spool / SETTINGS_FILE, json.dumps(settings).encode())
    return {
        "CAPTURE_SPOOL": str(spool),
        "CAPTURE_SHARE": repr(collection.share),
        "CAPTURE_MAX_BODY_BYTES": str(collection.max_body_bytes),
        "CAPTURE_SPOOL_BYTES": str(collection.spool_mb * MEGABYTE),
        "CAPTURE_ENDPOINT": endpoint,
        "CAPTURE_VERSION": version,
        "CAPTURE_REPLICA": replica,
    }


def has_spools(folder: Path) -> bool:
    """Return whether there is a spool in a folder with spools in `<endpoint>/<version>/<replica>/`."""
    return next(folder.glob(f"*/*/*/{SETTINGS_FILE}"), None) is not None


def end_spools(folder: Path) -> None:
    """Tell the collector that the replicas of all spools in a folder, or the one of the spool that it is, have ended.

    A spool whose disk takes no file is told with the next start of the workspace.
    """
    for settings in folder.rglob(SETTINGS_FILE):
        with contextlib.suppress(OSError):
            (settings.parent / ENDED_FILE).touch(mode=0o600)
