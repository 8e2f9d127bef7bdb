"""What is collected is judged only if all of it is there: late, dropped, missing and unreadable data is named."""

import json
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.collected.completeness import Collected, ReplicaState, incomplete, replica_state
from tests.unit.evidence.collected_parts import MINUTE, T0, S

UNTIL = T0 + 10 * MINUTE
NOW = T0 + 11 * MINUTE
BEFORE = T0 - 60 * MINUTE
SHIPPED = ReplicaState("v2-1", NOW, 0, 0, None, BEFORE, 0, False, NOW)
ANSWERED = [Collected(T0 + minute * MINUTE, 100, 100) for minute in range(10)]


def problem(*states: ReplicaState, bins: list[Collected] = ANSWERED, share: float = 1.0) -> str:
    return incomplete("v2", states, bins, share=share, started=T0, until=UNTIL, now=NOW)


def some(collected: int, answered: int = 100) -> list[Collected]:
    return [*ANSWERED[:-1], Collected(T0 + 9 * MINUTE, answered, collected)]


def test_complete_data_is_judged() -> None:
    assert problem(SHIPPED) == ""
    assert problem(replace(SHIPPED, final=True, shipped_until=T0), SHIPPED) == ""
    # What a replica is collecting just now is not judged yet.
    assert problem(replace(SHIPPED, shipped_until=UNTIL, pending_bytes=10**9)) == ""


def test_a_replica_that_has_not_shipped_is_late() -> None:
    late = replace(SHIPPED, shipped_until=UNTIL - 90 * S, pending_bytes=12_345)
    assert "replica v2-1 has shipped what it collected up to 12:08:30, 90 s less" in problem(late)
    assert "12,345 bytes wait" in problem(late)
    assert "2 replicas are late" in problem(late, SHIPPED, replace(late, replica="v2-2"))


def test_a_replica_without_requests_is_not_late() -> None:
    """Its state is written only now and then."""
    idle = replace(SHIPPED, shipped_until=T0 + 9 * MINUTE)
    assert problem(idle, bins=some(0, answered=0)) == ""
    assert "is late" in problem(idle, bins=some(1, answered=1))
    assert "is late" in problem(replace(idle, pending_bytes=1), bins=some(0, answered=0))


def test_a_replica_that_went_without_a_word_does_not_keep_the_gate_waiting_for_ever() -> None:
    """Its node may be lost. What of it is missing shows in the number of requests."""
    gone = replace(SHIPPED, updated=T0, shipped_until=T0)
    assert problem(gone, SHIPPED) == ""
    assert "900 requests are in the storage" in problem(gone, SHIPPED, bins=some(0))


def test_what_was_dropped_since_the_rollout_began_is_named() -> None:
    assert "7 records of version 'v2' were dropped and 2 were unreadable (replica v2-1)" in problem(
        replace(SHIPPED, dropped=7, unreadable=2, lost_at=T0 + S)
    )
    assert problem(replace(SHIPPED, dropped=7, lost_at=T0 - S)) == ""
    assert problem(replace(SHIPPED, dropped=7)) == ""  # not since the collector looks
    assert "7 records" in problem(replace(SHIPPED, dropped=7, watched_since=T0 + S))  # it is not known when


def test_replicas_that_ended_before_the_rollout_do_not_count() -> None:
    old = replace(SHIPPED, final=True, dropped=5, updated=T0 - S, shipped_until=T0 - S)
    assert problem(old, SHIPPED) == ""
    assert "no replica of version 'v2' has reported" in problem(old)


def test_a_version_that_hardly_anybody_called_need_not_have_reported() -> None:
    assert problem(bins=[Collected(T0, 3, 0)]) == ""
    assert problem(bins=[]) == ""


@pytest.mark.parametrize(
    ("bins", "share", "missing"),
    [
        (some(100), 1.0, False),
        (some(93), 1.0, False),
        (some(70), 1.0, True),  # few of all, and many of the newest
        ([Collected(T0, 10, 6)], 1.0, False),
        ([Collected(T0, 10, 0)], 1.0, True),
        ([Collected(T0 + minute * MINUTE, 100, 10) for minute in range(10)], 0.1, False),
        ([Collected(T0 + minute * MINUTE, 100, 5) for minute in range(10)], 0.1, False),  # chance
        ([Collected(T0 + minute * MINUTE, 100, 1) for minute in range(10)], 0.1, True),
    ],
)
def test_fewer_requests_than_were_answered_are_missing(bins: list[Collected], share: float, missing: bool) -> None:
    found = problem(SHIPPED, bins=bins, share=share)
    assert bool(found) == missing, found
    if missing and share < 1:
        assert (
            "10 requests are in the storage since 12:00:00, and it answered 1,000 of which 0.1 are collected" in found
        )


def state(**changes: Any) -> bytes:
    written = {
        "replica": "v2-1", "shipped_until": T0.timestamp(), "captured": 3, "dropped": 0, "unreadable": 0,
        "lost_at": None, "watched_since": BEFORE.timestamp(), "pending_bytes": 0, "final": False,
        "updated": T0.timestamp(), "shipped": 3,
    }  # fmt: skip
    return json.dumps(written | changes).encode()


def test_a_state_is_read_as_the_collector_writes_it() -> None:
    read = replica_state("s.json", state(dropped=4, lost_at=(T0 + S).timestamp(), final=True, more="later"))
    assert read == ReplicaState("v2-1", T0, 4, 0, T0 + S, BEFORE, 0, True, T0, captured=3)
    assert isinstance(read.updated, datetime)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"\xff", state(dropped=-1), state(dropped=1.5), state(dropped=True),
     state(updated="now"), state(updated=1e30), state(shipped_until=None), state(lost_at=True)],
)  # fmt: skip
def test_a_state_that_cannot_be_keeps_the_gate_from_seeing(content: bytes) -> None:
    with pytest.raises(EvidenceUnavailableError, match=r"_state/v2-1\.json does not say"):
        replica_state("_state/v2-1.json", content)
