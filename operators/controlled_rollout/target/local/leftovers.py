"""What the local workspace and its cache hold that nothing needs any more, and deleting it."""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from controlled_rollout.errors import DamagedFileError, ImageError
from controlled_rollout.image.cache import Cache, remove_tree
from controlled_rollout.image.reference import ImageReference
from controlled_rollout.image.unused import size_of, unused_entries
from controlled_rollout.target.local.log_file import old_logs
from controlled_rollout.target.local.revisions import RevisionStore
from controlled_rollout.target.local.stored_endpoints import StoredEndpoints
from controlled_rollout.workspace import Workspace

__all__ = ["Leftover", "delete_leftovers", "find_leftovers"]


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that can be deleted.

    Attributes:
        what: Its kind, for people.
        path: The file or folder.
        size: What deleting it frees, in bytes.
    """

    what: str
    path: Path
    size: int


def find_leftovers(workspace: Workspace, *, before: float) -> list[Leftover]:
    """Return what no endpoint of the workspace and no running process needs, and nobody has used lately.

    Args:
        workspace: The local workspace. Its cache may be shared with others, of which only what runs is seen.
        before: What was written or used after that is kept, in seconds since 1970.

    Raises:
        DamagedFileError: The newest revision of an endpoint cannot be read, so nobody knows what it needs.
    """
    stored = StoredEndpoints(RevisionStore(workspace.endpoints_folder)).read_all() if workspace.root.exists() else {}
    for endpoint in stored.values():
        if endpoint.endpoint is None:
            raise DamagedFileError(f"nothing was deleted: {endpoint.damage}")
    versions = {
        (name, version): settings.image
        for name, each in stored.items()
        if each.endpoint is not None
        for version, settings in each.endpoint.versions.items()
    }
    found = [("log", path) for path in old_logs(workspace.logs_folder, versions, before)]
    # A folder that other workspaces share has records of endpoints that nobody knows here.
    records = sorted(workspace.records_folder.glob("*.jsonl")) if workspace.storage is None else ()
    found += [
        ("record", path)
        for path in records
        if path.name.partition(".")[0] not in stored and path.stat().st_mtime < before
    ]
    found += [("counts", path) for path in _old_counts(workspace.spools_folder, versions, before)]
    cache = Cache.at(workspace.cache_folder)
    found += [("cache", path) for path in unused_entries(cache, images=_digests(versions.values()), before=before)]
    return [Leftover(what, path, size_of(path)) for what, path in found]


def delete_leftovers(leftovers: Sequence[Leftover]) -> int:
    """Delete what `find_leftovers` has found; return how many bytes that freed."""
    for leftover in leftovers:
        if leftover.path.is_dir():
            with contextlib.suppress(OSError):
                remove_tree(leftover.path)
        else:
            leftover.path.unlink(missing_ok=True)
    return sum(leftover.size for leftover in leftovers if not leftover.path.exists())


def _old_counts(spools: Path, versions: Collection[tuple[str, str]], before: float) -> Iterator[Path]:
    """Yield the folders with nothing but what the replicas of versions that are gone have captured long ago."""
    for folder in sorted(spools.glob("*/*/")):
        files = list(folder.iterdir())
        if (
            folder.parts[-2:] not in versions
            and not any(file.is_dir() for file in files)
            and all(file.stat().st_mtime < before for file in (folder, *files))
        ):
            yield folder


def _digests(references: Iterable[str]) -> set[str]:
    """Return the digests of images, without those of other kinds."""
    digests = set()
    for reference in references:
        try:
            digests.add(ImageReference.parse(reference).sha256)
        except ImageError:
            continue
    return digests
