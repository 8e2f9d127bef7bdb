"""What a signal does to a worker, and to what its script has forked."""

import os
import subprocess
import sys
from pathlib import Path

RUNTIME = Path(__file__).parents[3] / "docker" / "scoring"

PROGRAM = """
import os, signal
from controlled_rollout_scoring import worker

signal.signal(signal.SIGTERM, worker._ignore)
os.kill(os.getpid(), signal.SIGTERM)
child = os.fork()
if child == 0:
    # As at the end of a handler that was set after the fork, such as coverage's.
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_sigterm_does_nothing_to_a_worker_and_ends_a_forked_process_whose_handler_calls_the_one_before() -> None:
    command = [sys.executable, "-c", PROGRAM]
    environment = {**os.environ, "PYTHONPATH": str(RUNTIME)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)

    assert ended.stdout == "-15\n"
