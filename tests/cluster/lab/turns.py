"""A readers-writer lock on the lab: many tests use it at the same time, a test that breaks it has it alone."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from .cache import cache_folder

__all__ = ["turn"]


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Hold the lock, across all processes of this machine.

    Args:
        alone: Hold it alone: wait until no other test uses the lab, and let the others wait.
    """
    entrance, use = (cache_folder() / f"{name}.lock" for name in ("entrance", "use"))
    with use.open("w") as use_lock:
        # A test that waits to be alone holds the entrance, so that no other one enters and it does not wait for ever.
        with entrance.open("w") as entrance_lock:
            fcntl.flock(entrance_lock, fcntl.LOCK_EX)
            fcntl.flock(use_lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
