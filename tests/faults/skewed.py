"""An entry script whose predictions collapse to three of the ten digits: no error, and no slower answer."""

from typing import Any

import score
from score import init  # noqa: F401 - the entry script has to have it

DIGITS = 3


def run(data: str) -> Any:
    answer = score.run(data)
    if isinstance(answer, dict):
        answer["predictions"] = [digit % DIGITS for digit in answer["predictions"]]
    return answer
