"""Every answer takes half as long again, and at least 4 ms more: p95 as the router sees it rises by 50 % or more."""

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
