"""Where what is slow to make is kept, and how it is made once."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["cache_folder", "digest_of", "locked", "made_once"]


def cache_folder() -> Path:
    """Return the folder that outlives every lab and every checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "controlled-rollout" / "lab"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest_of(*parts: str, folder: Path | None = None) -> str:
    """Return a short digest of texts and of all files in a folder."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    for file in sorted(folder.rglob("*")) if folder else ():
        if file.is_file():
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock that all runs on this machine share; it goes with the process, however that ends."""
    with (cache_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(kind: str, name: str, digest: str, make: Callable[[Path], None]) -> Path:
    """Return the folder that `make` fills, from the cache if it has been made before, by this run or another.

    One thing is made at a time: two runs would only take the processors from each other. What an older recipe made
    under the same name is removed.
    """
    place = cache_folder() / kind / f"{name}-{digest}"
    if place.is_dir():
        return place
    with locked("build"):
        if place.is_dir():
            return place
        place.parent.mkdir(exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".", dir=place.parent))
        try:
            make(draft)
            draft.chmod(0o755)
            draft.rename(place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        for other in place.parent.glob(f"{name}-" + "[0-9a-f]" * 16):
            if other != place:
                shutil.rmtree(other, ignore_errors=True)
    return place
