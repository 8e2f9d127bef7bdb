"""The record: every step and every look at the evidence, appended, oldest first, for each endpoint."""

from controlled_rollout.record.decision import Decision
from controlled_rollout.record.log import append, append_look, last, read, read_newest_first, read_part, storage_of
from controlled_rollout.record.look_input import LookInput, LookSettings

__all__ = [
    "Decision",
    "LookInput",
    "LookSettings",
    "append",
    "append_look",
    "last",
    "read",
    "read_newest_first",
    "read_part",
    "storage_of",
]
