"""The note of a look in a cluster: an annotation, which somebody may have edited."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controlled_rollout.target.kubernetes.look_notes import LOOKED, look_note_of
from controlled_rollout.target.protocol import LookNote

NOTE = LookNote(version="v2a", at=datetime(2026, 1, 5, tzinfo=UTC))


def test_note_is_read_as_it_was_written() -> None:
    assert look_note_of({"metadata": {"annotations": {LOOKED: NOTE.model_dump_json(), "other": "x"}}}) == NOTE


@pytest.mark.parametrize(
    ("wrong_by", "believed"),
    [
        (timedelta(hours=-3), False),
        (timedelta(hours=3), False),
        (timedelta(seconds=2), True),
        (timedelta(seconds=-2), True),
    ],
)
def test_a_look_has_the_api_servers_time_if_the_clock_of_who_looked_is_wrong(
    wrong_by: timedelta, *, believed: bool
) -> None:
    stored = datetime(2026, 1, 5, 12, 0, 7, tzinfo=UTC)
    note = LookNote(version="v2a", at=stored + wrong_by)
    entries = [
        {"manager": "controlled-rollout", "time": "2026-01-05T13:00:00Z"},
        {"manager": "controlled-rollout-looks", "time": "2026-01-05T12:00:07Z"},
    ]
    root = {"metadata": {"annotations": {LOOKED: note.model_dump_json()}, "managedFields": entries}}
    assert look_note_of(root) == (note if believed else LookNote(version="v2a", at=stored))


def test_an_edited_time_of_the_api_server_leaves_the_note_as_it_is() -> None:
    entries = [{"manager": "controlled-rollout-looks", "time": "noon"}]
    root = {"metadata": {"annotations": {LOOKED: NOTE.model_dump_json()}, "managedFields": entries}}
    assert look_note_of(root) == NOTE


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
