"""The files of a project folder or of a model: which belong to it, one digest over them, and an exact copy.

`.amlignore` in the folder's root says what to leave out; if there is none, the root's `.gitignore` does. Both are read
as the retired service read them (azureml-core 1.61): git's wildmatch patterns, the last match decides.
A link inside the folder is read as what it points to; a link out of the folder is refused.
"""

import contextlib
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cancellable_thread import CancelCheck, never_cancelled
from controlled_rollout.image.inputs.ignore_file import IGNORE_FILES, IgnoreRules, read_ignore_rules

__all__ = ["MAX_BYTES", "MAX_FILES", "FileSet", "SourceFile", "copy_files", "read_model_files", "read_source_folder"]

# The retired service's snapshots: 300 MB and 2,000 files, the second so often too few that it had a switch.
MAX_FILES: Final = 10_000
MAX_BYTES: Final = 300 * 1000 * 1000
# Past the limit the walk goes on, to name the biggest folders, up to this many times the limit.
GIVE_UP_FACTOR: Final = 20

ALWAYS_LEFT_OUT: Final = frozenset({".git", "__pycache__"})
CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """One file.

    Attributes:
        path: Where it goes, relative, with forward slashes.
        source: Where its content is read from; links are resolved.
        size: Bytes.
        executable: Whether its owner may execute it: the only permission that is kept.
        sha256: Of its content, hexadecimal.
    """

    path: str
    source: Path
    size: int
    executable: bool
    sha256: str = ""


@dataclass(frozen=True)
class FileSet:
    """The files of a folder and the digest over their paths, contents and executable bits.

    Attributes:
        files: Sorted by path.
        digest: 64 hexadecimal digits; independent of times, of the order on disk and of the umask.
        ignore_file: The file whose patterns were applied, if any.
        patterns_without_effect: Those of its lines that match nothing, because git cannot read them either.
    """

    files: tuple[SourceFile, ...]
    digest: str
    ignore_file: str | None = None
    patterns_without_effect: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Total size of all files, in bytes."""
        return sum(file.size for file in self.files)


def read_source_folder(source_dir: Path, *, check_cancelled: CancelCheck = never_cancelled) -> FileSet:
    """Return the files of a project folder with their hashes, without those that its ignore file excludes.

    Raises:
        ImageError: The folder is missing, has no file or more than the limits; or it has a link out of itself, a
            dangling link, something that is neither file nor folder, or a file that cannot be read.
    """
    root = _real_source_folder(source_dir)
    rules = read_ignore_rules(root)
    walk = _Walk(root, rules, check_cancelled=check_cancelled)
    files = []
    totals = _SizePerFolder()
    for file in walk.files():
        files.append(file)
        totals.add(file)
        if len(files) > MAX_FILES * GIVE_UP_FACTOR:
            break
    if len(files) > MAX_FILES or totals.bytes > MAX_BYTES:
        raise ImageError(totals.too_big_message(root, rules.name))
    if not files:
        why = f" that {rules.name} does not exclude" if rules.name else ""
        raise ImageError(f"source folder {root} has no file{why}: there is nothing to package")
    return replace(
        _with_digests(files, check_cancelled), ignore_file=rules.name, patterns_without_effect=rules.without_effect
    )


def read_model_files(path: Path, *, check_cancelled: CancelCheck = never_cancelled) -> FileSet:
    """Return a model's file, or the files of its folder, with their hashes. No ignore file and no limit applies.

    A folder keeps its name because the retired service kept it: scripts read `$AZUREML_MODEL_DIR/trained/weights`.
    Links are followed wherever they lead: model caches link from a snapshot to a store of contents beside it.

    Raises:
        ImageError: There is no such file or folder, it is empty, or something in it cannot be read.
    """
    top = Path(path).absolute()
    with _read_errors(top):
        if top.is_dir():
            walk = _Walk(
                Path(os.path.realpath(top)), IgnoreRules(), check_cancelled=check_cancelled, allows_links_outside=True
            )
            files = [replace(file, path=f"{top.name}/{file.path}") for file in walk.files()]
        else:
            files = [_source_file(top.name, Path(os.path.realpath(top)), top.stat())]
    if not files:
        raise ImageError(f"model folder {top} has no file")
    return _with_digests(files, check_cancelled)


def copy_files(file_set: FileSet, folder: Path, *, check_cancelled: CancelCheck = never_cancelled) -> None:
    """Copy files read-only into a folder; raise if one no longer has the hash that was taken when it was read.

    Raises:
        ImageError: A file changed since it was read.
        OSError: The copy cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in file_set.files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as sink:
            copied_sha256 = _sha256(file.source, check_cancelled, sink.write)
            os.fchmod(sink.fileno(), 0o555 if file.executable else 0o444)
        if copied_sha256 != file.sha256:
            raise ImageError(f"{file.source} changed during the build: build again when it is no longer written to")


def _real_source_folder(source_dir: Path) -> Path:
    """Resolve a project folder's real path; raise if it is not a folder."""
    path = Path(source_dir).expanduser().absolute()
    root = Path(os.path.realpath(path))
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise ImageError(f"source folder {path} {problem}: give the folder of the entry script")
    return root


@dataclass
class _Walk:
    """All files under a folder that are not left out, links resolved, in no particular order."""

    root: Path
    rules: IgnoreRules
    check_cancelled: CancelCheck
    allows_links_outside: bool = False
    _pending: list[tuple[str, Path, frozenset[str]]] = field(default_factory=list)

    def files(self) -> Iterator[SourceFile]:
        """Walk the folder tree and yield each file that is not ignored.

        Raises:
            ImageError: See `read_source_folder`.
        """
        self._pending = [("", self.root, frozenset({str(self.root)}))]
        while self._pending:
            prefix, folder, chain = self._pending.pop()
            self.check_cancelled()
            with _read_errors(folder), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name not in ALWAYS_LEFT_OUT:
                        yield from self._visit_entry(prefix + entry.name, entry, chain)

    def _visit_entry(self, path: str, entry: os.DirEntry[str], chain: frozenset[str]) -> Iterator[SourceFile]:
        """Handle one directory entry: yield a file, queue a folder for the walk, or follow a symbolic link."""
        if entry.is_symlink():
            yield from self._follow_link(path, Path(entry.path), chain)
        elif entry.is_dir(follow_symlinks=False):
            if not (self.rules.skips_folders and self.rules.excludes(path + "/")):
                self._pending.append((path + "/", Path(entry.path), chain | {entry.path}))
        elif not self.rules.excludes(path):
            yield _source_file(path, Path(entry.path), entry.stat(follow_symlinks=False))

    def _follow_link(self, path: str, link: Path, chain: frozenset[str]) -> Iterator[SourceFile]:
        """Follow a symbolic link: yield its file or queue its folder; raise if it is broken or circular."""
        if self.rules.excludes(path) or (self.rules.skips_folders and self.rules.excludes(path + "/")):
            return
        real = Path(os.path.realpath(link))
        if not real.exists():
            raise ImageError(f"link {link} points to {real}, which does not exist: remove the link or ignore it")
        if not self.allows_links_outside:
            self._check_inside(link, real)
        if not real.is_dir():
            yield _source_file(path, real, real.stat())
        elif str(real) in chain:
            raise ImageError(f"link {link} points back to {real}, a folder that it is in: remove the link or ignore it")
        else:
            self._pending.append((path + "/", real, chain | {str(real)}))

    def _check_inside(self, link: Path, real: Path) -> None:
        """Raise if a link points out of the source folder, or to a file that is never part of an image."""
        if not real.is_relative_to(self.root):
            raise ImageError(
                f"link {link} points out of the source folder, to {real}: copy what it points to into the folder, "
                "or ignore the link"
            )
        if ALWAYS_LEFT_OUT & set(real.relative_to(self.root).parts):
            raise ImageError(
                f"link {link} points to {real}, which is never part of an image: remove the link or ignore it"
            )


def _source_file(path: str, source: Path, status: os.stat_result) -> SourceFile:
    """Return a `SourceFile` without its hash; raise if the path is a device, socket or pipe."""
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{source} is neither a file nor a folder: remove it or ignore it")
    return SourceFile(path, source, status.st_size, bool(status.st_mode & stat.S_IXUSR))


def _with_digests(files: list[SourceFile], check_cancelled: CancelCheck) -> FileSet:
    """Hash each file and the whole set. Each hashed field has its length before it, so that two never run together."""
    digest = hashlib.sha256()
    digested = []
    for file in sorted(files, key=lambda file: os.fsencode(file.path)):
        with _read_errors(file.source):
            sha256 = _sha256(file.source, check_cancelled)
        path = os.fsencode(file.path)
        digest.update(b"%d:%b:%d:%b" % (len(path), path, file.executable, sha256.encode()))
        digested.append(replace(file, sha256=sha256))
    return FileSet(tuple(digested), digest.hexdigest())


def _sha256(source: Path, check_cancelled: CancelCheck, write: Callable[[bytes], object] | None = None) -> str:
    """Return the SHA-256 of a file's content; also pass each chunk to `write` if given."""
    digest = hashlib.sha256()
    with source.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            check_cancelled()
            digest.update(chunk)
            if write is not None:
                write(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Context manager: convert an `OSError` to an `ImageError` that names the file."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise ImageError(f"{where} cannot be read: {error.strerror or error}") from error


@dataclass
class _SizePerFolder:
    """Number and bytes of files per top-level folder, for the message that names the biggest."""

    counts: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)

    def add(self, file: SourceFile) -> None:
        """Add one file to the totals of its top-level folder."""
        top, slash, _ = file.path.partition("/")
        self.counts[top + slash] += 1
        self.sizes[top + slash] += file.size

    @property
    def bytes(self) -> int:
        """Total size of all files, in bytes."""
        return self.sizes.total()

    def too_big_message(self, root: Path, ignore_file: str | None) -> str:
        """Return the error message for a source folder above the limits, with its three biggest folders."""
        n_files = self.counts.total()
        measure = self.counts if n_files > MAX_FILES else self.sizes
        biggest = ", ".join(
            f"{top} ({self.counts[top]:,} files, {_format_megabytes(self.sizes[top])})"
            for top, _ in measure.most_common(3)
        )
        more = "more than " if n_files > MAX_FILES * GIVE_UP_FACTOR else ""
        return (
            f"source folder {root} has {more}{n_files:,} files of {_format_megabytes(self.bytes)} together; "
            f"at most {MAX_FILES:,} files and {_format_megabytes(MAX_BYTES)} are allowed. The biggest are {biggest}: "
            f"name what scoring does not need in {ignore_file or IGNORE_FILES[0]}, and give models as models"
        )


def _format_megabytes(size: int) -> str:
    """Format a number of bytes, such as `1,234.5 MB`."""
    return f"{size / 1e6:,.1f} MB"
