import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controlled_rollout_scoring.request_queue import Request, RequestQueue, age
from controlled_rollout_scoring.responses import Response
from tests.examples import examples

GOOD = Response(200, [], b"scored")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Caller:
    """Keeps the first response only, as the server does."""

    def __init__(self) -> None:
        self.status: int | None = None

    def __call__(self, response: Response) -> None:
        self.status = self.status or response.status


@pytest.fixture
def clock() -> Clock:
    return Clock()


def arrive(queue: RequestQueue) -> tuple[Request, Caller]:
    """Let one request arrive; it is put into the queue unless the queue is full."""
    caller = Caller()
    request = Request({}, b"", caller)
    queue.put(request)
    return request, caller


def score_next(queue: RequestQueue) -> None:
    """Take the next request and complete it."""
    request = queue.take()
    assert request
    queue.complete(request, GOOD)


def test_requests_are_taken_in_order_of_arrival(clock: Clock) -> None:
    queue = RequestQueue(1, 5, 0.5, 60, clock)
    requests = [arrive(queue)[0] for _ in range(3)]

    assert [queue.take() for _ in range(3)] == requests


def test_an_answer_says_how_long_its_request_was_scored_without_its_wait(clock: Clock) -> None:
    queue = RequestQueue(1, 5, 60, 60, clock)
    answers: list[Response] = []
    queue.put(Request({}, b"", answers.append))
    clock.now += 30
    request = queue.take()
    assert request
    clock.now += 0.25
    queue.complete(request, Response(200, [("X-A", "a")], b"scored"))

    assert [answer.headers for answer in answers] == [[("X-A", "a"), ("x-controlled-rollout-scoring-ms", "250.0")]]


class Told:
    """Counts how many callers its answers say have left the queue."""

    def __init__(self) -> None:
        self.left: list[str] = []

    def __call__(self, response: Response) -> None:
        self.left += [value for name, value in response.headers if name == "x-controlled-rollout-left-queue"]


def test_who_hangs_up_in_the_queue_is_told_once_with_an_answer_that_reaches_a_caller(clock: Clock) -> None:
    queue, told = RequestQueue(1, 9, 60, 60, clock), Told()
    gone, second, third, *left = (Request({}, b"", told) for _ in range(5))
    named = Request({"HTTP_X_CONTROLLED_ROLLOUT_ROUTED_BY": "other path"}, b"", told)
    for request in (gone, second, third, *left, named):
        queue.put(request)
    assert queue.take() is gone
    for request in (*left, named, gone):
        queue.cancel(request)

    queue.complete(gone, GOOD)
    score_next(queue)
    score_next(queue)

    # One who named a version is no evidence, and the first one was being scored.
    assert told.left == ["2"]


def test_who_leaves_the_queue_of_a_model_that_hangs_is_not_told(clock: Clock) -> None:
    queue, told = RequestQueue(1, 9, 60, 5, clock), Told()
    hanging, waiting, refused = (Request({}, b"", told) for _ in range(3))
    queue.put(hanging)
    assert queue.take() is hanging
    clock.now += 6
    queue.expire()
    queue.put(waiting)
    queue.put(refused)
    queue.cancel(waiting)
    queue.complete(hanging, GOOD)
    score_next(queue)

    assert told.left == []


def test_completed_request_frees_its_place(clock: Clock) -> None:
    queue = RequestQueue(1, 0, 0.5, 60, clock)
    _, first = arrive(queue)
    _, refused = arrive(queue)
    score_next(queue)
    _, second = arrive(queue)
    score_next(queue)

    assert (first.status, refused.status, second.status) == (200, 503, 200)


def test_request_that_is_being_read_takes_no_place_and_is_in_flight(clock: Clock) -> None:
    queue = RequestQueue(1, 0, 0.5, 60, clock)
    queue.reading += 1
    _, caller = arrive(queue)

    assert queue.in_flight == 2
    assert caller.status is None


def test_full_queue_refuses_a_request_before_it_is_read(clock: Clock) -> None:
    queue = RequestQueue(1, 0, 0.5, 60, clock)
    free = queue.refusal()
    arrive(queue)
    full = queue.refusal()

    assert free is None
    assert full is not None
    assert full.status == 503


def test_expire_returns_the_time_until_the_first_wait_is_over(clock: Clock) -> None:
    queue = RequestQueue(1, 5, 0.5, 60, clock)
    arrive(queue)
    clock.now += 0.2

    assert queue.expire() == pytest.approx(0.3)


def test_response_after_the_deadline_is_a_timeout_even_without_expire(clock: Clock) -> None:
    queue = RequestQueue(1, 5, 0.5, 60, clock)
    _, caller = arrive(queue)
    request = queue.take()
    assert request
    clock.now += 60
    queue.complete(request, GOOD)

    assert caller.status == 504


def test_queued_requests_are_taken_before_threads_stop(clock: Clock) -> None:
    queue = RequestQueue(1, 5, 0.5, 60, clock)
    request, _ = arrive(queue)
    queue.stop(1)

    assert queue.take() is request
    assert queue.take() is None


def test_take_waits_for_a_request(clock: Clock) -> None:
    queue = RequestQueue(1, 5, 0.5, 60, clock)
    taken: list[Request | None] = []
    thread = threading.Thread(target=lambda: taken.append(queue.take()))
    thread.start()
    request, _ = arrive(queue)
    thread.join(5)

    assert taken == [request]


class RequestQueueMachine(RuleBasedStateMachine):
    """In any order of events: bounded, first in first out, and no request waits longer than its limits."""

    SLOTS, QUEUE, WAIT_S, TIMEOUT_S = 2, 3, 0.5, 4.0

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue = RequestQueue(self.SLOTS, self.QUEUE, self.WAIT_S, self.TIMEOUT_S, self.clock)
        self.waiting: list[tuple[Request, Caller]] = []
        self.scoring: list[tuple[Request, Caller]] = []

    @rule()
    def request_arrives(self) -> None:
        full = len(self.waiting) + len(self.scoring) >= self.SLOTS + self.QUEUE
        request, caller = arrive(self.queue)
        assert caller.status == (503 if full else None)
        if not full:
            self.waiting.append((request, caller))

    @precondition(lambda self: self.in_time() and len(self.scoring) < self.SLOTS)
    @rule()
    def request_is_taken(self) -> None:
        expected = self.in_time()[0]
        assert self.queue.take() is expected[0]
        for _, expired in self.waiting[: self.waiting.index(expected)]:
            assert expired.status == 503
        del self.waiting[: self.waiting.index(expected) + 1]
        self.scoring.append(expected)

    @precondition(lambda self: self.scoring)
    @rule(data=st.data())
    def request_is_completed(self, data: st.DataObject) -> None:
        request, caller = self.scoring.pop(data.draw(st.integers(0, len(self.scoring) - 1)))
        late = self.clock() >= request.deadline
        self.queue.complete(request, GOOD)
        assert caller.status == (504 if late else 200)

    @rule(seconds=st.sampled_from([0.1, 0.3, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def expire_is_called(self) -> None:
        assert 0 < self.queue.expire() <= self.WAIT_S
        for request, caller in list(self.waiting):
            if self.clock() - request.arrived >= self.WAIT_S:
                assert caller.status == 503
                self.waiting.remove((request, caller))
            else:
                assert caller.status is None
        for request, caller in self.scoring:
            assert caller.status == (504 if self.clock() >= request.deadline else None)

    @invariant()
    def in_flight_is_exact(self) -> None:
        assert self.queue.in_flight == len(self.waiting) + len(self.scoring)

    def in_time(self) -> list[tuple[Request, Caller]]:
        return [each for each in self.waiting if self.clock() - each[0].arrived <= self.WAIT_S]


RequestQueueMachine.TestCase.settings = settings(examples(40), stateful_step_count=30)
TestRequestQueue = RequestQueueMachine.TestCase


def refusals(queue: RequestQueue, *, sent: str = "") -> list[Response]:
    """Let a request arrive that the router had at `sent`; return how it was refused, if it was."""
    responses: list[Response] = []
    queue.put(Request({"HTTP_X_CONTROLLED_ROLLOUT_SENT": sent} if sent else {}, b"", responses.append))
    return responses


def headers_of(response: Response) -> dict[str, str]:
    return dict(response.headers)


def test_a_refusal_says_why_when_to_come_again_and_that_another_replica_may_take_the_request(clock: Clock) -> None:
    queue = RequestQueue(1, 1, 0.5, 60, clock)
    first, waiting, refused = refusals(queue), refusals(queue), refusals(queue)
    queue.take()
    clock.now += 0.6
    queue.expire()
    clock.now += 60
    queue.expire()

    assert headers_of(refused[0])["x-controlled-rollout-reason"] == "queue-full"
    assert headers_of(waiting[0])["x-controlled-rollout-reason"] == "waited-too-long"
    assert headers_of(first[0])["x-controlled-rollout-reason"] == "timeout"
    assert [headers_of(each[0]).get("Retry-After") for each in (refused, waiting, first)] == ["1", "1", None]
    # What was scored in part is never sent again.
    again = [headers_of(each[0]).get("x-controlled-rollout-send-again") for each in (refused, waiting, first)]
    assert again == ["1", "1", None]


def test_refusals_are_the_models_while_a_request_that_is_timed_out_keeps_a_slot(clock: Clock) -> None:
    """A model that hangs for ever is timed out once for each slot: all else that it answers are refusals."""
    queue = RequestQueue(1, 1, 0.5, 4, clock)
    refusals(queue)
    hanging = queue.take()
    assert hanging is not None
    clock.now += 3.9
    crowded = [refusals(queue), refusals(queue)]
    clock.now += 0.6
    queue.expire()
    waiting, full = refusals(queue), refusals(queue)
    before_it_is_read = queue.refusal()
    clock.now += 0.6
    queue.expire()
    queue.complete(hanging, GOOD)
    after = [refusals(queue) for _ in range(3)]

    def reasons(*answers: Response | None) -> list[str]:
        return [headers_of(answer)["x-controlled-rollout-reason"] for answer in answers if answer is not None]

    assert reasons(*crowded[1]) == ["queue-full"]
    assert reasons(*crowded[0], *waiting, *full, before_it_is_read) == 4 * ["scoring-hangs"]
    assert headers_of(full[0])["x-controlled-rollout-send-again"] == "1"
    assert reasons(*after[2]) == ["queue-full"]


def test_a_request_that_has_waited_at_another_replica_gets_a_free_slot_or_is_refused_at_once(clock: Clock) -> None:
    queue = RequestQueue(1, 5, 0.5, 60, clock, time_of_day=lambda: 1_700_000_000.6)

    free = refusals(queue, sent="1700000000.000 20")
    busy = refusals(queue, sent="1700000000.000 20")
    # A long upload is no wait, and a clock that is a little ahead says nothing.
    slow_upload = refusals(queue, sent="1700000000.000 590")
    other_clock = refusals(queue, sent="1700000000.450 0")

    assert (free, slow_upload, other_clock) == ([], [], [])
    assert headers_of(busy[0])["x-controlled-rollout-reason"] == "waited-too-long"
    assert "x-controlled-rollout-send-again" not in headers_of(busy[0])


@given(st.text() | st.sampled_from(["nan", "inf 3", "1e400", "- -", "1700000000.000 -", "1700000000.000 ²"]))
def test_whatever_stands_in_the_routers_header_a_request_has_an_age(sent: str) -> None:
    assert age(sent, 1_700_000_000.0) >= 0
