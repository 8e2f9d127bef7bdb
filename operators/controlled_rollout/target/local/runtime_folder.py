"""The supervisor's folder of sockets: private, short in its path, removed when the supervisor ends in any way."""

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from controlled_rollout.target.local import reaper
from controlled_rollout.target.local.child_process import RUNTIME_VARIABLE
from controlled_rollout.target.local.remains import RUNTIME_PREFIX

__all__ = ["parent_of_sockets", "runtime_folder"]

# A unix socket's path has at most 107 bytes; below this folder, its own name and a socket's name follow.
MAX_PARENT_BYTES: Final = 70


def parent_of_sockets(temporary: Path) -> Path:
    """Return the folder for temporary files; `/tmp` if its path is too long for the sockets below it."""
    return temporary if len(os.fsencode(temporary)) <= MAX_PARENT_BYTES else Path("/tmp")  # noqa: S108 - mkdtemp's parent


@contextlib.contextmanager
def runtime_folder() -> Iterator[Path]:
    """Context manager: create a private folder for sockets; a reaper process removes it, even if this one is killed."""
    parent = parent_of_sockets(Path(tempfile.gettempdir()))
    runtime = Path(tempfile.mkdtemp(prefix=RUNTIME_PREFIX, dir=parent))
    # systemd-tmpfiles keeps a locked folder, however old it gets.
    lock = os.open(runtime, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    watcher = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-I", "-S", reaper.__file__, f"{RUNTIME_VARIABLE}={runtime}", str(runtime)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield runtime
    finally:
        watcher.communicate(reaper.ENDED)
        os.close(lock)
