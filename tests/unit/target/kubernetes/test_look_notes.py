"""The note of a look in a cluster: an annotation, which somebody may have edited."""

from datetime import UTC, datetime
from typing import Any

import pytest

from controlled_rollout.target.kubernetes.look_notes import LOOKED, look_note_of
from controlled_rollout.target.protocol import LookNote

NOTE = LookNote(version="v2a", at=datetime(2026, 1, 5, tzinfo=UTC))


def test_note_is_read_as_it_was_written() -> None:
    assert look_note_of({"metadata": {"annotations": {LOOKED: NOTE.model_dump_json(), "other": "x"}}}) == NOTE


@pytest.mark.parametrize(
    "root",
    [
        None,
        {},
        {"metadata": {}},
        {"metadata": {"annotations": None}},
        {"metadata": {"annotations": {}}},
        {"metadata": {"annotations": {LOOKED: "yesterday"}}},
        {"metadata": {"annotations": {LOOKED: '{"version": "v2a", "at": "2026-01-05 00:00:00"}'}}},
    ],
)
def test_note_that_is_missing_or_edited_is_none(root: dict[str, Any] | None) -> None:
    assert look_note_of(root) is None
