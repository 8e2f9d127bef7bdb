"""The parent process of one replica: binds the address, starts the workers, watches them, drains them.

It imports nothing of the user's environment and serves no model, so health probes are always answered. When a worker
dies, the replica ends: the target starts it again, with a back-off and a log that says why.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from dataclasses import dataclass

from controlled_rollout_scoring import health
from controlled_rollout_scoring.log import log
from controlled_rollout_scoring.processes import adopt_orphans, end_children, reap_orphans
from controlled_rollout_scoring.settings import Address, Settings, bound_address
from controlled_rollout_scoring.worker import ANSWERED, READY

# How long to wait for workers that were killed after the drain time-out.
KILL_TIMEOUT_S = 5.0
# How long processes that the script has left behind may take to end after SIGTERM, and after SIGKILL.
ORPHANS_GRACE_S = 1.0
ORPHANS_KILL_S = 1.0
RUNTIME_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass
class Worker:
    """A scoring process, the socket to it, and what it has said so far: it takes requests; it has answered all."""

    number: int
    process: asyncio.subprocess.Process
    channel: socket.socket
    ready: bool = False
    answered: bool = False

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.process.pid})"

    def how_it_ended(self) -> str:
        """Return how the process ended, in words."""
        code = self.process.returncode or 0
        if code >= 0:
            return f"{self} exited with code {code}"
        hint = " (SIGKILL: often out of memory)" if code == -signal.SIGKILL else ""
        return f"{self} was killed by {signal.Signals(-code).name}{hint}"


class Replica:
    """Starts the workers of one replica, and ends them together."""

    def __init__(self, settings: Settings, address: Address) -> None:
        self._settings = settings
        self._address = address
        self._workers: list[Worker] = []
        self._reports: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    async def run(self, listener: socket.socket, health_listener: socket.socket | None) -> int:
        """Serve until a signal comes or a worker dies; return the exit code."""
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self._stopping.set)
        adopt_orphans()
        loop.add_signal_handler(signal.SIGCHLD, self._reap_orphans)
        try:
            return await self._serve(listener, health_listener)
        finally:
            loop.remove_signal_handler(signal.SIGCHLD)
            ended = await end_children(ORPHANS_GRACE_S, ORPHANS_KILL_S)
            # Why a script could not be served stays the last lines of the log.
            if ended and any(worker.ready for worker in self._workers):
                log(f"ended {ended} process(es) that the script had started and not ended")

    async def _serve(self, listener: socket.socket, health_listener: socket.socket | None) -> int:
        """Start the workers, wait for a signal or the death of a worker, and end them; return the exit code."""
        if health_listener is not None:
            await health.serve(health_listener, {"/live": self._live, "/ready": self._ready})
        for number in range(1, self._settings.workers + 1):
            self._workers.append(await _start_worker(number, listener, self._settings.app_root))
        # From here on only the workers hold the listener: when they stop listening, callers are refused.
        listener.close()
        self._reports = [asyncio.create_task(self._read_reports(worker)) for worker in self._workers]
        exits = {asyncio.create_task(worker.process.wait()): worker for worker in self._workers}
        stopping = asyncio.create_task(self._stopping.wait())
        done, _ = await asyncio.wait([stopping, *exits], return_when=asyncio.FIRST_COMPLETED)
        code = await (self._stop() if stopping in done else self._end_after_death_of(exits[next(iter(done))]))
        stopping.cancel()
        return code

    async def _read_reports(self, worker: Worker) -> None:
        """Read what a worker says until it ends."""
        report = b""
        while part := await asyncio.get_running_loop().sock_recv(worker.channel, 64):
            report += part
            if report.startswith(READY) and not worker.ready:
                worker.ready = True
                if all(worker.ready for worker in self._workers):
                    log(f"ready: listening on {self._address}, {len(self._workers)} worker(s)")
            worker.answered = report == READY + ANSWERED

    def _reap_orphans(self) -> None:
        """Release ended processes that the script has started, and that have lost the worker that started them."""
        reap_orphans([worker.process.pid for worker in self._workers])

    async def _stop(self) -> int:
        """Drain the workers after a signal; return the exit code: 0 if every request was answered."""
        log(f"asked to stop: draining for at most {self._settings.drain_timeout_s:g} s")
        begun = [worker for worker in self._workers if worker.ready]
        killed = await self._drain()
        await asyncio.wait(self._reports, timeout=KILL_TIMEOUT_S)
        failed = [worker for worker in begun if worker.process.returncode or not worker.answered]
        for worker in failed:
            if worker in killed:
                what = "threads or processes of the script" if worker.answered else "requests"
                log(f"{worker} was killed: {what} that had not ended in time were cut off")
            else:
                lost = "" if worker.answered else ": requests that it had not answered are lost"
                log(f"{worker.how_it_ended()} while it was stopping{lost}")
        log("stopped")
        return 1 if failed else 0

    async def _end_after_death_of(self, worker: Worker) -> int:
        """Log why a worker died, drain the others, and return the exit code."""
        code = worker.process.returncode or 0
        if not worker.ready and code > 0:
            # The worker has logged why it could not start: these lines should stay the last ones.
            self._kill_workers()
            return code
        log(f"{worker.how_it_ended()}: the replica ends")
        await self._drain()
        return 1

    async def _drain(self) -> list[Worker]:
        """Stop the workers that still run; return those that had to be killed because they took too long."""
        for worker in self._workers:
            if worker.process.returncode is None:
                if worker.ready:
                    worker.channel.shutdown(socket.SHUT_WR)
                else:
                    worker.process.kill()
        exits = {asyncio.create_task(worker.process.wait()): worker for worker in self._workers}
        _, running = await asyncio.wait(exits, timeout=self._settings.drain_timeout_s)
        if running:
            self._kill_workers()
            await asyncio.wait(running, timeout=KILL_TIMEOUT_S)
        return [exits[task] for task in running]

    def _kill_workers(self) -> None:
        for worker in self._workers:
            if worker.process.returncode is None:
                worker.process.kill()

    def _live(self) -> tuple[bool, str]:
        return True, "live"

    def _ready(self) -> tuple[bool, str]:
        if self._stopping.is_set():
            return False, "not ready: stopping"
        ready = sum(worker.ready and worker.process.returncode is None for worker in self._workers)
        total = self._settings.workers
        return ready == total, f"{'ready' if ready == total else 'not ready'}: {ready} of {total} workers"


async def _start_worker(number: int, listener: socket.socket, app_root: str) -> Worker:
    """Start a worker as a new interpreter that shares nothing with this process but the two sockets."""
    parent_end, worker_end = socket.socketpair()
    parent_end.setblocking(False)
    with worker_end:
        descriptors = (listener.fileno(), worker_end.fileno())
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-u",
            "-m",
            "controlled_rollout_scoring.worker",
            *map(str, (*descriptors, os.getpid())),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=descriptors,
            # `-m` puts the current folder first on the path: this one holds only the runtime, no user code.
            cwd=RUNTIME_FOLDER,
            env={**os.environ, "AML_APP_ROOT": app_root},
        )
    return Worker(number, process, parent_end)


def serve(settings: Settings, bind: Address, health_bind: Address | None) -> int:
    """Serve a version on an address until it is stopped or fails.

    Returns:
        The exit code: 0 after a complete drain; the worker's code if the script could not be served; 1 if a worker died
        or the drain timed out.

    Raises:
        SettingError: An address is taken.
    """
    listener = bind.bind()
    paths = [bind.path]
    try:
        health_listener = health_bind.bind() if health_bind else None
        paths += [health_bind.path] if health_bind else []
        return asyncio.run(Replica(settings, bound_address(listener)).run(listener, health_listener))
    finally:
        for path in filter(None, paths):
            if os.path.exists(path):
                os.unlink(path)
