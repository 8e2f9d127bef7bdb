"""One scoring process: loads the model, reports that it is ready, scores requests until the parent stops it."""

from __future__ import annotations

import functools
import gc
import os
import signal
import socket
import sys
import threading
import time

from controlled_rollout_scoring import collectors, python_end
from controlled_rollout_scoring.application import Application, load
from controlled_rollout_scoring.capture import Capture, active
from controlled_rollout_scoring.log import log, restore_streams
from controlled_rollout_scoring.processes import close_connections, signal_at_parent_death
from controlled_rollout_scoring.request_queue import RequestQueue
from controlled_rollout_scoring.responses import script_failed
from controlled_rollout_scoring.server import Server
from controlled_rollout_scoring.settings import Settings

# Here, so that a process that the script starts, which imports this module first, has them, too.
collectors.install()

# What a worker tells its parent: it takes requests; every request that it has taken is answered, and it ends.
READY = b"ready\n"
ANSWERED = b"answered\n"
OWN_PID = os.getpid()
# With nothing in flight, responses are sent within this time; connections that are still open then are idle.
IDLE_TIMEOUT_S = 1.0


def main(listener_fd: int, channel_fd: int, parent: int) -> None:
    """Serve requests until the parent asks the worker to stop.

    Args:
        listener_fd: The bound socket that all workers share.
        channel_fd: A socket to the parent: the worker sends READY and ANSWERED; the end of what the parent sends means
            stop.
        parent: The parent's process id.
    """
    signal_at_parent_death(signal.SIGKILL, parent)
    for stop in (signal.SIGTERM, signal.SIGINT):
        # Both signals may reach the whole process group; only the parent acts on them. (SIG_IGN would be inherited by
        # the script's own subprocesses.)
        signal.signal(stop, _ignore)
    listener = socket.socket(fileno=listener_fd)
    channel = socket.socket(fileno=channel_fd)
    for own in (listener, channel):
        own.set_inheritable(False)
    os.register_at_fork(after_in_child=functools.partial(_leave_to_parent, listener.getsockname(), channel))
    python_end.prepare()
    settings = Settings.from_environment(os.environ)
    capture = active()
    application = load(settings)
    restore_streams()
    # The objects that init() made live as long as the process: take them out of every later garbage collection.
    gc.collect()
    gc.freeze()
    requests = RequestQueue(settings.slots, settings.queue_length, settings.max_wait_s, settings.scoring_timeout_s)
    server = Server(listener, requests, settings, capture.watch if capture is not None else None)
    channel.sendall(READY)

    def stop_on_request() -> None:
        channel.recv(1)
        _drain(server, requests)
        requests.stop(settings.slots)

    threading.Thread(target=stop_on_request, name="stop", daemon=True).start()
    threading.Thread(target=_expire, args=(requests,), name="expire", daemon=True).start()
    if settings.slots == 1:
        # In the main thread, as in the stock server: scripts rely on init() and run() sharing a thread.
        _score(application, requests, server, capture)
    else:
        threads = [
            threading.Thread(target=_score, args=(application, requests, server, capture), name="score")
            for _ in range(settings.slots)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if capture is not None:
        capture.spool.write_counts()
    channel.sendall(ANSWERED)
    python_end.end_process()


def _ignore(signal_number: int, frame: object) -> None:
    """Do nothing about a signal, in the worker; SIGTERM ends a process that the script has forked."""
    # It may have a handler of its own, as coverage has, that ends by calling the one before.
    if signal_number == signal.SIGTERM and os.getpid() != OWN_PID:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _leave_to_parent(listener_name: object, channel: socket.socket) -> None:
    """Give up, in a process that the script has forked, what belongs to the worker: its sockets, and how it ends."""
    if signal.getsignal(signal.SIGTERM) is _ignore:
        # It can be ended by a signal, as multiprocessing does. Ctrl-C is for the parent alone here, too.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    channel.close()
    close_connections(listener_name)


def _score(application: Application, requests: RequestQueue, server: Server, capture: Capture | None) -> None:
    """Score requests in this thread until the queue is stopped."""
    while (request := requests.take()) is not None:
        if capture is not None:
            capture.watch(request)
        try:
            # A streamed answer is made while it is sent.
            answer = application(request.environ, request.body)
            restore_streams()
            requests.complete(request, answer)
        except BaseException as error:
            # sys.exit() in run(): the stock server loses the worker too.
            requests.complete(request, script_failed())
            log(f"run() ended the process: {error!r}")
            server.close()
            server.wait_closed(IDLE_TIMEOUT_S)
            os._exit(1)


def _expire(requests: RequestQueue) -> None:
    """Answer requests whose time is over, forever."""
    while True:
        time.sleep(requests.expire())


def _drain(server: Server, requests: RequestQueue) -> None:
    """Refuse new connections and wait until every admitted request is answered.

    There is no time limit here: the parent kills the process after the drain time-out.
    """
    server.close()
    idle_since = time.monotonic()
    while not server.wait_closed(0.05):
        if requests.in_flight:
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since > IDLE_TIMEOUT_S:
            return


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))
