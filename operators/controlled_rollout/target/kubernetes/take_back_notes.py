"""The note that a treatment could not be taken back on silence: an annotation of the endpoint's root object."""

from dataclasses import replace
from typing import Final

from pydantic import TypeAdapter

from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.target.kubernetes.look_notes import look_note_of
from controlled_rollout.target.kubernetes.root_notes import notes_of, write_note
from controlled_rollout.target.protocol import Revision
from controlled_rollout.target.silence import FailedTries, Signs

__all__ = ["take_back_problem", "write_take_back_note"]

NOTE: Final = "controlled-rollout/take-back-failed"
# All annotations of an object together may have 256 KiB.
MAX_PROBLEM: Final = 2_000
TRIES: Final = TypeAdapter(FailedTries)


async def write_take_back_note(api: Api, namespace: str, endpoint: str, tries: FailedTries) -> None:
    """Write down that taking a treatment back has failed; do nothing if the endpoint is gone.

    Nobody has to delete it: it is about one decision, and says nothing any more once somebody looks, shifts or ends the
    rollout.
    """
    note = replace(tries, problem=tries.problem[:MAX_PROBLEM])
    await write_note(api, namespace, endpoint, NOTE, TRIES.dump_json(note).decode(), writer="silence")


def take_back_problem(root: Object | None, newest: Revision) -> str:
    """Return why a treatment keeps its traffic although nobody looks at it, as a sentence; empty if that is not so.

    Args:
        root: The endpoint's root object; None if there is none.
        newest: The newest revision.
    """
    try:
        tries = TRIES.validate_json(notes_of(root).get(NOTE, ""))
        return tries.sentence if tries.order.is_right(Signs(newest, look_note_of(root))) else ""
    except (ValueError, OverflowError):  # there is none, or somebody has edited it: also to what no sentence can say
        return ""
