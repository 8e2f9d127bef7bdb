"""Which lines a record lacks, given the endpoint's revisions and what the record has."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.record import Decision
from controlled_rollout.record.step_lines import StepMark, lines_with, missing_lines, steps_of
from controlled_rollout.steps import edits
from controlled_rollout.target.protocol import Change, Revision

T0 = datetime(2026, 1, 5, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
RUN, OTHER = "weekly/run-2", "weekly/run-1"

EMPTY = Endpoint(name="digits")


def deployed(endpoint: Endpoint, version: str) -> Endpoint:
    return edits.deploy(endpoint, version, image="a@sha256:1", owner=RUN, at=T0, settings={})


FIRST = deployed(EMPTY, "one")
SECOND = deployed(FIRST, "two")
TENTH = edits.shift(SECOND, "two", percentile=10, owner=RUN)
HALF = edits.shift(TENTH, "two", percentile=50, owner=RUN)
PROMOTED = edits.promote(HALF, "two", owner=RUN)
RETIRED = edits.retire(PROMOTED, "one")
THIRD = deployed(RETIRED, "three")
ROLLED_BACK = edits.roll_back(THIRD, "three", owner=RUN)
AGAIN = deployed(ROLLED_BACK, "three")
DESCRIBED = AGAIN.model_copy(update={"description": "changed by hand"})
BACK = edits.promote(PROMOTED, "one", owner=None)

STATES = (FIRST, SECOND, TENTH, HALF, PROMOTED, RETIRED, THIRD, ROLLED_BACK, AGAIN, DESCRIBED)
NAMES = [
    ("deploy", "one"),
    ("deploy", "two"),
    ("shift", "two"),
    ("shift", "two"),
    ("promote", "two"),
    ("retire", "one"),
    ("deploy", "three"),
    ("roll_back", "three"),
    ("deploy", "three"),
]


def history_of(*states: Endpoint, begins: datetime = T0) -> list[Revision]:
    return [
        Revision(
            number=number,
            endpoint=state.model_copy(update={"revision": number}),
            change=Change(who=f"{RUN}/task", reason=f"reason {number}"),
            created=begins + number * MINUTE,
        )
        for number, state in enumerate(states, start=1)
    ]


HISTORY = history_of(*STATES)


def marks(decisions: list[Decision]) -> list[StepMark]:
    return [mark for decision in decisions if (mark := StepMark.of(decision)) is not None]


def names(decisions: list[Decision]) -> list[tuple[str, str]]:
    return [(decision.step, decision.version) for decision in decisions]


def own_line(revision: int, step: str = "shift", version: str = "two", who: str = f"{RUN}/task") -> Decision:
    """Return the line that a step appends itself, a moment after its revision."""
    state = STATES[revision - 1].model_copy(update={"revision": revision})
    at = T0 + revision * MINUTE + timedelta(seconds=2)
    return Decision.about(state, version, step=step, who=who, time=at)  # type: ignore[arg-type]


def test_every_step_of_a_rollout_is_recognised_in_the_revisions() -> None:
    lines = missing_lines(HISTORY, [])
    assert names(lines) == NAMES
    assert [line.revision for line in lines] == list(range(1, 10))
    shift = lines[2]
    assert (shift.time, shift.who, shift.reason) == (T0 + 3 * MINUTE, f"{RUN}/task", "reason 3")
    assert (shift.share, shift.run, shift.rollout) == (10, RUN, T0)


def test_going_back_to_a_former_control_is_a_promotion_and_a_change_of_no_step_is_none() -> None:
    assert names(missing_lines(history_of(FIRST, SECOND, PROMOTED, BACK), []))[-1] == ("promote", "one")
    assert steps_of(AGAIN, HISTORY[-1]) == []


def test_without_a_rollout_the_version_that_was_shifted_is_told_from_the_default() -> None:
    both = FIRST.create_version("two")
    assert names(missing_lines(history_of(FIRST, both, both.shift("two", 20)), []))[-1] == ("shift", "two")


def test_a_version_that_lost_its_traffic_was_rolled_back_unless_its_rollout_goes_on() -> None:
    both = FIRST.create_version("two", traffic_percentile=20)
    assert names(missing_lines(history_of(FIRST, both, both.roll_back("two")), []))[-1] == ("roll_back", "two")
    paused = edits.shift(TENTH, "two", percentile=0, owner=RUN)
    assert names(missing_lines(history_of(FIRST, SECOND, TENTH, paused), []))[-1] == ("shift", "two")


@given(st.integers(min_value=0, max_value=9))
def test_a_record_that_lags_by_any_number_of_steps_is_completed_once(known: int) -> None:
    lines = missing_lines(HISTORY, [])
    completed = lines[:known] + missing_lines(HISTORY, marks(lines[:known]))
    assert completed == lines
    assert missing_lines(HISTORY, marks(completed)) == []


@given(st.lists(st.integers(min_value=1, max_value=9), max_size=12))
def test_whatever_steps_are_killed_and_called_again_each_is_in_the_record_once(calls: list[int]) -> None:
    recorded: list[Decision] = []
    for revision in calls:
        step, version = NAMES[revision - 1]
        known = HISTORY[: max(revision, *(line.revision or 0 for line in recorded), 1)]
        recorded += lines_with(own_line(revision, step, version), known, marks(recorded))

    written = [(line.revision, line.step, line.version) for line in recorded]
    assert len(written) == len(set(written))
    assert sorted(line.revision or 0 for line in recorded) == list(range(1, max(calls, default=0) + 1))


def test_the_own_line_of_a_step_takes_the_place_of_the_one_that_is_made_from_its_revision() -> None:
    lines = lines_with(own_line(4), HISTORY, marks(missing_lines(HISTORY, [])[:2]))
    assert names(lines) == NAMES[2:]
    # It is written a moment after its revision.
    assert [line.time - T0 for line in lines[:2]] == [3 * MINUTE, 4 * MINUTE + timedelta(seconds=2)]


def test_a_step_that_finds_everything_done_is_recorded_as_whose_it_was() -> None:
    recorded = marks(missing_lines(HISTORY, [])[:8])
    step, version = NAMES[8]
    [line] = lines_with(own_line(9, step, version, who="Ada"), HISTORY, recorded)
    assert (line.who, line.reason) == (f"{RUN}/task", "reason 9")
    [line] = lines_with(own_line(9, step, version, who="Ada"), HISTORY[:8], recorded)
    assert line.who == "Ada", "the revision is its own"


def test_a_look_comes_after_the_missing_lines() -> None:
    look = Decision.about(HISTORY[-1].endpoint, "three", step="look", who="gate")
    assert lines_with(look, HISTORY, marks(missing_lines(HISTORY, [])[:8])) == [missing_lines(HISTORY, [])[8], look]


def test_a_decision_that_knows_no_revisions_is_appended_as_it_is() -> None:
    assert lines_with(own_line(4), [], []) == [own_line(4)]


def test_lines_of_a_deleted_endpoint_of_the_same_name_do_not_count() -> None:
    earlier = marks(missing_lines(HISTORY, []))
    later = history_of(FIRST, SECOND, begins=T0 + timedelta(days=1))
    assert names(missing_lines(later, earlier)) == [("deploy", "one"), ("deploy", "two")]


def test_what_the_oldest_kept_revision_has_changed_is_not_guessed() -> None:
    assert names(missing_lines(HISTORY[4:], [])) == NAMES[5:]
