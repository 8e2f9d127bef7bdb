"""Random answers of scripts, and random requests, against a real replica: `python -m tests.scoring_fuzz`.

Whatever a script answers and whatever a caller sends: no process ends, every caller gets an answer or a broken
connection, and none a false 200. The replica captures: every scored request is in its spool, with the answer that its
caller got.
"""

import argparse
import http.client
import json
import random
import re
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.local.scoring_environment import Replica, Response, environment_python, start_replica
from tests.unit.scoring.spool_reader import counts, records

TIMEOUT_S = 20.0
SPOOL = "spool"
FAILING_PARTS = ("int", "none", "raise", "interrupt", "panic")
SCRIPT = """
import json
from azureml_inference_server_http.api.aml_request import rawhttp
from flask import Response

class Panic(BaseException):
    pass

VALUES = {
    "none": lambda: None, "object": object, "set": lambda: {1}, "bytes": lambda: b"x", "nan": lambda: float("nan"),
    "tuple": lambda: (1, 2), "class": lambda: dict, "text": lambda: "\\ud800", "keys": lambda: {(1, 2): 3},
    "response class": lambda: Response, "iterator": lambda: iter([1]), "many digits": lambda: 10 ** 5_000,
}
ERRORS = {"raise": ValueError, "interrupt": KeyboardInterrupt, "panic": Panic, "memory": MemoryError,
          "recursion": RecursionError, "generator": GeneratorExit, "stop": StopIteration}

def init():
    pass

def parts(asked):
    for kind, text in asked:
        if kind in ERRORS:
            raise ERRORS[kind]("asked for")
        yield {"int": 5, "none": None}.get(kind, text.encode("latin-1"))

@rawhttp
def run(request):
    if not request.is_json:
        return Response(request.get_data(), content_type="application/octet-stream")
    asked = json.loads(request.get_data())
    if "value" in asked:
        return VALUES[asked["value"]]()
    if "error" in asked:
        raise ERRORS[asked["error"]]("asked for")
    response = Response(parts(asked["parts"]))
    response.status = asked["status"]
    # Past the checks of werkzeug, as extensions and subclasses are.
    response.headers._list.extend(map(tuple, asked["headers"]))
    return response
"""
VALUES = (
    "none", "object", "set", "bytes", "nan", "tuple", "class", "text", "keys", "response class", "iterator",
    "many digits",
)  # fmt: skip
ERRORS = ("raise", "interrupt", "panic", "memory", "recursion", "generator", "stop")


@contextmanager
def fuzzed_replica(folder: Path) -> Iterator[Replica]:
    """Serve the script, and capture; the worker has to be the same at the end."""
    settings = {
        "CAPTURE_SPOOL": str(folder / SPOOL),
        "CAPTURE_SPOOL_BYTES": "2000000000",
        # On a busy machine requests wait for longer than in production.
        "MAX_REQUEST_WAIT_TIME_MS": "20000",
    }
    with start_replica(environment_python(), folder, SCRIPT, environment=settings) as replica:
        workers = replica.workers()
        yield replica
        assert replica.process.poll() is None, replica.log[-3_000:]
        assert replica.workers() == workers
        assert replica.score("alive", Content_Type="text/plain").body == b"alive"


# Answers


def random_answer(draw: random.Random) -> dict[str, Any]:
    """Return what the script is asked to answer."""
    kind = draw.random()
    if kind < 0.05:
        return {"value": draw.choice(VALUES)}
    if kind < 0.1:
        return {"error": draw.choice(ERRORS)}
    status = draw.choice(["200 OK"] * 6 + ["204 NO CONTENT", "304 X", "404 NOT FOUND", "500 X", "100 C", "101 S"])
    if draw.random() < 0.15:
        status = draw.choice([f"{draw.randint(-10, 1200)} X", "", "\ud800", "200", "2x0 X", "0200 OK", "²00 OK"])
    headers = [random_header(draw) for _ in range(draw.choice([0, 0, 0, 0, 1, 2]))]
    parts = [random_part(draw) for _ in range(draw.choice([0, 1, 1, 2, 3]))]
    if draw.random() < 0.2:
        length = sum(len(text) for _, text in parts) + draw.choice([0, 0, -1, 1])
        headers.append(["Content-Length", str(length)])
    return {"status": status, "headers": headers, "parts": parts}


def random_header(draw: random.Random) -> list[Any]:
    """Return a name and a value, often such that cannot be sent."""
    name = draw.choice(
        ["X-A", "x-b", "Set-Cookie", "Connection", "Transfer-Encoding", "X A", "", "X\n", "\ud800", "É:", 5]
    )
    values = ["a", "", " a ", "é", "☃", "\ud800", "a\r\nX-B: c", "a\x00", "chunked", "close", "x" * 70_000, 5, None]
    return [name, draw.choice(values)]


def random_part(draw: random.Random) -> list[str]:
    """Return the kind of a part of the body, and its bytes as latin-1."""
    if draw.random() < 0.15:
        return [draw.choice(FAILING_PARTS), ""]
    return ["bytes", "".join(chr(draw.randrange(256)) for _ in range(draw.choice([0, 1, 5, 300])))]


def answer_to(replica: Replica, asked: dict[str, Any], request_id: str) -> Response | None:
    """Let the script answer; return what the caller got, None for a broken connection."""
    try:
        return replica.score(json.dumps(asked), X_Request_Id=request_id)
    except (http.client.IncompleteRead, ConnectionError):
        return None


def judge_answer(response: Response | None, asked: dict[str, Any]) -> str:
    """Return what the caller got, in a word; an AssertionError if that is not true."""
    parts = asked.get("parts", [])
    failing = next((number for number, (kind, _) in enumerate(parts) if kind in FAILING_PARTS), None)
    if response is None:
        assert failing is not None, asked
        assert any(text for _, text in parts[:failing]), asked
        return "broken off"
    if response.status == 500 and response.body.startswith(b'{"message": "'):
        assert failing is not None or asked.get("headers") != [] or asked["status"] != "200 OK", asked
        return "500"
    if "parts" not in asked:
        assert response.status == 200, asked
        assert "error" not in asked, asked
        return "value"
    assert str(response.status) == asked["status"].split(" ")[0], (asked, response)
    without_body = response.status in (204, 304)
    assert failing is None or without_body, asked
    assert response.body == (b"" if without_body else "".join(text for _, text in parts).encode("latin-1")), asked
    return "whole"


def judge_spool(spool: Path, answered: Mapping[str, tuple[int, bytes] | None]) -> None:
    """Raise an AssertionError unless each scored request is in the spool once, with the answer that its caller got.

    Args:
        spool: The spool of the replica.
        answered: The status and the body of each answer by the id of its request; None for a broken connection.
    """
    kept = records(spool)
    times = Counter(record.head["id"] for record in kept)
    assert {name: times[name] for name in answered} == dict.fromkeys(answered, 1)
    for record in kept:
        asked, said = record.head["request"], record.head["response"]
        assert len(record.bodies) == asked["kept"] + said["kept"], record.head
        if record.head["id"] in answered:
            response = answered[record.head["id"]]
            assert said.get("complete", True) == (response is not None), record.head
            assert response is None or (record.head["status"], record.response) == response
    assert counts(spool).dropped == 0


# Requests


def random_request(draw: random.Random) -> bytes:
    """Return the bytes of one or two requests, mostly damaged."""
    data = b"".join(whole_request(draw) for _ in range(draw.choice([1, 1, 1, 2])))
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
        place = draw.randrange(len(data) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            data = data[:place]
        elif kind == 1:
            data = data[:place] + bytes([draw.randrange(256)]) + data[place:]
        elif kind == 2:
            data = data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :]
        elif kind == 3:
            data = data[:place] + data[place + draw.randrange(1, 9) :]
        elif kind == 4:
            data = (
                data[:place]
                + draw.choice([b"\r\n", b"\n", b"\r\n\r\n", b"0\r\n\r\n", b"\x00", b";", b" "])
                + data[place:]
            )
        else:
            data = data.replace(b"\r\n", draw.choice([b"\n", b"\r", b"\r\n "]), 1)
    return data


def whole_request(draw: random.Random) -> bytes:
    """Return a request that nothing is wrong with."""
    body = bytes(draw.randrange(256) for _ in range(draw.choice([0, 1, 5, 40])))
    head = draw.choice([b"POST /score HTTP/1.1\r\n", b"POST /score HTTP/1.0\r\n", b"GET /score?a=1 HTTP/1.1\r\n"])
    head += b"Host: x\r\nContent-Type: application/octet-stream\r\n"
    if draw.random() < 0.2:
        head += draw.choice(
            [b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"X-A: \xff\r\n", b"Upgrade: h2c\r\n"]
        )
    if draw.random() < 0.5 and b"HTTP/1.1" in head:
        chunks, rest = b"", body
        while rest:
            size = draw.randint(1, len(rest))
            chunks += b"%x\r\n%b\r\n" % (size, rest[:size])
            rest = rest[size:]
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def judge_request(replica: Replica, data: bytes, *, split: int) -> str:
    """Send bytes, close the sending side, and return what came back; an AssertionError if that is not true."""
    received = b""
    with socket.create_connection(("127.0.0.1", replica.port), timeout=TIMEOUT_S) as connection:
        try:
            connection.sendall(data[:split])
            connection.sendall(data[split:])
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                received += chunk
        except TimeoutError:
            raise AssertionError(f"no answer to {data!r}") from None
        except OSError:
            pass  # broken off
    scored = [body for status, is_score, body in answers(received) if status == 200 and is_score]
    # In their order; others may have been refused.
    possible = iter(bodies(data))
    assert all(body in possible for body in scored), (data, received)
    return "scored" if scored else received[9:12].decode("latin-1") or "closed"


def answers(received: bytes) -> Iterator[tuple[int, bool, bytes]]:
    """Read answers: status, whether `run` gave it, and the body."""
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        status = int(head[9:12])
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
        if status != 100:
            yield status, b"x-ms-run-fn-exec-ms" in head, rest[:length]
        received = rest[length:]


def bodies(data: bytes) -> list[bytes]:
    """Return the bodies of the whole requests at the beginning of some bytes; only how they are framed is looked at."""
    found: list[bytes] = []
    # Empty lines before a request are ignored (RFC 9112, 2.2).
    while data := data.lstrip(b"\r\n"):
        head, blank, data = data.partition(b"\r\n\r\n")
        fields = [
            (name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in head.split(b"\r\n"))
        ]
        listed = b",".join(value.lower() for name, value in fields if name == b"transfer-encoding")
        codings = [coding.strip() for coding in listed.split(b",") if coding.strip()]
        lengths = [value for name, value in fields if name == b"content-length"]
        if not blank or len(codings) + len(lengths) > 1 or (codings and codings != [b"chunked"]):
            return found
        length = lengths[0] if lengths else b"0"
        framed = (
            unchunked(data) if codings else (data[: int(length)], data[int(length) :]) if length.isdigit() else None
        )
        if framed is None or (lengths and len(framed[0]) < int(length)):
            return found
        found.append(framed[0])
        data = framed[1]
    return found


def unchunked(data: bytes) -> tuple[bytes, bytes] | None:
    """Return a chunked body and what is behind it; None if it is cut off or garbled."""
    body = b""
    while size := re.match(rb"([0-9a-fA-F]+)(?:[ \t]*;[^\r\n]*)?\r\n", data):
        length, data = int(size[1], 16), data[size.end() :]
        if not length:
            trailers = re.match(rb"(?:[^\r\n]+\r\n)*\r\n", data)
            return (body, data[trailers.end() :]) if trailers else None
        if data[length : length + 2] != b"\r\n":
            return None
        body, data = body + data[:length], data[length + 2 :]
    return None


def run(replica: Replica, *, answers: int, requests: int, seed: int) -> Counter[str]:
    """Try so many random answers and requests; return how often what came of them."""
    draw = random.Random(seed)
    seen: Counter[str] = Counter()
    answered: dict[str, tuple[int, bytes] | None] = {}
    for number in range(answers):
        asked, name = random_answer(draw), f"answer {number}"
        response = answer_to(replica, asked, name)
        answered[name] = None if response is None else (response.status, response.body)
        seen["answer: " + judge_answer(response, asked)] += 1
    for _ in range(requests):
        data = random_request(draw)
        seen["request: " + judge_request(replica, data, split=draw.randrange(len(data) + 1))] += 1
    judge_spool(replica.log_file.parent / SPOOL, answered)
    return seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, fuzzed_replica(Path(folder)) as replica:
        for what, count in sorted(run(replica, **vars(options)).items()):
            print(f"{what:24s} {count:9,}")
