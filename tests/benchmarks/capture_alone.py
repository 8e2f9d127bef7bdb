"""What capture takes a thread that does nothing else, printed as JSON; run by the interpreter of a version.

`python capture_alone.py FOLDER`, with a request's body on standard input.
"""

import json
import resource
import sys
import time

from controlled_rollout_scoring.capture import Capture
from controlled_rollout_scoring.request_queue import Request
from controlled_rollout_scoring.responses import Response
from controlled_rollout_scoring.spool import Spool

# In a round; the kernel counts its time in milliseconds.
REQUESTS, REQUESTS_OF_100_KB = 20_000, 3_000
ROUNDS = 9
ENVIRON = {
    "PATH_INFO": "/score",
    "REQUEST_METHOD": "POST",
    "QUERY_STRING": "",
    "CONTENT_TYPE": "application/json",
    "HTTP_X_REQUEST_ID": "6f3f6f0e-5a3e-4b0a-9d3c-0c8d4f5a7b61",
}
RESPONSE = Response(200, [("Content-Type", "application/json")], b"[1]")


class NoSpool(Spool):
    """Keeps nothing."""

    def append(self, head: bytes, *bodies: bytes) -> bool:
        """Return at once."""
        return True


def processor_us(capture: Capture, body: bytes) -> tuple[float, float]:
    """Return what a request takes this thread, in Python and in the kernel, in microseconds."""
    requests = REQUESTS if len(body) < 10_000 else REQUESTS_OF_100_KB
    before = resource.getrusage(resource.RUSAGE_THREAD)
    for _ in range(requests):
        request = Request(ENVIRON, body, lambda response: None)
        request.arrived = time.monotonic()
        capture.watch(request)
        request.reply(RESPONSE)
    after = resource.getrusage(resource.RUSAGE_THREAD)
    python, kernel = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return python / requests * 1e6, kernel / requests * 1e6


def main(folder: str) -> None:
    """Measure some rounds, of which the fastest counts, with a spool and without one."""
    body = sys.stdin.buffer.read()
    least = {}
    for spool in (Spool, NoSpool):
        capture = Capture(spool(folder, max_bytes=4_000_000_000), share=1, max_body_bytes=1_000_000)
        least[spool] = min((processor_us(capture, body) for _ in range(ROUNDS)), key=sum)
        assert capture.spool._dropped == 0
    figures = {"all_us": sum(least[Spool]), "kernel_us": least[Spool][1], "without_spool_us": sum(least[NoSpool])}
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
