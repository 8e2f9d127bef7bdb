"""Notes that somebody has looked at a treatment: a small file in each endpoint's folder."""

import contextlib
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError

from controlled_rollout.target.local import atomic_files
from controlled_rollout.target.local.revisions import RevisionStore
from controlled_rollout.target.protocol import LookNote
from controlled_rollout.text_file import read_regular_file
from controlled_rollout.version import check_name

__all__ = ["LookNotes"]

FILE_NAME: Final = "look.json"


class LookNotes:
    """The last look at each endpoint. On a full disk only this process knows it, until there is room again.

    Args:
        revisions: The stored revisions, in whose folders the files are.
    """

    def __init__(self, revisions: RevisionStore) -> None:
        self._revisions = revisions
        self._notes: dict[str, LookNote] = {}

    def write(self, endpoint: str, version: str) -> None:
        """Write down that somebody looks at a version now; do nothing if there is no such endpoint."""
        if not self._revisions.exists(endpoint):
            return
        note = self._notes[endpoint] = LookNote(version=check_name(version), at=datetime.now(UTC))
        path = self._revisions.endpoint_folder(endpoint) / FILE_NAME
        with contextlib.suppress(OSError):
            atomic_files.write_atomically(path, note.model_dump_json().encode(), durable=False)

    def read(self, endpoint: str) -> LookNote | None:
        """Return the last look; None if there was none, or its file cannot be read."""
        if not self._revisions.exists(endpoint):
            self._notes.pop(endpoint, None)
            return None
        if endpoint not in self._notes:
            path = self._revisions.endpoint_folder(endpoint) / FILE_NAME
            with contextlib.suppress(OSError, ValidationError):
                self._notes[endpoint] = LookNote.model_validate_json(read_regular_file(path))
        return self._notes.get(endpoint)
