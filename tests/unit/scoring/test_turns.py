import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controlled_rollout_scoring.answers import Answer
from controlled_rollout_scoring.turns import Request, Turns

GOOD = Answer(200, [], b"scored")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Caller:
    """Keeps the first answer only, as the server does."""

    def __init__(self) -> None:
        self.status: int | None = None

    def __call__(self, answer: Answer) -> None:
        self.status = self.status or answer.status


@pytest.fixture
def clock() -> Clock:
    return Clock()


def begin(turns: Turns) -> tuple[Request, Caller]:
    caller = Caller()
    request = Request({}, b"", caller)
    if turns.admit(caller):
        turns.wait(request)
    return request, caller


def answer(turns: Turns) -> None:
    """Score the next request that waits."""
    request = turns.take()
    assert request
    turns.done(request, GOOD)


def test_requests_are_scored_in_the_order_in_which_they_came(clock: Clock) -> None:
    turns = Turns(1, 5, 0.5, 60, clock)
    requests = [begin(turns)[0] for _ in range(3)]

    assert [turns.take() for _ in range(3)] == requests


def test_place_is_free_again_once_a_request_is_answered(clock: Clock) -> None:
    turns = Turns(1, 0, 0.5, 60, clock)
    _, first = begin(turns)
    _, refused = begin(turns)
    answer(turns)
    _, second = begin(turns)
    answer(turns)

    assert (first.status, refused.status, second.status) == (200, 503, 200)


def test_refused_upload_gives_its_place_back(clock: Clock) -> None:
    turns = Turns(1, 0, 0.5, 60, clock)
    turns.admit(Caller())
    turns.leave()

    assert turns.in_flight == 0


def test_next_look_is_when_the_first_time_is_over(clock: Clock) -> None:
    turns = Turns(1, 5, 0.5, 60, clock)
    begin(turns)
    clock.now += 0.2

    assert turns.expire() == pytest.approx(0.3)


def test_answer_after_the_deadline_is_a_time_out_even_if_nobody_looked(clock: Clock) -> None:
    turns = Turns(1, 5, 0.5, 60, clock)
    _, caller = begin(turns)
    request = turns.take()
    assert request
    clock.now += 60
    turns.done(request, GOOD)

    assert caller.status == 504


def test_stopping_lets_what_waits_be_scored_first(clock: Clock) -> None:
    turns = Turns(1, 5, 0.5, 60, clock)
    request, _ = begin(turns)
    turns.stop(1)

    assert turns.take() is request
    assert turns.take() is None


def test_take_waits_for_a_request(clock: Clock) -> None:
    turns = Turns(1, 5, 0.5, 60, clock)
    taken: list[Request | None] = []
    thread = threading.Thread(target=lambda: taken.append(turns.take()))
    thread.start()
    request, _ = begin(turns)
    thread.join(5)

    assert taken == [request]


class TurnsMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order: bounded, first come first served, and nobody waits beyond their time."""

    SLOTS, QUEUE, WAIT_S, TIMEOUT_S = 2, 3, 0.5, 4.0

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.turns = Turns(self.SLOTS, self.QUEUE, self.WAIT_S, self.TIMEOUT_S, self.clock)
        self.waiting: list[tuple[Request, Caller]] = []
        self.scoring: list[tuple[Request, Caller]] = []

    @rule()
    def comes(self) -> None:
        full = len(self.waiting) + len(self.scoring) >= self.SLOTS + self.QUEUE
        request, caller = begin(self.turns)
        assert caller.status == (503 if full else None)
        if not full:
            self.waiting.append((request, caller))

    @precondition(lambda self: self.in_time() and len(self.scoring) < self.SLOTS)
    @rule()
    def taken(self) -> None:
        expected = self.in_time()[0]
        assert self.turns.take() is expected[0]
        for _, late in self.waiting[: self.waiting.index(expected)]:
            assert late.status == 503
        del self.waiting[: self.waiting.index(expected) + 1]
        self.scoring.append(expected)

    @precondition(lambda self: self.scoring)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        request, caller = self.scoring.pop(data.draw(st.integers(0, len(self.scoring) - 1)))
        late = self.clock() >= request.deadline
        self.turns.done(request, GOOD)
        assert caller.status == (504 if late else 200)

    @rule(seconds=st.sampled_from([0.1, 0.3, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def looked_at(self) -> None:
        assert 0 < self.turns.expire() <= self.WAIT_S
        for request, caller in list(self.waiting):
            if self.clock() - request.arrived >= self.WAIT_S:
                assert caller.status == 503
                self.waiting.remove((request, caller))
            else:
                assert caller.status is None
        for request, caller in self.scoring:
            assert caller.status == (504 if self.clock() >= request.deadline else None)

    @invariant()
    def places_are_counted(self) -> None:
        assert self.turns.in_flight == len(self.waiting) + len(self.scoring)

    def in_time(self) -> list[tuple[Request, Caller]]:
        return [each for each in self.waiting if self.clock() - each[0].arrived <= self.WAIT_S]


TurnsMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestTurns = TurnsMachine.TestCase
