"""What a look has seen of the treatment at its present share: evidence, not time that passed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controlled_rollout.evaluation.at_share import AtShare, seen_at_share
from controlled_rollout.evidence import Evidence, SplitChange
from controlled_rollout.gate import Bin, Counts

START = datetime(2026, 1, 5, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SPLITS = (SplitChange(START, 0.1), SplitChange(START + 3 * MINUTE, 0.5))


def evidence(*shares: float | None, until: int | None = None, requests: int = 7) -> Evidence:
    bins = tuple(
        Bin(START + minute * MINUTE, Counts(90, 0), Counts(requests, 0), share=share)
        for minute, share in enumerate(shares)
    )
    return Evidence(bins, (), (), START + (len(shares) if until is None else until) * MINUTE, ())


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (evidence(0.1, 0.1, 0.1, None, 0.5, 0.5), AtShare(2 * MINUTE, 14)),
        # Closed bins without a request are left out; their time was seen.
        (evidence(0.1, 0.1, 0.1, None, 0.5, until=9), AtShare(5 * MINUTE, 7)),
        # The shift is newer than the newest closed bin, or not served yet.
        (evidence(0.1, 0.1, 0.1), AtShare()),
        (evidence(0.1, 0.1, 0.1, None), AtShare()),
        (evidence(0.1, 0.5, 0.1, 0.1, 0.5, None), AtShare()),
        # The same share earlier in the rollout is not the present one.
        (evidence(0.5, 0.1, None, 0.5), AtShare(MINUTE, 7)),
        (evidence(0.1, 0.1, 0.1, 0.5, None, 0.5), AtShare(3 * MINUTE, 14)),
        (evidence(0.5, 0.5, 0.5), AtShare()),
        (evidence(0.5, 0.5, 0.5, None, 0.5), AtShare(MINUTE, 7)),
        (evidence(), AtShare()),
        (None, AtShare()),
    ],
)
def test_only_closed_bins_at_the_present_share_count(seen: Evidence | None, expected: AtShare) -> None:
    at_share = seen_at_share(seen, SPLITS)

    assert replace(at_share, since=None) == expected
    if seen is not None and at_share.since is not None:
        assert seen.until - at_share.since == at_share.seen


def test_without_a_known_share_nothing_was_seen() -> None:
    assert seen_at_share(evidence(0.5), ()) == AtShare()
    assert seen_at_share(evidence(0.5), (SplitChange(START, None),)) == AtShare()


@pytest.mark.parametrize(
    ("warm_up", "expected"),
    [
        (0, AtShare(4 * MINUTE, 21)),
        (1, AtShare(2 * MINUTE, 14)),
        (2, AtShare(MINUTE, 7)),
        (3, AtShare()),
        (9, AtShare()),
    ],
)
def test_what_the_gate_leaves_out_as_warm_up_was_not_seen(warm_up: int, expected: AtShare) -> None:
    # The treatment's first request comes a minute after the shift.
    first = replace(evidence(0.1).bins[0], treatment=Counts(0, 0))
    seen = evidence(0.1, 0.1, 0.1, 0.1)
    seen = replace(seen, bins=(first, *seen.bins[1:]))
    assert replace(seen_at_share(seen, SPLITS[:1], warm_up=warm_up * MINUTE), since=None) == expected
