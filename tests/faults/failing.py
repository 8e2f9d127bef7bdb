"""An entry script that fails every twentieth request: exactly 5 % of the responses are 500."""

import itertools
from typing import Any

import score
from score import init  # noqa: F401 - the entry script has to have it

requests = itertools.count(1)


def run(data: str) -> Any:
    if next(requests) % 20 == 0:
        raise RuntimeError("injected: one request in twenty fails")
    return score.run(data)
