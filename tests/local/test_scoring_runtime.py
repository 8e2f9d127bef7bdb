"""How a replica starts, stays alive, refuses and times out: real processes, real sockets."""

import http.client
import socket
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.local.scoring_environment import (
    DEADLINE_S,
    HOLD,
    environment_python,
    fetch,
    start_held_request,
    start_replica,
)
from tests.polling import wait_until
from tests.ports import free_port


@pytest.fixture(scope="module")
def python() -> Path:
    return environment_python()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


# Starting


def test_connections_are_refused_until_init_has_succeeded_in_every_worker(python: Path, tmp_path: Path) -> None:
    gate, health, port = tmp_path / "gate", f"unix:{tmp_path}/health", free_port()
    with start_replica(
        python,
        tmp_path,
        HOLD,
        bind=f"127.0.0.1:{port}",
        options=("--health", health),
        ready=False,
        INIT_WAITS_FOR=str(gate),
        WORKER_COUNT="2",
    ) as replica:
        wait_until(lambda: Path(f"{gate}.begun").exists(), "init() runs")
        live, ready = fetch(health, "/live"), fetch(health, "/ready")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        gate.touch()
        wait_until(lambda: fetch(health, "/ready")[0] == 200, "the replica is ready")
        replica.port = port
        response = replica.request("GET", "/")

    assert live[0] == 200
    assert ready == (503, "not ready: 0 of 2 workers\n")
    assert (response.status, response.body) == (200, b"Healthy")


@pytest.mark.parametrize(
    ("script", "last_line"),
    [
        ("def init():\n    raise RuntimeError('no weights')\ndef run(data): pass", "RuntimeError: no weights"),
        ("def init(:\n    pass", "SyntaxError: "),
        ("def run(data): pass", "does not have a init() function defined."),
        ("def init(): pass", "does not have a run() function defined."),
        ("import nowhere_to_be_found\ndef init(): pass", "No module named 'nowhere_to_be_found'"),
        ("def init(): raise SystemExit('gives up')\ndef run(data): pass", "SystemExit: gives up"),
    ],
    ids=["init raises", "syntax error", "no init", "no run", "missing package", "init exits"],
)
def test_unservable_script_ends_the_replica_with_its_traceback_at_the_end_of_the_log(
    python: Path, tmp_path: Path, script: str, last_line: str
) -> None:
    with start_replica(python, tmp_path, script, ready=False, WORKER_COUNT="1") as replica:
        code = replica.wait()

    assert code == 3
    assert last_line in replica.log.splitlines()[-1]
    assert replica.log.count("Traceback (most recent call last)") == 1


def test_worker_killed_during_init_is_named_in_the_log(python: Path, tmp_path: Path) -> None:
    script = "import os\ndef init(): os.kill(os.getpid(), 9)\ndef run(data): pass"
    with start_replica(python, tmp_path, script, ready=False) as replica:
        code = replica.wait()

    assert code == 1
    assert "was killed by SIGKILL (SIGKILL: often out of memory): the replica ends" in replica.log


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"WORKER_COUNT": "0"}, "WORKER_COUNT='0' is not a whole number above 0"),
        ({"SCORING_TIMEOUT_MS": "1.5"}, "SCORING_TIMEOUT_MS='1.5' is not a whole number above 0"),
        ({"AZUREML_ENTRY_SCRIPT": "other.py"}, "AZUREML_ENTRY_SCRIPT='other.py': there is no such file"),
        ({"AML_APP_ROOT": "/dev/null/app"}, "AML_APP_ROOT='/dev/null/app' is not a folder"),
    ],
)
def test_invalid_setting_is_named_and_nothing_starts(
    python: Path, tmp_path: Path, setting: dict[str, str], message: str
) -> None:
    with start_replica(python, tmp_path, HOLD, ready=False, environment=setting) as replica:
        code = replica.wait()

    assert code == 2
    assert message in replica.log


def test_port_in_use_is_an_error_that_names_it(python: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with start_replica(python, tmp_path, HOLD, bind=f"127.0.0.1:{port}", ready=False) as replica:
            code = replica.wait()

    assert code == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in replica.log


def test_unix_socket_is_private_replaces_a_stale_one_and_is_removed_at_exit(python: Path, tmp_path: Path) -> None:
    path = tmp_path / "score.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with start_replica(python, tmp_path, HOLD, bind=f"unix:{path}") as replica:
        mode = stat.S_IMODE(path.stat().st_mode)
        response = fetch(f"unix:{path}", "/score?a=1")
        replica.process.terminate()
        code = replica.wait()

    assert mode == 0o600
    assert response == (200, '"scored"')
    assert code == 0
    assert not path.exists()


def test_unix_socket_of_a_running_server_is_not_replaced(python: Path, tmp_path: Path) -> None:
    path = tmp_path / "score.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with start_replica(python, tmp_path, HOLD, bind=f"unix:{path}", ready=False) as replica:
            code = replica.wait()

    assert code == 2
    assert path.exists()


# Under load


def test_liveness_responds_while_every_slot_is_taken_and_requests_wait(
    python: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    gate, health = tmp_path / "gate", f"127.0.0.1:{free_port()}"
    with start_replica(
        python, tmp_path, HOLD, options=("--health", health), MAX_REQUEST_WAIT_TIME_MS="60000"
    ) as replica:
        first = start_held_request(replica, pool, gate)
        waiting = [pool.submit(replica.score) for _ in range(5)]
        started = time.monotonic()
        responses = [replica.request("GET", "/") for _ in range(10)]
        took = time.monotonic() - started
        parent = fetch(health, "/ready")
        still_held = not first.done()
        gate.touch()
        results = [future.result().status for future in [first, *waiting]]

    assert still_held
    assert {(response.status, response.body) for response in responses} == {(200, b"Healthy")}
    assert took < 2
    assert parent[0] == 200
    assert results == [200] * 6


def test_health_responds_while_a_model_holds_the_interpreter_lock(
    python: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    script = (
        "import ctypes\ndef init(): pass\n"
        "def run(data):\n    open(data, 'w').close()\n    ctypes.PyDLL(None).sleep(2)\n    return 'woke'"
    )
    begun, health = tmp_path / "begun", f"unix:{tmp_path}/health"
    with start_replica(python, tmp_path, script, options=("--health", health)) as replica:
        request = pool.submit(replica.score, str(begun))
        wait_until(begun.exists, "the model holds the interpreter lock")
        responses = [fetch(health, "/live"), fetch(health, "/ready")]
        still_held = not request.done()
        woke = request.result()

    assert [status for status, _ in responses] == [200, 200]
    assert still_held
    assert woke.status == 200


def test_request_that_waits_too_long_for_a_slot_is_a_503(
    python: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    gate = tmp_path / "gate"
    with start_replica(python, tmp_path, HOLD, MAX_REQUEST_WAIT_TIME_MS="200") as replica:
        first = start_held_request(replica, pool, gate)
        started = time.monotonic()
        refused = replica.score()
        waited = time.monotonic() - started
        gate.touch()

        assert (first.result().status, replica.score().status) == (200, 200)
    assert refused.status == 503
    assert refused.json == {"message": "overloaded: the request waited 200 ms for a slot"}
    assert 0.2 <= waited < 5


def test_request_beyond_the_queue_length_is_a_503_at_once(
    python: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    gate = tmp_path / "gate"
    with start_replica(python, tmp_path, HOLD, MAX_QUEUED_REQUESTS="2", MAX_REQUEST_WAIT_TIME_MS="60000") as replica:
        first = start_held_request(replica, pool, gate)
        # Two wait, the others are refused: only refused requests can be done while the slot is held.
        requests = [pool.submit(replica.score) for _ in range(6)]
        wait_until(lambda: sum(future.done() for future in requests) == 4, "four of six are refused")
        gate.touch()
        statuses = sorted(future.result().status for future in requests)

        assert first.result().status == 200
    assert statuses == [200, 200, 503, 503, 503, 503]


def test_concurrent_requests_of_a_worker_are_as_many_as_set(
    python: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    gates = [tmp_path / f"gate{number}" for number in range(3)]
    with start_replica(python, tmp_path, HOLD, REPLICA_MAX_CONCURRENT_REQUESTS="3") as replica:
        requests = [start_held_request(replica, pool, gate) for gate in gates]
        for gate in gates:
            gate.touch()

        assert [request.result().status for request in requests] == [200] * 3


def test_worker_count_is_the_number_of_processes_that_score(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, HOLD, WORKER_COUNT="2") as replica:
        workers: set[int] = set()

        def both_have_scored() -> bool:
            workers.add(replica.score("pid").json)
            return len(workers) == 2

        wait_until(both_have_scored, "both workers have scored")

        assert workers == set(replica.workers())


def test_body_over_the_limit_is_a_413(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, HOLD, MAX_BODY_BYTES="1000000") as replica:
        declared = replica.score(b"x" * 1_500_000)
        chunked = replica.score(iter([b"x" * 750_000] * 2))
        within = replica.score(b"x" * 1_000_000)

    assert (declared.status, chunked.status, within.status) == (413, 413, 200)
    assert declared.json == {"message": "the request's body exceeds 1,000,000 bytes"}


def test_incomplete_upload_is_not_scored(python: Path, tmp_path: Path) -> None:
    script = "def init(): pass\ndef run(data):\n    print('SCORED', data)\n    return 1"
    with start_replica(python, tmp_path, script) as replica:
        with socket.create_connection(("127.0.0.1", replica.port)) as caller:
            caller.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        after = replica.score("whole")
        # The drain waits for every admitted request: had the half been scored, the log would show it.
        replica.process.terminate()
        code = replica.wait()

    assert (after.status, code) == (200, 0)
    assert replica.log.count("SCORED") == replica.log.count("SCORED whole") == 1


def test_slow_upload_takes_no_slot(python: Path, tmp_path: Path) -> None:
    with (
        start_replica(python, tmp_path, HOLD) as replica,
        socket.create_connection(("127.0.0.1", replica.port)) as slow,
    ):
        slow.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        response = replica.score()

    assert response.status == 200


def test_connections_are_kept_alive(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, HOLD) as replica:
        connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=DEADLINE_S)
        ports = set()
        for _ in range(3):
            connection.request("POST", "/score", "x")
            ports.add(connection.sock.getsockname())
            assert connection.getresponse().read() == b'"scored"'
        connection.close()

    assert len(ports) == 1


# Time-outs


def test_scoring_timeout_is_a_504_and_interrupts_python_code(python: Path, tmp_path: Path) -> None:
    script = (
        "import time\ndef init(): pass\ndef run(data):\n    while data == 'loop': time.sleep(0.01)\n    return 'fine'"
    )
    with start_replica(python, tmp_path, script, SCORING_TIMEOUT_MS="300") as replica:
        late = replica.score("loop")
        after = replica.score("other")

    assert (late.status, late.json) == (504, {"message": "Scoring timeout after 300 ms"})
    assert late.headers["x-ms-run-function-failed"] == "True"
    assert after.status == 200


def test_scoring_timeout_of_native_code_is_a_504_and_the_slot_stays_taken(
    python: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    script = (
        "import ctypes\ndef init(): pass\n"
        "def run(data):\n    if data: ctypes.CDLL(None).usleep(1500000)\n    return 'fine'"
    )
    settings = {"SCORING_TIMEOUT_MS": "200", "MAX_REQUEST_WAIT_TIME_MS": "200", "REPLICA_MAX_CONCURRENT_REQUESTS": "2"}
    with start_replica(python, tmp_path, script, environment=settings) as replica:
        started = time.monotonic()
        late = [pool.submit(replica.score, "sleep") for _ in range(2)]
        responses = [future.result().status for future in late]
        took = time.monotonic() - started
        meanwhile = replica.score("")
        wait_until(lambda: replica.score("").status == 200, "a slot is free again")

    assert responses == [504, 504]
    assert took < 1.5
    assert meanwhile.status == 503
