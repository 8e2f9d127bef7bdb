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
    refuses_connections,
    runtime_environment,
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


def test_sigterm_completes_requests_in_flight_refuses_new_connections_and_exits_0(
    python: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    gate = tmp_path / "gate"
    with start_replica(python, tmp_path, HOLD, MAX_REQUEST_WAIT_TIME_MS="60000") as replica:
        idle = socket.create_connection(("127.0.0.1", replica.port))
        scored = start_held_request(replica, pool, gate)
        queued = send_request(replica.port)
        # Connections are accepted in order: once this request is answered, the one before it is in the queue.
        replica.request("GET", "/")
        replica.process.terminate()
        wait_until(lambda: refuses_connections(replica.port), "new connections are refused")
        still_scoring = not scored.done()
        gate.touch()
        code = replica.wait()
        response = queued.recv(1000)
        idle.close()
        queued.close()

    assert still_scoring
    assert scored.result().status == 200
    assert response.startswith(b"HTTP/1.1 200 OK")
    assert code == 0
    assert scored.result().headers["Connection"] == "close"


def send_request(port: int) -> socket.socket:
    """Send a request, and return its connection without reading the response."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
    return connection


# Each keeps a worker from ending that does not end as Python does, or stays behind.
POOLS_AND_PROCESSES = """
import multiprocessing, os, signal, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import joblib

def own_pid(_): return os.getpid()

def forsaken():
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.setsid()
            os.write(write_end, str(os.getpid()).encode())
            time.sleep(600)
        os._exit(0)
    os.wait()
    return int(os.read(read_end, 20))

def init():
    global pids, kept
    # Forks first: Python does not promise that what is forked beside threads ends, in no program.
    process = multiprocessing.Process(target=time.sleep, args=(600,))
    process.start()
    orphan = forsaken()
    executor = ProcessPoolExecutor(2)
    pids = {
        "process": process.pid,
        "process that ignores SIGTERM and has lost its parent": orphan,
        "process pool": executor.submit(own_pid, 1).result(),
    }
    spawn = multiprocessing.get_context("spawn")
    spawned, pool, threads = ProcessPoolExecutor(1, spawn), spawn.Pool(1), ThreadPoolExecutor(2)
    threads.submit(own_pid, 1).result()
    unread = multiprocessing.Queue()
    unread.put("x" * 1_000_000)
    kept = [executor, threads, spawned, pool, process, unread]
    pids |= {
        "spawned process pool": spawned.submit(own_pid, 1).result(),
        "multiprocessing.Pool": pool.map(own_pid, [1])[0],
        "joblib": joblib.Parallel(n_jobs=2)(joblib.delayed(os.getpid)() for _ in range(2))[0],
    }

def run(data): return pids
"""


def test_idle_pools_and_processes_of_the_script_end_with_the_replica_at_once(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, POOLS_AND_PROCESSES) as replica:
        pids = replica.score().json
        before = {name for name, pid in pids.items() if is_running(pid)}
        begun = time.monotonic()
        replica.process.terminate()
        code = replica.wait()
        took = time.monotonic() - begun

    assert before == set(pids)
    assert {name for name, pid in pids.items() if is_running(pid)} == set()
    assert refuses_connections(replica.port)
    assert "cut off" not in replica.log
    assert code == 0
    # Far below the drain's 30 s.
    assert took < 15


def test_child_processes_that_hang_do_not_keep_a_replica_without_work_from_ending(python: Path, tmp_path: Path) -> None:
    script = """
import multiprocessing, os, signal, time
from concurrent.futures import ProcessPoolExecutor
import joblib

def init():
    global pids, kept
    process = multiprocessing.Process(target=time.sleep, args=(600,))
    process.start()
    executor = ProcessPoolExecutor(1)
    pids = [process.pid, executor.submit(os.getpid).result()]
    pool = multiprocessing.get_context("spawn").Pool(1)
    kept = [executor, pool]
    pids += [pool.apply(os.getpid), *joblib.Parallel(n_jobs=2)(joblib.delayed(os.getpid)() for _ in range(2))]
    for pid in pids:
        # What is stopped ends by SIGKILL alone, as what waits for a lock that nobody will release.
        os.kill(pid, signal.SIGSTOP)

def run(data): return pids
"""
    with start_replica(python, tmp_path, script) as replica:
        pids = replica.score().json
        replica.process.terminate()
        code = replica.wait()

    assert code == 0, replica.log
    assert not any(is_running(pid) for pid in pids)
    assert "child processes had not ended 3 s after they were told to, and were killed: 'LokyProcess-" in replica.log
    assert "cut off" not in replica.log


def test_processes_that_lose_the_one_that_started_them_leave_nothing_behind_when_they_end(
    python: Path, tmp_path: Path
) -> None:
    script = """
import subprocess
def init(): pass
def run(data): return int(subprocess.run(["sh", "-c", "sleep 0.1 & echo $!"], capture_output=True).stdout)
"""
    with start_replica(python, tmp_path, script) as replica:
        pid = replica.score().json
        # Also no zombie, which would keep its number.
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the process is gone")


@pytest.mark.parametrize("slots", ["1", "2"])
def test_work_that_outlives_its_request_is_waited_for_within_the_drain(
    python: Path, tmp_path: Path, slots: str
) -> None:
    script = f"""
import atexit, os, threading, time
from concurrent.futures import ThreadPoolExecutor

def init():
    global pool
    pool = ThreadPoolExecutor(1)
    atexit.register(print, "tidied up")

def write(name):
    while not os.path.exists({str(tmp_path / "gate")!r}):
        time.sleep(0.005)
    print(name, "has written")

def run(data):
    threading.Thread(target=write, args=("the thread",), name="writer").start()
    pool.submit(write, "the executor")
"""
    with start_replica(python, tmp_path, script, REPLICA_MAX_CONCURRENT_REQUESTS=slots) as replica:
        replica.score()
        replica.process.terminate()
        wait_until(lambda: "waiting for what the script has started: thread 'writer'" in replica.log, "it waits")
        closed = refuses_connections(replica.port)
        (tmp_path / "gate").touch()
        code = replica.wait()

    assert closed
    assert replica.log.count("the thread has written") == replica.log.count("the executor has written") == 1
    assert replica.log.index("has written") < replica.log.index("tidied up")
    assert code == 0


def test_threads_that_never_end_are_cut_off_with_the_drain_and_the_log_says_so(python: Path, tmp_path: Path) -> None:
    script = (
        "import threading, time\n"
        "def init(): threading.Thread(target=time.sleep, args=(600,), name='poll').start()\n"
        "def run(data): return 1"
    )
    with start_replica(python, tmp_path, script, DRAIN_TIMEOUT_S="2") as replica:
        replica.process.terminate()
        code = replica.wait()

    assert code == 1
    assert "waiting for what the script has started: thread 'poll'" in replica.log
    assert "threads or processes of the script that had not ended in time were cut off" in replica.log


def test_process_that_keeps_a_forked_copy_of_a_connection_does_not_hold_it_open(python: Path, tmp_path: Path) -> None:
    script = """
import os, time

def init(): pass

def run(data):
    pid = os.fork()
    if pid:
        return pid
    time.sleep(600)
"""
    with start_replica(python, tmp_path, script) as replica:
        with socket.create_connection(("127.0.0.1", replica.port), timeout=DEADLINE_S) as connection:
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            with connection.makefile("rb") as answer:
                # Reading ends once every copy of the other end is closed.
                child = int(answer.read().rpartition(b"\n")[2])
        forked = is_running(child)
        replica.process.terminate()
        code = replica.wait()

    assert (forked, is_running(child)) == (True, False)
    assert code == 0


@pytest.mark.parametrize(
    ("end", "reason"), [("os._exit(0)", "exited with code 0"), ("os.kill(os.getpid(), 11)", "was killed by SIGSEGV")]
)
def test_worker_that_dies_while_it_drains_makes_the_exit_code_1(
    python: Path, tmp_path: Path, pool: ThreadPoolExecutor, end: str, reason: str
) -> None:
    gate = tmp_path / "gate"
    script = HOLD.replace('return "scored"', end)
    with start_replica(python, tmp_path, script) as replica:
        request = start_held_request(replica, pool, gate)
        replica.process.terminate()
        wait_until(lambda: refuses_connections(replica.port), "new connections are refused")
        gate.touch()
        code = replica.wait()
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            request.result()

    assert code == 1
    assert f"{reason} while it was stopping: requests that it had not answered are lost" in replica.log


def test_drain_ends_after_its_timeout_even_if_a_model_is_still_scoring(
    python: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with start_replica(python, tmp_path, HOLD, DRAIN_TIMEOUT_S="1") as replica:
        request = start_held_request(replica, pool, tmp_path / "never")
        started = time.monotonic()
        replica.process.terminate()
        code = replica.wait()
        took = time.monotonic() - started
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            request.result()

    assert code == 1
    assert 1 <= took < 10
    assert "cut off" in replica.log


def test_signal_to_the_whole_process_group_drains_the_replica(
    python: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    gate = tmp_path / "gate"
    with start_replica(python, tmp_path, HOLD) as replica:
        request = start_held_request(replica, pool, gate)
        for pid in [*replica.workers(), replica.process.pid]:
            os.kill(pid, signal.SIGINT)
        wait_until(lambda: refuses_connections(replica.port), "new connections are refused")
        gate.touch()
        code = replica.wait()

    assert (request.result().status, code) == (200, 0)


def test_sigterm_during_init_ends_the_replica_at_once(python: Path, tmp_path: Path) -> None:
    gate = tmp_path / "never"
    with start_replica(python, tmp_path, HOLD, ready=False, INIT_WAITS_FOR=str(gate)) as replica:
        wait_until(lambda: Path(f"{gate}.begun").exists(), "init() runs")
        replica.process.terminate()
        code = replica.wait()

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
def test_death_of_a_worker_ends_the_replica_with_the_reason_in_the_log(
    python: Path, tmp_path: Path, script: str, reason: str
) -> None:
    with start_replica(python, tmp_path, script) as replica:
        try:
            status = replica.score().status
        except (http.client.HTTPException, ConnectionError):
            status = None
        code = replica.wait()

    assert status in (None, 500)
    assert code == 1
    assert reason in replica.log
    assert "the replica ends" in replica.log


def test_other_workers_complete_their_requests_when_one_dies(
    python: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    gate = tmp_path / "gate"
    with start_replica(python, tmp_path, HOLD, WORKER_COUNT="2") as replica:
        request = start_held_request(replica, pool, gate)
        idle = wait_until(lambda: idle_worker(replica), "the idle worker responds")
        os.kill(idle, signal.SIGKILL)
        wait_until(lambda: "the replica ends" in replica.log, "the replica reports the death of the worker")
        gate.touch()

        assert request.result().status == 200
        assert replica.wait() == 1


def idle_worker(replica: Replica) -> int | None:
    """Return the process id of a worker that is free; None if none is."""
    response = replica.score("pid")
    return response.json if response.status == 200 else None


def test_workers_end_when_their_parent_is_killed(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, HOLD, WORKER_COUNT="2") as replica:
        workers = replica.workers()
        replica.process.kill()
        wait_until(lambda: not any(is_running(pid) for pid in workers), "the workers have ended")

    assert len(workers) == 2


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_exit_with_parent_ends_the_replica_when_its_starter_is_killed(python: Path, tmp_path: Path) -> None:
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
        wait_until(lambda: not refuses_connections(port), "the replica is ready")
        parent.kill()
        wait_until(lambda: not is_running(pid), "the replica has ended")

    assert refuses_connections(port)
