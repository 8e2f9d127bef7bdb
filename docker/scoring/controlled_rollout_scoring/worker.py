"""One scoring process: loads the model, says that it is ready, scores until it is asked to stop."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import socket
import sys
import threading
import time

from controlled_rollout_scoring.answers import failed
from controlled_rollout_scoring.application import Application, load
from controlled_rollout_scoring.log import say
from controlled_rollout_scoring.processes import die_with_parent
from controlled_rollout_scoring.server import Server
from controlled_rollout_scoring.settings import Settings
from controlled_rollout_scoring.turns import Turns

READY = b"ready\n"
# A connection that was opened and never used may stay open; answers on their way need less.
LINGER_S = 1.0


def main(listener_fd: int, channel_fd: int, parent: int) -> None:
    """Serve until the parent says otherwise.

    Args:
        listener_fd: The bound socket that all workers share.
        channel_fd: A socket to the parent: READY goes out, any byte or its end means that it is time to stop.
        parent: The parent's process id.
    """
    die_with_parent(signal.SIGKILL, parent)
    for stop in (signal.SIGTERM, signal.SIGINT):
        # Both reach the whole process group; the parent alone decides. (Ignoring them would be inherited by the
        # script's own subprocesses.)
        signal.signal(stop, lambda *_: None)
    settings = Settings.from_environment(os.environ)
    application = load(settings)
    # What init() has made stays: the garbage collector need not walk through it, again and again, between requests.
    gc.collect()
    gc.freeze()
    turns = Turns(settings.slots, settings.queue_length, settings.max_wait_s, settings.scoring_timeout_s)
    server = Server(socket.socket(fileno=listener_fd), turns, settings)
    channel = socket.socket(fileno=channel_fd)
    channel.sendall(READY)

    def stop_when_told() -> None:
        channel.recv(1)
        _drain(server, turns)
        turns.stop(settings.slots)

    threading.Thread(target=stop_when_told, name="stop", daemon=True).start()
    threading.Thread(target=_expire, args=(turns,), name="expire", daemon=True).start()
    if settings.slots == 1:
        # The main thread, as in the stock server: scripts rely on init() and run() sharing a thread.
        _score(application, turns)
        _end()
    scorers = [threading.Thread(target=_score, args=(application, turns), name="score") for _ in range(settings.slots)]
    for scorer in scorers:
        scorer.start()
    for scorer in scorers:
        scorer.join()
    _end()


def _score(application: Application, turns: Turns) -> None:
    while (request := turns.take()) is not None:
        try:
            answer = application(request.environ, request.body)
        except BaseException as ending:
            # sys.exit() in run(): the stock server loses the worker too.
            turns.done(request, failed())
            say(f"run() ended the process: {ending!r}")
            os._exit(1)
        turns.done(request, answer)


def _end() -> None:
    """End the process, after what the script has registered for its end; threads that it has started do not keep it."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def _expire(turns: Turns) -> None:
    while True:
        time.sleep(turns.expire())


def _drain(server: Server, turns: Turns) -> None:
    """Return when everything taken in is answered. The parent ends the process if that takes too long."""
    server.close()
    idle_since = time.monotonic()
    while not server.wait_closed(0.05):
        if turns.in_flight:
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since > LINGER_S:
            return


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))
