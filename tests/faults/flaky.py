"""An entry script whose process ends some time after its first request, after every restart."""

import os
import threading
from typing import Any

import score
from score import init  # noqa: F401 - the entry script has to have it

AFTER_S = float(os.environ.get("FLAKY_AFTER_S", "30"))
first_request = threading.Lock()


def run(data: str) -> Any:
    if first_request.acquire(blocking=False):
        bomb = threading.Timer(AFTER_S, os._exit, args=(70,))
        bomb.daemon = True
        bomb.start()
    return score.run(data)
