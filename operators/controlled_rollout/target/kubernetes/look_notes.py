"""The note that somebody has looked at a treatment: an annotation of the endpoint's root object.

It has the clock of who looked, and the API server notes by its own when it was written: who takes over the checks for
silence, and has not seen the note come, goes by that one if the two differ.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import ValidationError

from controlled_rollout.cluster.api import FIELD_MANAGER, Api, Object
from controlled_rollout.cluster.kinds import CONFIG_MAP
from controlled_rollout.target.kubernetes.names import endpoint_object_name
from controlled_rollout.target.kubernetes.root_notes import notes_of, write_note
from controlled_rollout.target.protocol import LookNote

__all__ = ["look_note_of", "read_look_note", "write_look_note"]

LOOKED: Final = "controlled-rollout/looked"
WRITER: Final = "looks"
# The API server notes whole seconds, and a request takes a while.
SAME_CLOCK: Final = timedelta(seconds=10)


async def write_look_note(api: Api, namespace: str, endpoint: str, version: str, now: datetime) -> None:
    """Write down that somebody looks at a version now; do nothing if the endpoint is gone."""
    note = LookNote(version=version, at=now)
    await write_note(api, namespace, endpoint, LOOKED, note.model_dump_json(), writer=WRITER)


async def read_look_note(api: Api, namespace: str, endpoint: str) -> LookNote | None:
    """Return the last look; None if there was none, or somebody has edited the annotation."""
    return look_note_of(await api.find(CONFIG_MAP.path(namespace, endpoint_object_name(endpoint))))


def look_note_of(root: Object | None) -> LookNote | None:
    """Return the last look that an endpoint's root object has; None if it has none that can be read. Pure.

    Its time is by the API server's clock if that of who looked is wrong.
    """
    try:
        note = LookNote.model_validate_json(notes_of(root).get(LOOKED, ""))
    except ValidationError:
        return None
    written = _written_at(root)
    if written is None or abs(written - note.at) <= SAME_CLOCK:
        return note
    return LookNote(version=note.version, at=written)


def _written_at(root: Object | None) -> datetime | None:
    """Return when the API server has stored the last look, by its clock; None if it does not tell."""
    entries = ((root or {}).get("metadata") or {}).get("managedFields") or []
    times = [entry.get("time") for entry in entries if entry.get("manager") == f"{FIELD_MANAGER}-{WRITER}"]
    try:
        return max(datetime.fromisoformat(str(time)).astimezone(UTC) for time in times)
    except ValueError:
        return None
