"""How a script's streamed answer reaches a caller who gets it in one piece."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from controlled_rollout_scoring import exchange
from controlled_rollout_scoring.exchange import Exchange
from controlled_rollout_scoring.responses import Response


class Connection:
    def __init__(self) -> None:
        self.answers: list[Response] = []

    def answer(self, exchange: Exchange, response: Response) -> None:
        self.answers.append(response)


class Loop:
    def call_soon_threadsafe(self, function: Callable[..., None], *arguments: Any) -> None:
        function(*arguments)


def answered(body: Any) -> Response:
    connection: Any = Connection()
    loop: Any = Loop()
    Exchange(connection, loop, buffers=True)(Response(200, [], body))
    (answer,) = connection.answers
    assert isinstance(answer, Response)
    return answer


def test_a_streamed_answer_of_any_length_is_not_gathered_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_BUFFERED_BYTES", 10)
    endless = itertools.count()

    whole = answered(iter([b"12345", b"67890"]))
    refused = answered(b"12345" for _ in endless)

    assert (whole.status, whole.body) == (200, b"1234567890")
    assert refused.status == 500
    assert ("x-ms-run-function-failed", "True") in refused.headers
    assert next(endless) == 3
