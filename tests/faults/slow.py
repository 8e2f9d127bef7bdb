"""An entry script that is 50 % slower, at least by 4 ms: p95 at the router rises by 50 % or more."""

import time
from typing import Any

import score
from score import init  # noqa: F401 - the entry script has to have it

LEAST_EXTRA_S = 0.004


def run(data: str) -> Any:
    began = time.perf_counter()
    answer = score.run(data)
    time.sleep(max(LEAST_EXTRA_S, 0.5 * (time.perf_counter() - began)))
    return answer
