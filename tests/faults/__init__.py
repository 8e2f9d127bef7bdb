"""Treatments that are known to be bad: the stock project folder with a faulty entry script.

Each `<fault>.py` here imports the folder's own `score.py` and adds one fault:

| fault     | what callers see                                                                            |
|-----------|---------------------------------------------------------------------------------------------|
| `failing` | 5 % of the answers are 500                                                                  |
| `slow`    | every answer takes half as long again, at least 4 ms more                                   |
| `crash`   | the version never becomes ready: `init()` raises                                            |
| `flaky`   | the process dies 30 s after its first request (`FLAKY_AFTER_S`), and so does every new one  |
| `skewed`  | every digit is answered as 0, 1 or 2: no error, and no slower answer                        |

`project(fault, source, into)` copies the stock folder and the fault's script side by side; deploy that folder with
`entry_script="<fault>.py"`.
"""

import shutil
from pathlib import Path

__all__ = ["FAULTS", "project"]

FAULTS = ("failing", "slow", "crash", "flaky", "skewed")


def project(fault: str, source: Path, into: Path) -> str:
    """Copy the stock project folder `source` to `into` with one fault, and return the entry script to deploy it with.

    Raises:
        ValueError: The fault is not known.
    """
    if fault not in FAULTS:
        raise ValueError(f"fault {fault!r} is not known: choose one of {', '.join(FAULTS)}")
    shutil.copytree(source, into, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    shutil.copy(Path(__file__).with_name(f"{fault}.py"), into)
    return f"{fault}.py"
