"""Print the names of the tests that failed in the last run of pytest, one per line, as pytest's arguments.

pytest's own `--last-failed` does not find them again after a run in several processes: xdist has put each test's group
behind its name there.
"""

import json
from pathlib import Path

LAST_FAILED = Path(__file__).parents[1] / ".pytest_cache" / "v" / "cache" / "lastfailed"


def without_group(name: str) -> str:
    """Return a test's name without the group that xdist has put behind it.

    >>> without_group("tests/local/test_a.py::test_b[x@y]@local/test_a.py")
    'tests/local/test_a.py::test_b[x@y]'
    """
    before, mark, after = name.rpartition("@")
    return before if mark and "]" not in after else name


def main() -> None:
    """Print the names; nothing where no test failed."""
    if LAST_FAILED.exists():
        for name in json.loads(LAST_FAILED.read_text(encoding="utf-8")):
            print(without_group(name))


if __name__ == "__main__":
    main()
