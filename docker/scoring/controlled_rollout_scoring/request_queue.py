"""The queue of requests before a fixed number of scoring slots: bounded in length, every wait with an end.

The server's thread puts requests into it; the threads that own the slots take and score them. Nothing in this module
waits for a model, so refusals and time-outs are answered while every slot is busy.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from controlled_rollout_scoring.responses import (
    LEFT_QUEUE_HEADER,
    SEND_AGAIN_HEADER,
    Response,
    close_body,
    queue_full,
    scored_in,
    timed_out,
    waited_too_long,
)

# When the router had the whole request: the second since 1970 in which it began, and the milliseconds that it took to
# arrive. A request that another replica has refused comes with the same ones again.
SENT_HEADER = "HTTP_X_CONTROLLED_ROLLOUT_SENT"
# How the router chose this version; only what it split by weight is evidence, also of who hangs up.
ROUTED_BY = "HTTP_X_CONTROLLED_ROLLOUT_ROUTED_BY"
BY_WEIGHTS = "weights"
# A request that is older than this part of the longest wait has waited at another replica, or as long on its way.
WAITED_PART = 0.9
# Sends a response to one caller; the first one counts, a later one ends a streamed one.
Reply = Callable[[Response], None]


class Request:
    """One request: its WSGI environment, its body, the function that replies to its caller, and its times.

    Attributes:
        by_router: Whether the router has sent it, which never closes one direction of a connection only.
        by_weights: Whether the router split it by weight.
        has_waited: Whether it has waited at another replica before.
        is_over: Whether it is answered, or its caller has hung up.
    """

    __slots__ = ("arrived", "body", "by_router", "by_weights", "deadline", "environ", "has_waited", "is_over", "reply")

    def __init__(self, environ: dict[str, Any], body: bytes, reply: Reply) -> None:
        self.environ = environ
        self.body = body
        self.reply = reply
        self.arrived = 0.0
        routed_by = environ.get(ROUTED_BY)
        self.by_router = routed_by is not None
        self.by_weights = routed_by in (None, BY_WEIGHTS)
        self.deadline = 0.0
        self.has_waited = False
        self.is_over = False


class RequestQueue:
    """The queue before the slots.

    Args:
        slots: Requests that are scored at the same time.
        queue_length: Requests that may wait for a slot.
        max_wait_s: How long one may wait before it is answered 503.
        scoring_timeout_s: How long one may be scored before it is answered 504.
        clock: A monotonic clock, in seconds.
        time_of_day: The clock that the router has as well, in seconds since 1970.
    """

    def __init__(
        self,
        slots: int,
        queue_length: int,
        max_wait_s: float,
        scoring_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        time_of_day: Callable[[], float] = time.time,
    ) -> None:
        self._slots = slots
        self._capacity = slots + queue_length
        self._max_wait_s = max_wait_s
        self._scoring_timeout_s = scoring_timeout_s
        self._clock = clock
        self._time_of_day = time_of_day
        self._lock = threading.Lock()
        self._waiting: deque[Request] = deque()
        self._scoring: set[Request] = set()
        # One token for each request that began to wait (True), and one for each scoring thread to stop (False).
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._admitted = 0
        # Callers who hung up while they waited for a slot, and whom no answer has told the router of.
        self._left = 0
        # Requests that are being read; only the server's thread changes it. They take no place: slow callers would
        # keep others out.
        self.reading = 0

    @property
    def in_flight(self) -> int:
        """Requests that are not answered: being read, waiting or being scored."""
        return self.reading + self._admitted

    def refusal(self) -> Response | None:
        """Return the 503 for a request that begins to arrive while the queue is full; None if there is a place."""
        if self._admitted < self._capacity:
            return None
        with self._lock:
            hangs = self._timed_out_holds_slot(self._clock())
        return queue_full(self._capacity, hangs=hangs)

    def put(self, request: Request) -> None:
        """Put a request that was read into the queue, or answer it 503 when the queue is full.

        A request that has waited at another replica does not wait again: it gets a free slot, or is answered 503.
        """
        request.arrived = self._clock()
        sent = request.environ.pop(SENT_HEADER, "")
        request.has_waited = age(sent, self._time_of_day()) > WAITED_PART * self._max_wait_s
        with self._lock:
            full = self._admitted >= (self._slots if request.has_waited else self._capacity)
            if not full:
                self._admitted += 1
                self._waiting.append(request)
            hangs = self._timed_out_holds_slot(request.arrived)
        if not full:
            self._tokens.put(True)
        elif request.has_waited:
            self._reply(request, waited_too_long(self._max_wait_s, before=True, hangs=hangs))
        else:
            self._reply(request, queue_full(self._capacity, hangs=hangs))

    def take(self) -> Request | None:
        """Wait for the next request to score and return it; None when the thread has to stop."""
        while self._tokens.get():
            with self._lock:
                if not self._waiting:
                    continue
                request = self._waiting.popleft()
                now = self._clock()
                expired = now - request.arrived > self._max_wait_s
                if expired:
                    self._admitted -= 1
                else:
                    request.deadline = now + self._scoring_timeout_s
                    self._scoring.add(request)
                hangs = self._timed_out_holds_slot(now)
            if expired:
                self._reply(request, waited_too_long(self._max_wait_s, before=request.has_waited, hangs=hangs))
                continue
            return request
        return None

    def complete(self, request: Request, response: Response) -> None:
        """Answer a request that was scored, and free its slot; after its deadline the answer is a time-out.

        A streamed answer is sent here, and the slot is free at its end.
        """
        now = self._clock()
        late = now >= request.deadline
        if late:
            close_body(response.body)
        scored_s = now - (request.deadline - self._scoring_timeout_s)
        self._reply(request, timed_out(self._scoring_timeout_s) if late else scored_in(response, scored_s))
        with self._lock:
            if request in self._scoring:
                self._scoring.discard(request)
                self._admitted -= 1

    def cancel(self, request: Request) -> None:
        """Take a request whose caller has gone out of the queue, with its body; one that is being scored goes on."""
        with self._lock:
            request.is_over = True
            if request in self._waiting:
                self._waiting.remove(request)
                self._admitted -= 1
                # While a request that is timed out keeps a slot, it is the model that lets others wait.
                self._left += request.by_weights and not self._timed_out_holds_slot(self._clock())

    def stop(self, threads: int) -> None:
        """Make `take` return None in so many threads, once the queue is empty."""
        for _ in range(threads):
            self._tokens.put(False)

    def expire(self) -> float:
        """Answer all requests whose time is over; return the seconds until the next call is due.

        A request that is timed out keeps its slot until `run()` returns: Python code cannot be stopped from outside.
        """
        now = self._clock()
        expired: list[Request] = []
        with self._lock:
            while self._waiting and now - self._waiting[0].arrived >= self._max_wait_s:
                expired.append(self._waiting.popleft())
            self._admitted -= len(expired)
            overdue = [request for request in self._scoring if now >= request.deadline]
            # What arrives or begins after this instant cannot be due before these.
            due_in = [self._max_wait_s, self._scoring_timeout_s]
            if self._waiting:
                due_in.append(self._waiting[0].arrived + self._max_wait_s - now)
            due_in += [request.deadline - now for request in self._scoring if now < request.deadline]
        for request in expired:
            self._reply(request, waited_too_long(self._max_wait_s, before=request.has_waited, hangs=bool(overdue)))
        for request in overdue:
            self._reply(request, timed_out(self._scoring_timeout_s))
        return max(0.001, min(due_in))

    def _reply(self, request: Request, response: Response) -> None:
        """Answer a request; the answer also tells how many have left the queue, unless the router may not read it."""
        if self._left and request.by_weights and not request.is_over:
            names = {name for name, _ in response.headers}
            if SEND_AGAIN_HEADER not in names:
                with self._lock:
                    left, self._left = self._left, 0
                if left:
                    response = response._replace(headers=[*response.headers, (LEFT_QUEUE_HEADER, str(left))])
        request.is_over = True
        request.reply(response)

    def _timed_out_holds_slot(self, now: float) -> bool:
        """Return whether a request that is timed out keeps a slot; the lock is held. Then refusals are the model's."""
        return any(now >= request.deadline for request in self._scoring)


def age(sent: str, now: float) -> float:
    """Return how many seconds ago the router had a whole request; 0 if its header does not say so. Pure.

    Args:
        sent: The router's header, such as `1700000000.125 12`.
        now: Seconds since 1970.
    """
    began, _, took_ms = sent.partition(" ")
    try:
        return max(0.0, now - float(began) - (float(took_ms) / 1000 if took_ms.isdigit() else 0.0))
    except ValueError:
        return 0.0
