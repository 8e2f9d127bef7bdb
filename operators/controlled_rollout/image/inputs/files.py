"""Packaging of a project folder: which files belong to it, one digest over them, and an exact copy.

`.amlignore` in the folder's root says what to leave out; if there is none, the root's `.gitignore` does. Both are read
as the retired service read them (azureml-core 1.61): git's wildmatch patterns, the last that matches a file decides.
Links inside the folder are packaged as what they point to; a link out of the folder is refused.
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
from controlled_rollout.image.cancellable_thread import Stop, never

__all__ = ["MAX_BYTES", "MAX_FILES", "Package", "SourceFile", "copy_package", "package", "package_model"]

# The retired service's snapshots: 300 MB and 2,000 files, the second so often too few that it had a switch.
MAX_FILES: Final = 10_000
MAX_BYTES: Final = 300 * 1000 * 1000
# Past the limit the walk goes on to name the biggest folders, but not for ever.
GIVE_UP_FACTOR: Final = 20

ALWAYS_LEFT_OUT: Final = frozenset({".git", "__pycache__"})
IGNORE_FILES: Final = (".amlignore", ".gitignore")
CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """A file of a package.

    Attributes:
        path: Where it goes, relative, with forward slashes.
        source: Where its content is read from; links are resolved.
        size: Bytes.
        executable: Whether its owner may execute it: the only permission that is packaged.
        sha256: Of its content, hexadecimal.
    """

    path: str
    source: Path
    size: int
    executable: bool
    sha256: str = ""


@dataclass(frozen=True)
class Package:
    """The files of a folder and the digest over their paths, contents and executable bits.

    Attributes:
        files: Sorted by path.
        digest: 64 hexadecimal digits; independent of times, of the order on disk and of the umask.
        ignore_file: Which file said what to leave out, if one did.
    """

    files: tuple[SourceFile, ...]
    digest: str
    ignore_file: str | None = None

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(file.size for file in self.files)

    def __contains__(self, path: str) -> bool:
        return any(file.path == path for file in self.files)


def package(source_dir: Path, *, stop: Stop = never) -> Package:
    """Return the package of a project folder.

    Raises:
        ImageError: The folder is missing, holds nothing to package, or more than the limits; or it holds a link out of
            itself, a dangling link, something that is not a file, or a file that cannot be read.
    """
    root = _folder(source_dir)
    ignore_file, is_ignored, prunes = _ignore_rules(root)
    walk = _Walk(root, is_ignored=is_ignored, prunes=prunes, stop=stop)
    files = []
    biggest = _Biggest()
    for file in walk.files():
        files.append(file)
        biggest.add(file)
        if len(files) > MAX_FILES * GIVE_UP_FACTOR:
            break
    if len(files) > MAX_FILES or biggest.bytes > MAX_BYTES:
        raise ImageError(biggest.complaint(root, ignore_file))
    if not files:
        why = f" that {ignore_file} does not exclude" if ignore_file else ""
        raise ImageError(f"source folder {root} has no file{why}: there is nothing to package")
    return _digested(files, ignore_file, stop)


def package_model(path: Path, *, stop: Stop = never) -> Package:
    """Return the package of a model: a file, or a folder under its own name. Nothing is ignored, nothing is too big.

    A folder keeps its name because the retired service kept it: scripts read `$AZUREML_MODEL_DIR/trained/weights`.
    Links are followed wherever they lead: model caches link from a snapshot to a store of contents beside it.

    Raises:
        ImageError: There is no such file or folder, it is empty, or something in it cannot be read.
    """
    top = Path(path).absolute()
    with _read_errors(top):
        if top.is_dir():
            walk = _Walk(Path(os.path.realpath(top)), stop=stop, may_leave=True)
            files = [replace(file, path=f"{top.name}/{file.path}") for file in walk.files()]
        else:
            files = [_file(top.name, Path(os.path.realpath(top)), top.stat())]
    if not files:
        raise ImageError(f"model folder {top} has no file")
    return _digested(files, None, stop)


def copy_package(packaged: Package, folder: Path, *, stop: Stop = never) -> None:
    """Copy the files into `folder`, read-only, and check that each is still what was packaged.

    Raises:
        ImageError: A file changed since it was packaged.
        OSError: The copy cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in packaged.files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as sink:
            copied = _sha256(file.source, stop, sink.write)
            os.fchmod(sink.fileno(), 0o555 if file.executable else 0o444)
        if copied != file.sha256:
            raise ImageError(f"{file.source} changed while it was being packaged: build again when it is written")


def _folder(source_dir: Path) -> Path:
    """Return the folder's real path."""
    asked = Path(source_dir).expanduser().absolute()
    root = Path(os.path.realpath(asked))
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise ImageError(f"source folder {asked} was asked for, {found} is there: give the folder of the entry script")
    return root


def _ignore_rules(root: Path) -> tuple[str | None, Callable[[str], bool], bool]:
    """Return the ignore file's name, whether it excludes a path, and whether an excluded folder can be skipped whole.

    A later pattern with an exclamation mark may bring back a file of an excluded folder, so then every file is asked.
    """
    from pathspec import GitIgnoreSpec

    for name in IGNORE_FILES:
        path = root / name
        if not path.is_file():
            continue
        try:
            spec = GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8-sig").splitlines())
        except (OSError, ValueError) as error:
            raise ImageError(f"{path} cannot be read as ignore patterns: {error}") from None
        return name, spec.match_file, all(pattern.include is not False for pattern in spec.patterns)
    return None, lambda path: False, True


@dataclass
class _Walk:
    """All files under a folder that are not left out, links resolved, in no particular order."""

    root: Path
    stop: Stop
    is_ignored: Callable[[str], bool] = lambda path: False
    prunes: bool = True
    may_leave: bool = False
    _tops: list[tuple[str, Path, frozenset[str]]] = field(default_factory=list)

    def files(self) -> Iterator[SourceFile]:
        """Yield the files.

        Raises:
            ImageError: See `package`.
        """
        self._tops = [("", self.root, frozenset({str(self.root)}))]
        while self._tops:
            prefix, folder, chain = self._tops.pop()
            self.stop()
            with _read_errors(folder), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name not in ALWAYS_LEFT_OUT:
                        yield from self._entry(prefix + entry.name, entry, chain)

    def _entry(self, path: str, entry: os.DirEntry[str], chain: frozenset[str]) -> Iterator[SourceFile]:
        if entry.is_symlink():
            yield from self._link(path, Path(entry.path), chain)
        elif entry.is_dir(follow_symlinks=False):
            if not (self.prunes and self.is_ignored(path + "/")):
                self._tops.append((path + "/", Path(entry.path), chain | {entry.path}))
        elif not self.is_ignored(path):
            yield _file(path, Path(entry.path), entry.stat(follow_symlinks=False))

    def _link(self, path: str, link: Path, chain: frozenset[str]) -> Iterator[SourceFile]:
        if self.is_ignored(path) or (self.prunes and self.is_ignored(path + "/")):
            return
        real = Path(os.path.realpath(link))
        if not real.exists():
            raise ImageError(f"link {link} points to {real}, which does not exist: remove the link or ignore it")
        if not self.may_leave:
            self._check_inside(link, real)
        if not real.is_dir():
            yield _file(path, real, real.stat())
        elif str(real) in chain:
            raise ImageError(f"link {link} points back to {real}, a folder that it is in: remove the link or ignore it")
        else:
            self._tops.append((path + "/", real, chain | {str(real)}))

    def _check_inside(self, link: Path, real: Path) -> None:
        if not real.is_relative_to(self.root):
            raise ImageError(
                f"link {link} points out of the source folder, to {real}: copy what it points to into the folder, "
                "or ignore the link"
            )
        if ALWAYS_LEFT_OUT & set(real.relative_to(self.root).parts):
            raise ImageError(f"link {link} points to {real}, which is never packaged: remove the link or ignore it")


def _file(path: str, source: Path, status: os.stat_result) -> SourceFile:
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{source} is neither a file nor a folder: remove it or ignore it")
    return SourceFile(path, source, status.st_size, bool(status.st_mode & stat.S_IXUSR))


def _digested(files: list[SourceFile], ignore_file: str | None, stop: Stop) -> Package:
    """Return the package: each field of each file enters the digest with its length, so that none runs into another."""
    whole = hashlib.sha256()
    done = []
    for file in sorted(files, key=lambda file: os.fsencode(file.path)):
        with _read_errors(file.source):
            sha256 = _sha256(file.source, stop)
        path = os.fsencode(file.path)
        whole.update(b"%d:%b:%d:%b" % (len(path), path, file.executable, sha256.encode()))
        done.append(SourceFile(file.path, file.source, file.size, file.executable, sha256))
    return Package(tuple(done), whole.hexdigest(), ignore_file)


def _sha256(source: Path, stop: Stop, write: Callable[[bytes], object] | None = None) -> str:
    digest = hashlib.sha256()
    with source.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            stop()
            digest.update(chunk)
            if write is not None:
                write(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise ImageError(f"{where} cannot be read: {error.strerror or error}") from None


@dataclass
class _Biggest:
    """Counts per top folder, to say what to ignore."""

    counts: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)

    def add(self, file: SourceFile) -> None:
        top, slash, _ = file.path.partition("/")
        self.counts[top + slash] += 1
        self.sizes[top + slash] += file.size

    @property
    def bytes(self) -> int:
        return self.sizes.total()

    def complaint(self, root: Path, ignore_file: str | None) -> str:
        found = self.counts.total()
        too_many = found > MAX_FILES
        measure = self.counts if too_many else self.sizes
        named = ", ".join(
            f"{top} ({self.counts[top]:,} files, {_megabytes(self.sizes[top])})" for top, _ in measure.most_common(3)
        )
        more = "more than " if found > MAX_FILES * GIVE_UP_FACTOR else ""
        return (
            f"source folder {root} has {more}{found:,} files of {_megabytes(self.bytes)} together; "
            f"at most {MAX_FILES:,} files and {_megabytes(MAX_BYTES)} are packaged. The biggest are {named}: "
            f"name what scoring does not need in {ignore_file or IGNORE_FILES[0]}, and give models as models"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
