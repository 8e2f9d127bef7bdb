"""Evaluates expectations for another process: imports the library once, and forks for each request.

A fork has the library loaded, takes its memory with it when it ends, and may die without harm to anything else.
"""

import gc
import os
import resource
import signal
import socket
import traceback
from datetime import timedelta
from typing import Final

from pydantic import BaseModel, ConfigDict

from controlled_rollout.expectations.result import Counted, Validation, ValidationRequest

__all__ = ["Answer", "TimedRequest", "serve"]

# Longer than between two looks; then the memory is given back.
IDLE: Final = timedelta(minutes=10)
# Data of one request's process: a request that needs more ends, and not the machine's other processes.
MOST_MEMORY: Final = 3 * 2**30
LAST_CHARACTERS: Final = 500


class TimedRequest(BaseModel):
    """A request with the time that it may take.

    Attributes:
        request: What to evaluate.
        seconds: How long that may take, in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: ValidationRequest
    seconds: int


class Answer(BaseModel):
    """What is answered: one of the three.

    Attributes:
        counted: If rows are to be counted.
        validation: If all rows are to be evaluated at once.
        fault: What went wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    counted: Counted | None = None
    validation: Validation | None = None
    fault: str = ""


def serve(control: socket.socket, *, idle: timedelta = IDLE) -> None:
    """Answer each socket that comes, in a process of its own, until the other side has closed or is idle.

    Args:
        control: Where the sockets come from; each of them carries one request.
        idle: How long to wait for the next one.
    """
    _load_library()
    # Ended processes are not waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # What is loaded is not looked at again by each fork's garbage collector, which would copy its pages.
    gc.freeze()
    control.settimeout(idle.total_seconds())
    while True:
        try:
            _, sockets, _, _ = socket.recv_fds(control, 1, 1)
        except TimeoutError:
            return
        if not sockets:
            return
        if os.fork() == 0:
            control.close()
            with socket.socket(fileno=sockets[0]) as connection:
                _answer(connection)
            os._exit(0)  # to take down what is loaded would copy all of it
        os.close(sockets[0])


def _load_library() -> None:
    """Import what evaluating needs; the library imports more of itself at its first evaluation."""
    import pandas as pd
    import pyarrow.parquet  # noqa: F401 - loaded now

    from controlled_rollout.expectations.suite import read_suite
    from controlled_rollout.expectations.validation import evaluated

    usual = [
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "number", "min_value": 0, "mostly": 0.9}},
        {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "text", "value_set": ["a"]}},
        {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "text", "regex": "a"}},
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "text"}},
        {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "number", "min_value": 0}},
    ]
    suite = read_suite({"rows": {"expectations": usual}})
    evaluated(pd.DataFrame({"number": [0.0, -1.0, None], "text": ["a", "b", None]}), suite.expectations)


def _answer(connection: socket.socket) -> None:
    """Read a request, and send its answer."""
    timed = TimedRequest.model_validate_json(_read_to_end(connection))
    # Whoever asks has given up by then; a regular expression can take for ever, and nothing else ends it.
    signal.alarm(timed.seconds)
    # The library draws its progress, whatever it is told.
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    connection.sendall(_answer_to(timed.request).model_dump_json().encode())


def _answer_to(request: ValidationRequest) -> Answer:
    """Return the answer to a request, or what went wrong."""
    from controlled_rollout.expectations.validation import count, validate

    try:
        return Answer(validation=validate(request)) if request.bin_width is None else Answer(counted=count(request))
    except MemoryError:
        return Answer(fault=f"more than {MOST_MEMORY / 2**30:g} GB of memory would be needed")
    except Exception as error:  # whatever a damaged part or the library raises is told
        last = traceback.format_exception_only(error)[-1]
        return Answer(fault=" ".join(last.split())[-LAST_CHARACTERS:])


def _read_to_end(connection: socket.socket) -> bytes:
    """Return everything that is sent until the other side has nothing more to send."""
    received = bytearray()
    while chunk := connection.recv(65_536):
        received += chunk
    return bytes(received)
