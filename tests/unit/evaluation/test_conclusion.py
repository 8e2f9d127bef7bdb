"""The verdict of a look whose evidence is incomplete: never anything about the model."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controlled_rollout.evaluation.conclusion import conclude
from controlled_rollout.evidence import Evidence, EvidenceWindow, RouterCounts
from controlled_rollout.gate import Bin, Counts, Gate, Outcome, Verdict
from controlled_rollout.record import LookInput, LookSettings

START = datetime(2026, 1, 5, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
GATE = Gate(latency_quantiles=())
WINDOW = EvidenceWindow(bin_width=MINUTE, allowed_lag=3 * MINUTE)


def at(minute: float) -> datetime:
    return START + minute * MINUTE


def evidence(*requests: tuple[int, int], until: float | None = None, lag: timedelta | None = None) -> Evidence:
    """Bins of a minute with so many requests of control and treatment; empty ones are left out."""
    bins = tuple(
        Bin(at(minute), Counts(control, 0), Counts(treatment, 0), share=0.1)
        for minute, (control, treatment) in enumerate(requests)
        if control or treatment
    )
    return Evidence(bins, (), (), at(len(requests) if until is None else until), (), lag)


def router_counts(minute: float, old: int, new: int) -> RouterCounts:
    return RouterCounts(at(minute), {"old": old, "new": new})


def verdict(evidence: Evidence, *router: RouterCounts, gate: Gate = GATE, down: str = "") -> Verdict:
    settings = LookSettings(
        endpoint="digits", treatment="new", control="old", started=START, window=WINDOW, gate=gate, queries=()
    )
    return conclude(LookInput(settings, evidence, router, down))


def blindness(evidence: Evidence, *router: RouterCounts) -> str | None:
    """Why a look cannot see; None if it can."""
    result = verdict(evidence, *router)
    return result.reason if result.outcome is Outcome.CANNOT_SEE else None


def test_a_version_that_the_router_sends_requests_to_and_the_store_does_not_know_is_not_seen() -> None:
    blind = blindness(evidence((90, 0)), router_counts(1, 90, 10))
    assert blind is not None
    assert "10 requests to version 'new'" in blind

    assert blindness(evidence((90, 10)), router_counts(1, 90, 10)) is None
    assert blindness(evidence((90, 0)), router_counts(1, 90, 0)) is None
    assert blindness(evidence((90, 0))) is None


def test_sampled_telemetry_is_judged_by_its_rows_and_the_sampling_is_said() -> None:
    """One error among 20 rows of 1 in 10 is one error, not ten."""
    every = Bin(at(0), Counts(20, 0), Counts(20, 1), share=0.5)
    sampled = Bin(at(0), Counts(20, 0, represented=200), Counts(20, 1, represented=200), share=0.5)
    full, tenth = (verdict(Evidence((one,), (), (), at(1), ())) for one in (every, sampled))

    assert tenth.outcome == full.outcome == Outcome.NOT_ENOUGH_EVIDENCE
    assert tenth.claims == full.claims
    assert tenth.reason == f"{full.reason}; telemetry is sampled, 1 of 10"


@pytest.mark.parametrize("name", ["old", "new"])
def test_a_store_that_falls_silent_while_the_router_counts_on_is_not_seen(name: str) -> None:
    silent = (90, 0) if name == "new" else (0, 10)
    evidence_read = evidence((90, 10), (90, 10), *[silent] * 6)
    router = [router_counts(minute, 90 * minute, 30 * minute) for minute in (3, 7)]

    blind = blindness(evidence_read, *router, router_counts(11, 990, 330))
    assert blind is not None
    assert f"version {name!r}" in blind
    assert "between 00:03:00 and 00:07:00" in blind


def test_a_quiet_version_a_router_that_began_anew_and_too_few_requests_are_no_blindness() -> None:
    evidence_read = evidence((90, 10), (90, 10), *[(90, 0)] * 6)
    assert (
        blindness(evidence_read, router_counts(3, 270, 30), router_counts(7, 630, 30), router_counts(11, 990, 30))
        is None
    )
    assert (
        blindness(evidence_read, router_counts(3, 270, 30), router_counts(7, 630, 49), router_counts(11, 990, 60))
        is None
    )
    assert (
        blindness(evidence_read, router_counts(3, 270, 300), router_counts(7, 100, 90), router_counts(11, 200, 100))
        is None
    )
    # Only one of the two moments lies behind the version's last bin.
    assert (
        blindness(
            evidence(*[(90, 10)] * 8), router_counts(3, 270, 30), router_counts(7, 630, 70), router_counts(11, 990, 99)
        )
        is None
    )


def test_telemetry_that_comes_later_than_allowed_is_not_judged_however_clear_it_is() -> None:
    bad = Evidence((Bin(at(0), Counts(1000, 0), Counts(1000, 900), share=0.5),), (), (), at(1), (), 4 * MINUTE)

    result = verdict(bad)

    assert result.outcome == "cannot_see"
    assert "up to 240 s late" in result.reason
    assert "allowed_lag" in result.reason
    assert verdict(evidence((90, 10), lag=3 * MINUTE)).outcome == "not_enough_evidence"


def test_treatment_that_is_down_fails_with_any_evidence() -> None:
    down = "version 'new' has no ready replica"
    nothing_came, late = evidence((90, 0), (90, 0)), evidence((90, 10), lag=9 * MINUTE)
    for evidence_read in (nothing_came, late):
        result = verdict(evidence_read, router_counts(1, 90, 10), down=down)
        assert (result.outcome, result.reason) == (Outcome.FAIL, down)


def test_inconsistent_counts_are_the_stores_fault_and_not_the_models() -> None:
    impossible = Evidence((Bin(at(0), Counts(10, 20), Counts(10, 0), share=0.5),), (), (), at(1), ())

    assert verdict(impossible).outcome == "cannot_see"


def test_without_the_collected_data_an_alarm_of_what_callers_saw_fails_and_nothing_passes() -> None:
    """A storage that is away must not keep a failing treatment in the traffic."""
    healthy = evidence(*[(9_000, 1_000)] * 30)
    easy = Gate(latency_quantiles=())
    assert verdict(healthy, gate=easy).outcome == Outcome.PASS
    blind = verdict(replace(healthy, unseen="collected data is late"), gate=easy)
    assert (blind.outcome, blind.reason) == (Outcome.CANNOT_SEE, "collected data is late")

    failing = Evidence((Bin(at(0), Counts(900, 0), Counts(100, 90), share=0.1),), (), (), at(1), ())
    assert verdict(replace(failing, unseen="collected data is late"), gate=easy).outcome == Outcome.FAIL

    # Both reasons are said, and late telemetry is no alarm whatever it counts.
    late = replace(failing, unseen="collected data is late", lag=4 * MINUTE)
    both = verdict(late, gate=easy)
    assert both.outcome == Outcome.CANNOT_SEE
    assert "telemetry comes up to 240 s late" in both.reason
    assert "collected data is late" in both.reason
