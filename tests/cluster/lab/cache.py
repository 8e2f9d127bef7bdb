"""Results that take long to make (programs, images), kept outside every checkout and made once."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["cache_folder", "digest_of", "find", "find_or_make", "locked"]


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
    if folder:
        for file in filter(Path.is_file, sorted(folder.rglob("*"))):
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock across all processes of this machine; the kernel releases it when the process ends."""
    with (cache_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def find(kind: str, name: str, digest: str) -> Path | None:
    """Return the cached folder of a result; None where it has not been made.

    Args:
        kind: The sort of result: `programs`, `layers`, `registries`.
        name: Its name.
        digest: The digest of everything that it is made from.
    """
    folder = cache_folder() / kind / f"{name}-{digest}"
    return folder if folder.is_dir() else None


def find_or_make(kind: str, name: str, digest: str, make: Callable[[Path], None]) -> Path:
    """Return the cached folder of a result; create it with `make` first where it is missing.

    Only one process of this machine makes something at a time: a second one would just compete for the processors.
    Folders that an older digest left under the same name are removed.

    Args:
        kind: The sort of result: `programs`, `layers`, `registries`.
        name: Its name.
        digest: The digest of everything that it is made from.
        make: Fills the empty folder that it is given.
    """
    if cached := find(kind, name, digest):
        return cached
    with locked("build"):
        if cached := find(kind, name, digest):
            return cached
        folder = cache_folder() / kind / f"{name}-{digest}"
        folder.parent.mkdir(exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        try:
            make(draft)
            draft.chmod(0o755)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        for outdated in folder.parent.glob(f"{name}-" + "[0-9a-f]" * 16):
            if outdated != folder:
                shutil.rmtree(outdated, ignore_errors=True)
    return folder
