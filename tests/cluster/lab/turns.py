"""Who may use the lab at the same time: any number of users, or one who breaks it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from .cache import cache_folder

__all__ = ["turn"]


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Use the lab, across all processes of this machine.

    Args:
        alone: Wait until nobody else uses it, and keep everybody else waiting.
    """
    door, room = (cache_folder() / f"{name}.lock" for name in ("door", "room"))
    with room.open("w") as inside:
        # Who wants to be alone keeps the door closed while the others leave, or would wait for ever.
        with door.open("w") as waiting:
            fcntl.flock(waiting, fcntl.LOCK_EX)
            fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
