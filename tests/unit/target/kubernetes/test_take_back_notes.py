"""The note that a treatment could not be taken back: an annotation, which is about one decision and may be edited."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from controlled_rollout.cluster.api import Api, ApiError
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.rollout import OnSilence
from controlled_rollout.target.kubernetes.look_notes import LOOKED
from controlled_rollout.target.kubernetes.take_back_notes import (
    MAX_PROBLEM,
    NOTE,
    take_back_problem,
    write_take_back_note,
)
from controlled_rollout.target.protocol import Change, LookNote, Revision
from controlled_rollout.target.silence import FailedTries, TakeBack

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
CANARY = (
    Endpoint(name="digits", revision=3)
    .create_version("one", is_control=True)
    .claim("two", owner="weekly/run-2", at=NOW, on_silence=OnSilence.ROLL_BACK)
    .create_version("two", traffic_percentile=10)
)
NEWEST = Revision(number=3, endpoint=CANARY, change=Change(who="a task"), created=NOW)
assert CANARY.rollout is not None
ORDER = TakeBack(endpoint="digits", rollout=CANARY.rollout, revision=3, looked=None, since=NOW)
TRIES = FailedTries(ORDER, "the API server answers 403", NOW + timedelta(hours=1), count=3)


class Root:
    """The API server, as far as the root object of one endpoint needs it."""

    def __init__(self, *, is_gone: bool = False, status: int = 404) -> None:
        self._error = ApiError("no", status=status, reason="no") if is_gone else None
        self.resource: dict[str, Any] = {"metadata": {"annotations": {}}}

    async def merge_patch(self, path: str, body: dict[str, Any], *, manager: str) -> None:
        if self._error is not None:
            raise self._error
        self.resource["metadata"]["annotations"].update(body["metadata"]["annotations"])


async def test_what_the_agent_could_not_do_is_said_until_somebody_does_something() -> None:
    root = Root()
    await write_take_back_note(cast(Api, root), "models", "digits", TRIES)

    sentence = take_back_problem(root.resource, NEWEST)

    assert sentence == TRIES.sentence
    assert "version 'two' keeps its traffic" in sentence and "has failed 3 times" in sentence and "403" in sentence
    later = NEWEST.model_copy(update={"number": 4})
    assert take_back_problem(root.resource, later) == "", "somebody has shifted, held or ended the rollout"
    look = LookNote(version="two", at=NOW + timedelta(hours=2))
    root.resource["metadata"]["annotations"][LOOKED] = look.model_dump_json()
    assert take_back_problem(root.resource, NEWEST) == "", "somebody looks again"


async def test_a_long_problem_is_cut_and_an_endpoint_that_is_gone_needs_no_note() -> None:
    root = Root()
    await write_take_back_note(cast(Api, root), "models", "digits", FailedTries(ORDER, "x" * 9_000, NOW))
    assert take_back_problem(root.resource, NEWEST).count("x") == MAX_PROBLEM
    await write_take_back_note(cast(Api, Root(is_gone=True)), "models", "digits", TRIES)
    with pytest.raises(ApiError):
        await write_take_back_note(cast(Api, Root(is_gone=True, status=403)), "models", "digits", TRIES)


@pytest.mark.parametrize("root", [None, {}, {"metadata": {}}, {"metadata": {"annotations": {NOTE: "{}"}}}])
def test_a_note_that_is_missing_or_edited_says_nothing(root: dict[str, Any] | None) -> None:
    assert take_back_problem(root, NEWEST) == ""


@pytest.mark.parametrize("edited", [{"count": 0}, {"last": datetime.max.replace(tzinfo=UTC)}])
async def test_a_note_that_was_edited_to_what_cannot_be_keeps_no_status_from_being_read(edited: dict[str, Any]) -> None:
    root = Root()
    await write_take_back_note(cast(Api, root), "models", "digits", replace(TRIES, **edited))
    assert take_back_problem(root.resource, NEWEST) == ""
