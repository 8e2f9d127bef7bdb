"""How a replica drains and dies: real processes, real signals."""

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.local.scoring_environment import (
    DEADLINE_S,
    HOLD,
    Replica,
    environment_python,
    free_port,
    held,
    refuses,
    replica,
    runtime_environment,
)
from tests.polling import wait_until


@pytest.fixture(scope="module")
def python() -> Path:
    return environment_python()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


def test_sigterm_answers_what_is_in_flight_refuses_what_is_new_and_exits_0(
    python: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    gate = tmp_path / "gate"
    with replica(python, tmp_path, HOLD, MAX_REQUEST_WAIT_TIME_MS="60000") as served:
        idle = socket.create_connection(("127.0.0.1", served.port))
        scored = held(served, pool, gate)
        queued = sent(served.port)
        # Connections are accepted in their order: once this one is answered, the request before it has been taken in.
        served.request("GET", "/")
        served.process.terminate()
        wait_until(lambda: refuses(served.port), "new connections are refused")
        still_scoring = not scored.done()
        gate.touch()
        code = served.wait()
        answer = queued.recv(1000)
        idle.close()
        queued.close()

    assert still_scoring
    assert scored.result().status == 200
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert code == 0
    assert scored.result().headers["Connection"] == "close"


def sent(port: int) -> socket.socket:
    """A connection on which a request has been sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
    return connection


def test_script_that_leaves_threads_behind_does_not_hold_up_the_end(python: Path, tmp_path: Path) -> None:
    script = (
        "import atexit, threading, time\n"
        "def init():\n"
        "    atexit.register(print, 'tidied up')\n"
        "    threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "def run(data): return 1"
    )
    with replica(python, tmp_path, script) as served:
        served.process.terminate()
        code = served.wait()

    assert code == 0
    assert "tidied up" in served.log


def test_drain_ends_after_its_time_even_if_a_model_does_not(
    python: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with replica(python, tmp_path, HOLD, DRAIN_TIMEOUT_S="1") as served:
        request = held(served, pool, tmp_path / "never")
        started = time.monotonic()
        served.process.terminate()
        code = served.wait()
        took = time.monotonic() - started
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            request.result()

    assert code == 1
    assert 1 <= took < 10
    assert "cut off" in served.log


def test_signal_to_the_whole_process_group_drains_too(python: Path, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    gate = tmp_path / "gate"
    with replica(python, tmp_path, HOLD) as served:
        request = held(served, pool, gate)
        for pid in [*served.workers(), served.process.pid]:
            os.kill(pid, signal.SIGINT)
        wait_until(lambda: refuses(served.port), "new connections are refused")
        gate.touch()
        code = served.wait()

    assert (request.result().status, code) == (200, 0)


def test_sigterm_during_init_ends_the_replica_at_once(python: Path, tmp_path: Path) -> None:
    gate = tmp_path / "never"
    with replica(python, tmp_path, HOLD, ready=False, INIT_WAITS_FOR=str(gate)) as served:
        wait_until(lambda: Path(f"{gate}.begun").exists(), "init() runs")
        served.process.terminate()
        code = served.wait()

    assert code == 0


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os\ndef init(): pass\ndef run(data): os._exit(7)", "exited with code 7"),
        ("import os\ndef init(): pass\ndef run(data): os._exit(0)", "exited with code 0"),
        ("import os\ndef init(): pass\ndef run(data): os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("import ctypes\ndef init(): pass\ndef run(data): ctypes.string_at(0)", "was killed by SIGSEGV"),
        ("import sys\ndef init(): pass\ndef run(data): sys.exit('done with it')", "SystemExit('done with it')"),
    ],
    ids=["exit 7", "exit 0", "SIGKILL", "segmentation fault", "sys.exit"],
)
def test_worker_that_dies_ends_the_replica_with_the_reason_in_the_log(
    python: Path, tmp_path: Path, script: str, reason: str
) -> None:
    with replica(python, tmp_path, script) as served:
        try:
            status = served.score().status
        except (http.client.HTTPException, ConnectionError):
            status = None
        code = served.wait()

    assert status in (None, 500)
    assert code == 1
    assert reason in served.log
    assert "the replica ends" in served.log


def test_other_workers_finish_when_one_dies(python: Path, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    gate = tmp_path / "gate"
    with replica(python, tmp_path, HOLD, WORKER_COUNT="2") as served:
        request = held(served, pool, gate)
        idle = wait_until(lambda: idle_worker(served), "the idle worker has answered")
        os.kill(idle, signal.SIGKILL)
        wait_until(lambda: "the replica ends" in served.log, "the death is noticed")
        gate.touch()

        assert request.result().status == 200
        assert served.wait() == 1


def idle_worker(served: Replica) -> int | None:
    answer = served.score("pid")
    return answer.json if answer.status == 200 else None


def test_workers_die_with_a_parent_that_is_killed(python: Path, tmp_path: Path) -> None:
    with replica(python, tmp_path, HOLD, WORKER_COUNT="2") as served:
        workers = served.workers()
        served.process.kill()
        wait_until(lambda: not any(runs(pid) for pid in workers), "the workers are gone")

    assert len(workers) == 2


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_replica_that_is_asked_to_ends_with_the_process_that_started_it(python: Path, tmp_path: Path) -> None:
    starter = tmp_path / "starter.py"
    starter.write_text(
        "import subprocess, sys, time\n"
        "print(subprocess.Popen([sys.executable, '-m', 'controlled_rollout_scoring', *sys.argv[1:]]).pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    app = tmp_path / "app"
    app.mkdir()
    (app / "score.py").write_text(HOLD)
    port = free_port()
    command = [str(python), str(starter), "--bind", f"127.0.0.1:{port}", "--exit-with-parent"]
    with subprocess.Popen(command, env=runtime_environment(app, {}), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until(lambda: not refuses(port), "the replica is ready")
        parent.kill()
        wait_until(lambda: not runs(pid), "the replica is gone")

    assert refuses(port)
