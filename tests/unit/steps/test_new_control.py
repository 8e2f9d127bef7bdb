"""What a promotion rests on: the last judgement at the last share, or nothing but the person who has promoted."""

from datetime import UTC, datetime
from typing import Any

import pytest

from controlled_rollout.record import Decision
from controlled_rollout.steps.new_control import judgement_before


def decisions(*newest_first: Any) -> list[Decision]:
    """Return decisions about a version: `look_…` is a look with that outcome, `again` a promotion by somebody else."""
    return [
        Decision(
            time=datetime(2026, 1, 5, tzinfo=UTC), endpoint="digits", version="new",
            who="judge/run-9/task" if step == "again" else "weekly/run-1/task",
            step="look" if step.startswith("look_") else "promote" if step == "again" else step,
            reason=f"{len(newest_first) - place}",
            outcome=step.removeprefix("look_") if step.startswith("look_") else None,
        )
        for place, step in enumerate(newest_first)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("newest_first", "rests_on"),
    [
        (("promote", "look_pass", "go_on", "look_pass", "shift", "deploy"), "4"),
        (("promote", "go_on", "shift", "approve", "ask", "shift"), "5"),
        (("promote", "approve", "ask", "hold", "shift"), "4"),
        (("promote", "hold", "shift", "go_on", "shift", "deploy"), None),
        (("promote", "look_not_enough_evidence", "shift", "go_on"), None),
        (("promote", "look_fail", "go_on", "shift"), None),
        (("promote", "deploy", "promote", "go_on"), None),
        (("promote", "promote", "look_pass", "go_on"), "1"),
        (("again", "promote", "go_on"), None),
        ((), None),
    ],
)
def test_a_promotion_rests_on_the_judgement_at_the_last_share_only(
    newest_first: tuple[str, ...], rests_on: str | None
) -> None:
    found = judgement_before(decisions(*newest_first))
    assert (found.reason if found else None) == rests_on
