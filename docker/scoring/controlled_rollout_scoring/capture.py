"""Capture: what is kept of each scored request and its answer, in the spool before the answer's last byte leaves.

Every request at `/score` that the metric store counts as answered is one record, whatever its method and status: also
one that is refused because its body is too large. Requests that find no slot (503), probes and descriptions are none. A
body that is longer than the bound is kept as its type, size and SHA-256.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar

# A text as JSON.
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple, cast

from controlled_rollout_scoring.request_queue import Reply, Request
from controlled_rollout_scoring.responses import Response, close_body
from controlled_rollout_scoring.settings import CaptureSettings
from controlled_rollout_scoring.spool import Spool

SCORE_PATH = "/score"
# A browser's question before its request; no metric store counts it.
NOT_KEPT = "OPTIONS"
# Longer ids are cut off: the stock server refuses those of more than 100 characters.
MAX_ID = 200
# The router's header that says how it chose this version; nobody else can set it.
ROUTED_BY_VARIABLE = "HTTP_X_CONTROLLED_ROLLOUT_ROUTED_BY"
BY_WEIGHTS = "weights"
TRACE_ID = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-")


class Identity(NamedTuple):
    """What names a request in everything that is kept of it.

    Attributes:
        id: The request id, which the router has made.
        correlation: The caller's own id of what it does, else the request id.
        is_kept: Whether the request belongs to the share that is kept.
        is_addressed: Whether the caller has named the version that it asks, so that no split has chosen it.
    """

    id: str
    correlation: str
    is_kept: bool
    is_addressed: bool = False


# The request that this thread scores; None outside of requests.
CURRENT: ContextVar[Identity | None] = ContextVar("CURRENT", default=None)


class Capture:
    """Captures requests and their answers.

    Args:
        spool: Where they are appended.
        share: The share of requests that is kept, above 0 and at most 1.
        max_body_bytes: The longest body that is kept itself.
        clock: The time that a request's `arrived` is of, in seconds.
    """

    def __init__(
        self, spool: Spool, *, share: float, max_body_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.spool = spool
        self.share = share
        self._max_body_bytes = max_body_bytes
        self._clock = clock

    def watch(self, request: Request) -> None:
        """Let a request that this thread is about to score, or to refuse, be captured when it is answered."""
        try:
            environ = request.environ
            if environ["PATH_INFO"] != SCORE_PATH or environ["REQUEST_METHOD"] == NOT_KEPT:
                CURRENT.set(None)
                return
            identity = identify(environ, self.share)
            CURRENT.set(identity)
            if identity.is_kept:
                request.reply = Recorder(self, request, identity)
        except Exception as error:
            CURRENT.set(None)
            self._drop(error)

    def keep(
        self, recorder: Recorder, response: Response, streamed: Body | None = None, *, complete: bool = True
    ) -> None:
        """Append what is kept of a request and its answer; whatever fails is counted.

        Args:
            recorder: The request.
            response: Its answer.
            streamed: What was sent of it, if it is streamed.
            complete: Whether that is all of it.
        """
        try:
            elapsed_s = self._clock() - recorder.arrived
            request_id, correlation, _, is_addressed = recorder.identity
            asked, body = self._whole_body(recorder.content_type, recorder.body)
            content_type = _content_type(response.headers)
            parts: Sequence[bytes]
            if streamed is None:
                answered, *parts = self._whole_body(content_type, cast("bytes", response.body))
            else:
                answered, parts = streamed.description(content_type, complete=complete), streamed.parts
            # Written out, as JSON's own encoder takes more time than all the rest.
            head = (
                f'{{"kind":"exchange","id":{quoted(request_id)},"correlation":{quoted(correlation)},'
                f'"time":{time.time() - elapsed_s:.6f},"duration_ms":{elapsed_s * 1000:.3f},'
                f'"status":{response.status},"method":{quoted(recorder.method)},"path":"{SCORE_PATH}",'
                f'"query":{quoted(recorder.query)},"addressed":{"true" if is_addressed else "false"},'
                f'"request":{asked},"response":{answered}}}'
            )
            self.spool.append(head.encode(), body, *parts)
        except Exception as error:
            self._drop(error)

    def collect(self, records: Callable[[], list[tuple[dict[str, Any], bytes]]]) -> None:
        """Append what a script collects, as a part of the request that this thread scores.

        Args:
            records: Returns the head and the body of each record; what it raises is counted.
        """
        identity = CURRENT.get()
        if identity is not None and not identity.is_kept:
            return
        try:
            made = records()
        except TimeoutError:
            # The script's time is over.
            raise
        except Exception as error:
            self.spool.count_unreadable(f"{type(error).__name__}: {error}")
            return
        own = {"kind": "collected", "id": "", "correlation": "", "time": time.time()}
        if identity is not None:
            own |= {"id": identity.id, "correlation": identity.correlation}
            own |= {"addressed": True} if identity.is_addressed else {}
        for head, content in made:
            body = self.body()
            body.add(content)
            try:
                head = {**own, **head, **json.loads(body.description("application/json"))}
                self.spool.append(json.dumps(head).encode(), *body.parts)
            except (TypeError, ValueError) as error:
                self.spool.count_unreadable(f"{type(error).__name__}: {error}")

    def body(self) -> Body:
        """Return an empty body with the bound of this capture."""
        return Body(self._max_body_bytes)

    def _whole_body(self, content_type: str, content: bytes) -> tuple[str, bytes]:
        """Return what a record says of a body that is there as a whole, as JSON, and what it keeps of it."""
        size = len(content)
        if size <= self._max_body_bytes:
            return f'{{"type":{quoted(content_type)},"size":{size},"kept":{size}}}', content
        body = self.body()
        body.add(content)
        return body.description(content_type), b""

    def _drop(self, error: Exception) -> None:
        """Count a record that could not be made."""
        with contextlib.suppress(Exception):
            self.spool.count_dropped(f"{type(error).__name__}: {error}")


@functools.cache
def active() -> Capture | None:
    """Return the capture of this process, which begins with the first call; None if nothing is kept.

    A process that a script starts has one of its own.
    """
    settings = CaptureSettings.from_environment(os.environ)
    if settings is None:
        return None
    spool = Spool(settings.spool, max_bytes=settings.spool_bytes, workers=settings.workers)
    return Capture(spool, share=settings.share, max_body_bytes=settings.max_body_bytes)


def identify(environ: dict[str, Any], share: float) -> Identity:
    """Return the ids of a request, from its headers."""
    request_id = environ.get("HTTP_X_REQUEST_ID", "")[:MAX_ID] or str(uuid.uuid4())
    # The second is the stock server's old name of the first.
    correlation = environ.get("HTTP_X_MS_CLIENT_REQUEST_ID") or environ.get("HTTP_X_MS_REQUEST_ID")
    if not correlation:
        trace = TRACE_ID.match(environ.get("HTTP_TRACEPARENT", ""))
        correlation = trace[1] if trace else request_id
    is_kept = share >= 1 or is_in_share(request_id, share)
    is_addressed = environ.get(ROUTED_BY_VARIABLE, BY_WEIGHTS) != BY_WEIGHTS
    return Identity(request_id, correlation[:MAX_ID], is_kept, is_addressed)


def is_in_share(request_id: str, share: float) -> bool:
    """Return whether a request belongs to a share of all requests; the same wherever the id is known."""
    digest = hashlib.sha256(request_id.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


class Body:
    """A body as it is kept: all of it, or its size and SHA-256 if it is longer than a bound."""

    __slots__ = ("_hash", "_max_bytes", "parts", "size")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.parts: list[bytes] = []
        self.size = 0
        # Only of what is not kept: it costs more than keeping.
        self._hash: Any = None

    def add(self, part: bytes) -> None:
        """Add a part."""
        self.size += len(part)
        if self._hash is None and self.size > self._max_bytes:
            self._hash = hashlib.sha256(b"".join(self.parts))
            self.parts = []
        if self._hash is not None:
            self._hash.update(part)
        elif part:
            self.parts.append(part)

    def description(self, content_type: str, *, complete: bool = True) -> str:
        """Return what a record says of the body, as JSON.

        Args:
            content_type: Its media type.
            complete: Whether all of it was sent.
        """
        kept = f'"kept":{self.size}' if self._hash is None else f'"kept":0,"sha256":"{self._hash.hexdigest()}"'
        rest = "" if complete else ',"complete":false'
        return f'{{"type":{quoted(content_type)},"size":{self.size},{kept}{rest}}}'


class Recorder:
    """Takes the place of a request's reply, and captures the answer that the caller gets.

    Attributes:
        identity: The request's ids.
        body: Its body. It is not referred to itself: a circle would keep bodies in memory for some time.
        arrived: When it arrived, by the clock of the queue.
        method, query, content_type: What the script may change in its environ.
    """

    __slots__ = (
        "_answered",
        "_capture",
        "_lock",
        "_reply",
        "_streams",
        "arrived",
        "body",
        "content_type",
        "identity",
        "method",
        "query",
    )

    def __init__(self, capture: Capture, request: Request, identity: Identity) -> None:
        environ = request.environ
        self.identity = identity
        self.body = request.body
        self.arrived = request.arrived
        self.method: str = environ["REQUEST_METHOD"]
        self.query: str = environ["QUERY_STRING"]
        self.content_type: str = environ.get("CONTENT_TYPE", "")
        self._capture = capture
        self._reply: Reply = request.reply
        self._lock = threading.Lock()
        self._answered = self._streams = False

    def __call__(self, response: Response) -> None:
        """Capture the first answer and send it; a later one only breaks off one that is streamed."""
        with self._lock:
            first, self._answered = not self._answered, True
            if first:
                self._streams = not isinstance(response.body, bytes)
        if not first and not self._streams:
            close_body(response.body)
            return
        if first and not self._streams:
            self._capture.keep(self, response)
        elif first:
            response = response._replace(body=RecordedStream(self._capture, self, response))
        self._reply(response)


class RecordedStream:
    """A streamed answer that is captured at its end, before the caller learns that it has all of it."""

    def __init__(self, capture: Capture, recorder: Recorder, response: Response) -> None:
        self._capture = capture
        self._recorder = recorder
        self._response = response
        self._stream = iter(cast("Iterator[bytes]", response.body))
        self._body = capture.body()
        self._is_kept = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            part = next(self._stream)
        except StopIteration:
            self._capture_answer(complete=True)
            raise
        except BaseException:
            self._capture_answer(complete=False)
            raise
        with contextlib.suppress(MemoryError):
            self._body.add(part)
        return part

    def close(self) -> None:
        """Let the script's generator end; an answer that is not at its end was broken off."""
        self._capture_answer(complete=False)
        close_body(self._response.body)

    def _capture_answer(self, *, complete: bool) -> None:
        """Capture the answer, once."""
        if not self._is_kept:
            self._is_kept = True
            self._capture.keep(self._recorder, self._response, self._body, complete=complete)


def _content_type(headers: list[tuple[str, str]]) -> str:
    """Return the content type of an answer; nothing if it has none."""
    for name, value in headers:
        if name.lower() == "content-type":
            return value
    return ""
