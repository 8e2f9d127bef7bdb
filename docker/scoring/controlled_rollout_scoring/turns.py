"""Who is scored when: a bounded queue of requests before a fixed number of slots, with an end to every wait.

Requests are taken in by the server's threads, wait here, and are scored by the threads that own the slots. Nothing
in here waits for a model, so refusals and time-outs are answered while every slot is busy.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from controlled_rollout_scoring.answers import Answer, overloaded, timed_out, waited_too_long

# The way back to one caller; the first answer counts, later ones are dropped.
Reply = Callable[[Answer], None]


class Request:
    """One request on its way: its WSGI environment, its body, the way back to its caller, and its deadlines."""

    __slots__ = ("arrived", "body", "deadline", "environ", "reply")

    def __init__(self, environ: dict[str, Any], body: bytes, reply: Reply) -> None:
        self.environ = environ
        self.body = body
        self.reply = reply
        self.arrived = 0.0
        self.deadline = 0.0


class Turns:
    """The queue before the slots.

    Args:
        slots: Requests that are scored at the same time.
        queue_length: Requests that may wait.
        max_wait_s: How long one may wait before it is answered 503.
        scoring_timeout_s: How long one may be scored before it is answered 504.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        slots: int,
        queue_length: int,
        max_wait_s: float,
        scoring_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = slots + queue_length
        self._max_wait_s = max_wait_s
        self._scoring_timeout_s = scoring_timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: deque[Request] = deque()
        self._scoring: set[Request] = set()
        # One token for each request that began to wait, and one for each thread that should stop.
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._taken_in = 0

    @property
    def in_flight(self) -> int:
        """Requests that hold a place: being read, waiting or being scored."""
        return self._taken_in

    def admit(self, reply: Reply) -> bool:
        """Give a place to a request whose body is still to be read, or answer it 503 when there is none left."""
        with self._lock:
            if self._taken_in < self._places:
                self._taken_in += 1
                return True
        reply(overloaded(self._places))
        return False

    def leave(self) -> None:
        """Give back the place of a request that never waited."""
        with self._lock:
            self._taken_in -= 1

    def wait(self, request: Request) -> None:
        """Let an admitted request wait for a slot."""
        request.arrived = self._clock()
        with self._lock:
            self._waiting.append(request)
        self._tokens.put(True)

    def take(self) -> Request | None:
        """Wait for the next request to score; None when it is time to stop."""
        while self._tokens.get():
            with self._lock:
                if not self._waiting:
                    continue
                request = self._waiting.popleft()
                now = self._clock()
                late = now - request.arrived > self._max_wait_s
                if late:
                    self._taken_in -= 1
                else:
                    request.deadline = now + self._scoring_timeout_s
                    self._scoring.add(request)
            if late:
                request.reply(waited_too_long(self._max_wait_s))
                continue
            return request
        return None

    def done(self, request: Request, answer: Answer) -> None:
        """Answer a request that was scored, and free its slot. An answer after the deadline is a time-out."""
        late = self._clock() >= request.deadline
        request.reply(timed_out(self._scoring_timeout_s) if late else answer)
        with self._lock:
            self._scoring.discard(request)
            self._taken_in -= 1

    def stop(self, threads: int) -> None:
        """Let so many threads come back from `take` with None, once nothing waits any more."""
        for _ in range(threads):
            self._tokens.put(False)

    def expire(self) -> float:
        """Answer everything whose time is over and return the seconds until the next look.

        A request that is timed out keeps its slot until `run()` returns: Python cannot be stopped from outside.
        """
        now = self._clock()
        too_late: list[Request] = []
        with self._lock:
            while self._waiting and now - self._waiting[0].arrived >= self._max_wait_s:
                too_late.append(self._waiting.popleft())
            self._taken_in -= len(too_late)
            overdue = [request for request in self._scoring if now >= request.deadline]
            # Whatever begins after this instant cannot be over before these times.
            looks = [self._max_wait_s, self._scoring_timeout_s]
            if self._waiting:
                looks.append(self._waiting[0].arrived + self._max_wait_s - now)
            looks += [request.deadline - now for request in self._scoring if now < request.deadline]
        for request in too_late:
            request.reply(waited_too_long(self._max_wait_s))
        for request in overdue:
            request.reply(timed_out(self._scoring_timeout_s))
        return max(0.001, min(looks))
