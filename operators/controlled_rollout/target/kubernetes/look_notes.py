"""The note that somebody has looked at a treatment: an annotation of the endpoint's root object."""

from datetime import datetime
from typing import Final

from pydantic import ValidationError

from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.cluster.kinds import CONFIG_MAP
from controlled_rollout.target.kubernetes.names import endpoint_object_name
from controlled_rollout.target.kubernetes.root_notes import notes_of, write_note
from controlled_rollout.target.protocol import LookNote

__all__ = ["look_note_of", "read_look_note", "write_look_note"]

LOOKED: Final = "controlled-rollout/looked"


async def write_look_note(api: Api, namespace: str, endpoint: str, version: str, now: datetime) -> None:
    """Write down that somebody looks at a version now; do nothing if the endpoint is gone."""
    note = LookNote(version=version, at=now)
    await write_note(api, namespace, endpoint, LOOKED, note.model_dump_json(), writer="looks")


async def read_look_note(api: Api, namespace: str, endpoint: str) -> LookNote | None:
    """Return the last look; None if there was none, or somebody has edited the annotation."""
    return look_note_of(await api.find(CONFIG_MAP.path(namespace, endpoint_object_name(endpoint))))


def look_note_of(root: Object | None) -> LookNote | None:
    """Return the last look that an endpoint's root object has; None if it has none that can be read. Pure."""
    try:
        return LookNote.model_validate_json(notes_of(root).get(LOOKED, ""))
    except ValidationError:
        return None
