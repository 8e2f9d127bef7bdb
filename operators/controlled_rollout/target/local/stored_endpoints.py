"""What the files of all endpoints say now: newest revision and keys, or why an endpoint has to be closed."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import DamagedFileError, EndpointNotFoundError
from controlled_rollout.target.local.keys import keys_file, read_keys
from controlled_rollout.target.local.revisions import RevisionStore
from controlled_rollout.target.local.signing_keys import read_signing_keys, signing_keys_file
from controlled_rollout.target.protocol import Keys

__all__ = ["FileSignature", "StoredEndpoint", "StoredEndpoints"]

# What tells a file's contents apart without reading them: number of the newest revision, then times, size and inode.
FileSignature = tuple[tuple[str, int, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class StoredEndpoint:
    """One endpoint as its files define it.

    Attributes:
        name: The endpoint's name.
        revision: The number of its newest revision; 0 if that is not known.
        endpoint: Its newest revision; None if the file cannot be read.
        keys: The keys that callers may use; None if callers need none, or the file cannot be read.
        damage: Which file cannot be read, and what to do; None if all of them can. The endpoint is closed meanwhile.
        key_set: The public parts of its signing keys; None if it has none, or the file cannot be read.
    """

    name: str
    revision: int
    endpoint: Endpoint | None
    keys: Keys | None
    damage: str | None
    key_set: str | None = None


class StoredEndpoints:
    """Reads the files of all endpoints; a file that cannot be read concerns its own endpoint only.

    Args:
        revisions: The folder of the endpoints.
    """

    def __init__(self, revisions: RevisionStore) -> None:
        self._revisions = revisions

    def read_all(self) -> dict[str, StoredEndpoint]:
        """Return every endpoint as its files define it now, by name."""
        stored = {}
        for name in self._revisions.endpoints():
            # Somebody may remove a folder by hand in between.
            with contextlib.suppress(EndpointNotFoundError):
                stored[name] = self.read(name)
        return stored

    def read(self, name: str) -> StoredEndpoint:
        """Return one endpoint as its files define it now.

        Raises:
            EndpointNotFoundError: There is no such endpoint.
        """
        endpoint: Endpoint | None = None
        try:
            newest = self._revisions.newest(name)
            if newest is None:
                raise self._revisions.not_found_error(name)
            endpoint = newest.endpoint
            folder = self._revisions.endpoint_folder(name)
            keys = read_keys(folder) if endpoint.auth is Auth.KEY else None
            key_set = read_signing_keys(folder)[1] if endpoint.has_signing_keys else None
        except DamagedFileError as error:
            number = self._revisions.newest_number(name)
            return StoredEndpoint(name, number, endpoint, None, f"endpoint {name!r} is closed: {error}")
        return StoredEndpoint(name, endpoint.revision, endpoint, keys, None, key_set)

    def signature(self) -> FileSignature:
        """Return a value that changes when the newest revision or a key of any endpoint change on disk."""
        signatures = []
        for name in self._revisions.endpoints():
            number = self._revisions.newest_number(name)
            revision = self._revisions.revision_file(name, number)
            folder = self._revisions.endpoint_folder(name)
            files = (revision, keys_file(folder), signing_keys_file(folder))
            of_revision, of_keys, of_signing_keys = map(_file_signature, files)
            signatures.append((name, number, of_revision, of_keys, of_signing_keys))
        return tuple(signatures)


def _file_signature(path: Path) -> tuple[int, ...]:
    """Return times, size, inode and permissions of a file; empty if there is none."""
    try:
        entry = os.stat(path)
    except OSError:
        return ()
    return (entry.st_mtime_ns, entry.st_ctime_ns, entry.st_size, entry.st_ino, entry.st_mode)
