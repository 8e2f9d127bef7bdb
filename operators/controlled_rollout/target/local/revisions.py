"""The stored revisions of endpoints: one immutable file each, created only under the next number."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import DamagedFileError, EndpointError, EndpointNotFoundError, TargetUnavailableError
from controlled_rollout.target import refusals
from controlled_rollout.target.local import atomic_files, keys, signing_keys
from controlled_rollout.target.local.reserve import Reserve, may_use_reserve
from controlled_rollout.target.protocol import Change, Keys, Revision
from controlled_rollout.text_file import read_regular_file
from controlled_rollout.tokens import SigningKeys
from controlled_rollout.version import check_name

__all__ = ["RevisionStore"]

KEPT_REVISIONS: Final = 500
FILE_NAME: Final = re.compile(r"(\d{8})\.json")
# A deleted endpoint's folder is renamed before its files are removed: the endpoint is gone in one step.
DELETED_PREFIX: Final = ".deleted-"


class RevisionStore:
    """The revisions of all endpoints in one folder: `<folder>/<endpoint>/revisions/00000001.json`.

    Args:
        folder: The folder.
        reserve: The space that a change may use that goes back, if the disk is full; None for none.
    """

    def __init__(self, folder: Path, reserve: Reserve | None = None) -> None:
        self._folder = folder
        self._reserve = reserve

    def endpoint_folder(self, name: str) -> Path:
        """Return the folder of an endpoint; it may not exist."""
        return self._folder / check_name(name)

    def revision_file(self, name: str, number: int) -> Path:
        """Return the path of the file of one revision."""
        return self.endpoint_folder(name) / "revisions" / f"{number:08d}.json"

    def endpoints(self) -> list[str]:
        """Return the names of all endpoints that have a revision, sorted."""
        if not self._folder.is_dir():
            return []
        return sorted(entry.name for entry in self._folder.iterdir() if self.exists(entry.name))

    def exists(self, name: str) -> bool:
        """Return whether an endpoint has a revision, readable or not; False for what cannot be an endpoint's name."""
        try:
            return bool(self._revision_numbers(name))
        except EndpointError:
            return False
        except DamagedFileError:
            return True

    def newest_number(self, name: str) -> int:
        """Return the number of an endpoint's newest revision file; 0 if there is none, or it cannot be listed."""
        try:
            return max(self._revision_numbers(name), default=0)
        except DamagedFileError:
            return 0

    def newest(self, name: str) -> Revision | None:
        """Return an endpoint's newest revision; None if there is no such endpoint.

        Raises:
            DamagedFileError: Its file cannot be read.
        """
        numbers = self._revision_numbers(name)
        return self._read_revision(name, numbers[-1]) if numbers else None

    def history(self, name: str) -> list[Revision]:
        """Return all kept revisions of an endpoint, oldest first; only those after the newest that cannot be read.

        Raises:
            EndpointNotFoundError: There is no such endpoint.
            DamagedFileError: The file of the newest cannot be read.
        """
        numbers = self._revision_numbers(name)
        if not numbers:
            raise self.not_found_error(name)
        history = [self._read_revision(name, numbers[-1])]
        with contextlib.suppress(DamagedFileError):
            for number in reversed(numbers[:-1]):
                history.insert(0, self._read_revision(name, number))
        return history

    def not_found_error(self, name: str) -> EndpointNotFoundError:
        """Return the error for an endpoint that does not exist, with the names of those that do."""
        return refusals.not_found_error(name, self.endpoints())

    def already_stored(self, endpoint: Endpoint) -> Endpoint | None:
        """Return the newest stored endpoint if it equals `endpoint`; None if `endpoint` may be stored as the next one.

        Raises:
            ConflictError: It was made from a revision that is not the newest.
        """
        return refusals.already_stored(endpoint, self.newest(endpoint.name))

    def store(self, endpoint: Endpoint, change: Change) -> Revision:
        """Store `endpoint` as the next revision, with new keys if it is the first, and signing keys if it needs them.

        Raises:
            ConflictError: Another endpoint is stored under that number.
            TargetUnavailableError: The file could not be written; nothing was changed.
        """
        newest = self.newest(endpoint.name)
        reserve = self._reserve if newest and may_use_reserve(newest.endpoint, endpoint) else None
        revision = Revision.after(endpoint, change)
        folder = self.endpoint_folder(endpoint.name)
        content = revision.model_dump_json(indent=1).encode()
        try:
            atomic_files.create_private_folder(folder / "revisions")
            if revision.number == 1:
                keys.create_keys_if_missing(folder)
            if endpoint.has_signing_keys:
                signing_keys.create_signing_keys_if_missing(folder)
            atomic_files.create_atomically(self.revision_file(endpoint.name, revision.number), content, reserve=reserve)
        except FileExistsError as error:
            raise refusals.conflict_error(endpoint, self.newest(endpoint.name)) from error
        except OSError as error:
            if not self._revision_numbers(endpoint.name):
                shutil.rmtree(folder, ignore_errors=True)
            raise TargetUnavailableError(
                f"revision {revision.number} of endpoint {endpoint.name!r} could not be stored in {folder}: "
                f"{error.strerror or error}; nothing was changed: free disk space there and apply it again"
            ) from error
        self._remove_oldest_revisions(endpoint.name)
        if self._reserve:
            self._reserve.fill()
        return revision

    def replace_key(self, name: str, which: Literal["primary", "secondary"]) -> Keys:
        """Replace one of an endpoint's two keys, or both if their file cannot be read; return both.

        Raises:
            TargetUnavailableError: The file could not be written; nothing was changed.
        """
        with self._writing_key(f"the new {which} key", name):
            renewed = keys.replace_key(self.endpoint_folder(name), which, reserve=self._reserve)
        return renewed

    def rotate_signing_keys(self, name: str) -> SigningKeys:
        """Move each of an endpoint's signing keys a place on, or make new ones if their file cannot be read.

        Raises:
            TargetUnavailableError: The file could not be written; nothing was changed.
        """
        with self._writing_key("the new signing key", name):
            rotated = signing_keys.rotate_signing_keys(self.endpoint_folder(name), reserve=self._reserve)
        return rotated

    @contextlib.contextmanager
    def _writing_key(self, what: str, name: str) -> Iterator[None]:
        """Context manager: raise TargetUnavailableError if a key of an endpoint cannot be written."""
        try:
            yield
        except OSError as error:
            raise TargetUnavailableError(
                f"{what} of endpoint {name!r} could not be stored in {self.endpoint_folder(name)}: "
                f"{error.strerror or error}; nothing was changed: make room there, or make the folder writable, and "
                "try again"
            ) from error
        if self._reserve:
            self._reserve.fill()

    def delete(self, name: str) -> None:
        """Delete an endpoint's revisions and keys in one step; an endpoint that is not there is no error."""
        folder = self.endpoint_folder(name)
        if not folder.exists():
            return
        try:
            folder.rename(self._folder / f"{DELETED_PREFIX}{name}-{os.urandom(4).hex()}")
        except OSError as error:
            raise TargetUnavailableError(
                f"endpoint {name!r} could not be deleted from {self._folder}: {error.strerror or error}; "
                "nothing was changed: make the folder writable and delete it again"
            ) from error
        atomic_files.sync_folder(self._folder)
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Remove the files of deleted endpoints, and temporary files of a killed supervisor."""
        for leftover in self._folder.glob(f"{DELETED_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for unfinished in self._folder.glob("*/**/.*.json.*"):
            with contextlib.suppress(OSError):
                unfinished.unlink()

    def _revision_numbers(self, name: str) -> list[int]:
        """Return the numbers of the kept revisions of an endpoint, sorted; empty if there is no such endpoint."""
        folder = self.endpoint_folder(name) / "revisions"
        try:
            entries = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise DamagedFileError(
                f"the folder {folder} cannot be read ({error.strerror or error}): make it readable"
            ) from error
        return sorted(int(match[1]) for entry in entries if (match := FILE_NAME.fullmatch(entry)))

    def _read_revision(self, name: str, number: int) -> Revision:
        """Read one revision from its file; raise DamagedFileError if the file does not hold it."""
        path = self.revision_file(name, number)
        try:
            revision = Revision.model_validate_json(read_regular_file(path))
        except ValidationError as error:
            raise _damaged_revision_error(path, str(error.errors(include_input=False)[0]["msg"])) from error
        except OSError as error:
            raise _damaged_revision_error(path, error.strerror or str(error)) from error
        found = (revision.endpoint.name, revision.number, revision.endpoint.revision)
        if found != (name, number, number):
            raise _damaged_revision_error(path, f"it holds revision {found[1]} of endpoint {found[0]!r}")
        return revision

    def _remove_oldest_revisions(self, name: str) -> None:
        """Delete the oldest revisions of an endpoint beyond the `KEPT_REVISIONS` newest."""
        for number in self._revision_numbers(name)[:-KEPT_REVISIONS]:
            self.revision_file(name, number).unlink(missing_ok=True)


def _damaged_revision_error(path: Path, reason: str) -> DamagedFileError:
    """Return the error for a revision file that cannot be read, with the ways to repair it."""
    return DamagedFileError(
        f"the file {path} cannot be read ({reason}): restore it; or remove it, then the revision before it is the "
        "newest; or delete the endpoint"
    )
