"""The store's rows beside what the router counted: too many rows of a version are not judged."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlled_rollout import record
from controlled_rollout.evaluation.replay import replay
from controlled_rollout.evaluation.router_counts import contradiction, split_contradiction
from controlled_rollout.evidence import CountedPeriod, Evidence, EvidenceWindow, RouterCounts
from controlled_rollout.gate import Bin, Counts, Gate
from controlled_rollout.record import LookInput, LookSettings, tail
from controlled_rollout.workspace import Workspace
from tests.unit.record_lines import MINUTE, T0, append, bins

START = datetime(2026, 1, 5, tzinfo=UTC)
BEFORE = START - timedelta(hours=1)
SETTINGS = LookSettings(
    endpoint="digits",
    treatment="two",
    control="one",
    started=START,
    window=EvidenceWindow(bin_width=MINUTE, allowed_lag=3 * MINUTE),
    gate=Gate(latency_quantiles=()),
)


def counted(minute: float, one: int, two: int, *, unsent: int = 0, since: datetime = BEFORE) -> RouterCounts:
    """What one router had counted so many minutes after the rollout began."""
    return RouterCounts(START + minute * MINUTE, {"one": one, "two": two}, {"two": unsent}, {"envoy 1": since})


def evidence(*of_treatment: int, represented: int = 0) -> Evidence:
    """Bins of a minute with 100 requests of control, and so many of the treatment."""
    rows = tuple(
        Bin(START + minute * MINUTE, Counts(100, 0), Counts(number, 0, represented=represented), share=0.5)
        for minute, number in enumerate(of_treatment)
    )
    return Evidence(rows, (), (), START + len(rows) * MINUTE, ())


def look(evidence: Evidence, present: RouterCounts, *periods: CountedPeriod) -> str | None:
    return contradiction(LookInput(SETTINGS, evidence, (present,), "", periods))


def test_a_version_with_more_rows_than_its_router_counted_is_not_judged() -> None:
    problem = look(evidence(100, 100, 100, 100), counted(7, 5_000, 12))

    assert problem is not None
    assert "the metric store has 400 requests of version 'two', and the router counted 12" in problem
    assert look(evidence(100, 100, 100, 100), counted(7, 5_000, 400)) is None
    assert look(evidence(100, 100, 100, 100), counted(7, 5_000, 700)) is None


def test_forged_rows_of_control_are_not_judged_either() -> None:
    first, last = counted(0, 10_000, 0), counted(4.1, 10_040, 400)

    problem = look(evidence(100, 100, 100, 100), counted(7, 10_080, 700), CountedPeriod(first, last))

    assert problem is not None
    assert "300 requests of version 'one', and the router counted 40 " in problem


def test_rows_that_were_forged_while_telemetry_was_still_late_are_found_by_the_count_of_that_time() -> None:
    """Forged: 60 a minute, on top of 40. Up to now the router has counted as many as the store has rows."""
    periods = CountedPeriod(counted(0, 0, 0), counted(4.1, 400, 164))

    assert look(evidence(100, 100, 100, 100), counted(10, 1_000, 400)) is None
    assert look(evidence(100, 100, 100, 100), counted(10, 1_000, 400), periods) is not None


def test_rows_forged_into_the_time_before_the_first_look_are_found() -> None:
    first, last = counted(30, 3_000, 30), counted(40, 4_000, 1_030)

    problem = look(evidence(*[50] * 20, *[0] * 10, *[100] * 10), counted(45, 4_500, 1_530), CountedPeriod(first, last))

    assert problem is not None
    assert "the router counted 1030 from 00:00:00" in problem


def split(of_store: tuple[int, ...], first: RouterCounts, present: RouterCounts) -> str | None:
    """Return what is said of a split that rows contradict: beside 100 requests of control a minute."""
    periods = (CountedPeriod(first, first),)
    return split_contradiction(LookInput(SETTINGS, evidence(*of_store), (present,), "", periods))


def test_rows_that_contradict_the_split_where_the_routers_counts_do_not_are_not_judged() -> None:
    """The router has counted seven minutes, and four are closed: no version has more rows than were counted."""
    first = counted(0, 1_000, 0)
    assert look(evidence(160, 160, 160, 160), counted(7, 1_700, 700), CountedPeriod(first, first)) is None

    problem = split((160, 160, 160, 160), first, counted(7, 1_700, 700))

    assert problem is not None
    assert "has 640 requests of version 'two' among 1040, and the router counted 700 among 1400 " in problem
    missing = split((60, 60, 60, 60), first, counted(7, 1_700, 700))
    assert missing is not None and "rows are missing" in missing


@pytest.mark.parametrize(
    ("rows", "present"),
    [
        pytest.param((160, 160, 160, 160), counted(7, 1_700, 1_120), id="the router counts the wrong split as well"),
        pytest.param((105, 98, 101, 93), counted(7, 1_700, 700), id="the rows are as the router counts"),
        pytest.param((160, 160, 160, 160), counted(7, 1_000, 0), id="the router counts nothing"),
        pytest.param((), counted(7, 1_700, 700), id="no bin is closed"),
    ],
)
def test_a_wrong_split_is_said_to_be_one_where_the_routers_counts_do_not_show_otherwise(
    rows: tuple[int, ...], present: RouterCounts
) -> None:
    assert split(rows, counted(0, 1_000, 0), present) is None


def quiet(*looks: RouterCounts) -> str | None:
    """Return what is said at the last of some looks of an endpoint whose store has no row at all for four minutes."""
    rows = tuple(Bin(START + minute * MINUTE, Counts(0, 0), Counts(0, 0), share=0.5) for minute in range(4))
    periods = (CountedPeriod(looks[0], looks[0]),)
    return contradiction(LookInput(SETTINGS, Evidence(rows, (), (), START + 4 * MINUTE, ()), looks, "", periods))


def test_an_endpoint_that_nobody_calls_is_not_said_to_lose_rows_for_what_the_router_counted_before() -> None:
    assert quiet(counted(7, 100_000, 50)) is None
    assert quiet(counted(0, 100_000, 50), counted(3, 100_000, 50), counted(7, 100_000, 50)) is None
    # The requests of the last minutes are not in a closed bin yet.
    assert quiet(counted(0, 100_000, 50), counted(3, 100_005, 50), counted(7, 100_900, 950)) is None


def test_a_store_without_a_row_is_not_believed_while_the_router_counts_on() -> None:
    problem = quiet(counted(0, 100_000, 50), counted(3, 100_300, 51), counted(7, 100_700, 60))

    assert problem is not None
    assert "has sent 300 requests to version 'one', and the metric store has none of them in 4 bins" in problem


@pytest.mark.parametrize("before", [(), (counted(0, 5_000, 0), counted(3, 5_300, 4))])
def test_one_version_without_a_row_is_not_believed_beside_another_with_rows(before: tuple[RouterCounts, ...]) -> None:
    """A store that loses one version's rows must not make the other look good."""
    present = counted(7, 5_700, 9)
    periods = tuple(CountedPeriod(first, first) for first in before[:1])
    problem = contradiction(LookInput(SETTINGS, evidence(0, 0, 0, 0), (*before, present), "", periods))

    assert problem is not None and "requests to version 'two', and the metric store has none of them" in problem


def test_one_row_too_many_here_and_there_is_no_contradiction() -> None:
    """A request whose body was still coming is in a bin, and not yet counted."""
    periods = CountedPeriod(counted(0, 0, 0), counted(4.1, 400, 398))

    assert look(evidence(100, 100, 100, 100), counted(5, 500, 500), periods) is None
    assert look(evidence(100, 100, 100, 104), counted(5, 500, 500), periods) is not None


def test_requests_that_the_router_could_not_send_are_counted_with_those_that_it_sent() -> None:
    assert look(evidence(100, 100), counted(5, 500, 20, unsent=180)) is None
    assert look(evidence(100, 100), counted(5, 500, 20, unsent=100)) is not None


def test_a_router_that_was_restarted_since_the_rollout_began_contradicts_nothing_before_that() -> None:
    restarted = START + 10 * MINUTE

    assert look(evidence(*[100] * 12), counted(15, 500, 500, since=restarted)) is None
    assert look(evidence(*[100] * 12), counted(15, 500, 500)) is not None


def test_counts_that_were_lost_with_a_version_s_share_contradict_nothing() -> None:
    """Envoy Gateway removes the cluster of a version that has no share, and the counts with it."""
    before = CountedPeriod(counted(0, 0, 0), counted(4.1, 400, 400))
    since = CountedPeriod(counted(6, 600, 0), counted(8.1, 800, 200))

    assert look(evidence(100, 100, 100, 100, 0, 0, 100, 100), counted(9, 900, 300), before, since) is None
    later = CountedPeriod(counted(4.5, 450, 0), counted(8.1, 800, 200))
    assert look(evidence(100, 100, 100, 100, 0, 0, 100, 300), counted(9, 900, 300), before, later) is not None
    assert look(evidence(100, 200, 100, 100, 0, 0, 100, 100), counted(9, 900, 300), before, since) is not None


def test_a_router_that_is_being_ended_answers_on_while_nobody_reads_its_counts() -> None:
    """Envoy 1 is not ready any more, and has 100 callers on open connections for a minute; its counts are gone."""
    before = CountedPeriod(counted(0, 400, 400), counted(4.1, 800, 800))
    first = RouterCounts(START + 4.5 * MINUTE, {"one": 0, "two": 0}, {}, {"envoy 2": START})
    last = RouterCounts(START + 9.1 * MINUTE, {"one": 340, "two": 340}, {}, {"envoy 2": START})
    rows = evidence(100, 100, 100, 100, 100, 100, 100, 100, 100)

    assert look(rows, last, before, CountedPeriod(first, last)) is None


def test_a_router_whose_counts_are_not_known_contradicts_nothing() -> None:
    assert look(evidence(100, 100), RouterCounts(START + 5 * MINUTE, {"one": 0, "two": 0})) is None


@pytest.mark.parametrize(("represented", "is_plausible"), [(1000, True), (1300, True), (3000, False)])
def test_sampled_rows_are_compared_by_the_requests_that_they_stand_for(represented: int, is_plausible: bool) -> None:
    """Rows of 1 in 10; the sampled number of 1,000 may be off by six standard deviations, 600."""
    problem = look(evidence(100, represented=represented), counted(4, 1_000, 1_000))

    assert (problem is None) is is_plausible


def test_forged_rows_do_not_become_plausible_by_standing_for_several_requests() -> None:
    """Of 36 rows 26 are forged; each says that it stands for two requests, as a sampled row would."""
    assert look(evidence(9, 9, 9, 9, represented=18), counted(7, 5_000, 10)) is not None
    assert look(evidence(9, 9, 9, 9, represented=18), counted(7, 5_000, 40)) is None


def test_the_record_keeps_what_was_counted_and_a_fresh_process_comes_to_the_same_verdict(tmp_path: Path) -> None:
    workspace = Workspace.local(tmp_path)
    rows = bins(12)
    for minute in range(1, 13):
        present = RouterCounts(T0 + minute * MINUTE, {"v1a": 100 * minute, "v2a": 1}, {}, {"envoy 1": BEFORE})
        append(workspace, rows[: max(0, minute - 3)], router=(present,), at=T0 + max(0, minute - 3) * MINUTE)

    looks = list(replay(record.read(workspace, "digits")))

    assert [one.difference for one in looks] == [""] * 12
    last = looks[-1]
    assert last.look is not None
    assert [(p.first.at, p.last.at) for p in last.look.periods] == [(T0 + MINUTE, T0 + 10 * MINUTE)]
    assert last.verdict is not None
    assert last.verdict.outcome == "cannot_see"


@pytest.mark.parametrize("process", ["the same", "a fresh one"])
def test_rows_that_are_too_many_stay_so_in_a_new_part_of_the_record(tmp_path: Path, process: str) -> None:
    """The router is younger than the rollout: only the looks of the part before know what it had counted."""
    workspace, young = Workspace.local(tmp_path), T0 + MINUTE / 2
    rows = bins(12)
    for minute in range(1, 13):
        if minute in (10, 12) and process == "a fresh one":
            tail._tails.clear()
        if minute == 10:
            with record.storage_of(workspace, "digits").appending() as appender:
                appender.retire()
        present = RouterCounts(T0 + minute * MINUTE, {"v1a": 100 * minute, "v2a": 1}, {}, {"envoy 1": young})
        decision = append(workspace, rows[: max(0, minute - 3)], router=(present,), at=T0 + max(0, minute - 3) * MINUTE)

    assert decision.outcome == "cannot_see"
    look = [one.look for one in replay(record.read(workspace, "digits"))][-1]
    assert look is not None
    assert look.periods[0].first.at == T0 + MINUTE


def test_lost_counts_begin_a_new_period() -> None:
    first, second = counted(0, 0, 0), counted(1, 100, 100)
    period = CountedPeriod(first, second)

    assert period.goes_on_with(counted(2, 200, 100))
    assert not period.goes_on_with(counted(2, 200, 99))
    assert not period.goes_on_with(counted(2, 200, 200, since=START))
    assert not period.goes_on_with(replace(counted(2, 200, 200), routers={"envoy 2": BEFORE}))
    assert period.goes_on_with(replace(counted(2, 200, 200), routers={"envoy 1": BEFORE, "envoy 2": START}))
